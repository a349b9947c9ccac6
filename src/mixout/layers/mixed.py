"""What every mixed layer has: its share of one :func:`mixout.apply_`, and the swap of its class.

``module.__class__`` is exchanged for a subclass, nothing else: Parameter objects, state-dict keys, ties, hooks,
``requires_grad``, the training flag, ``isinstance``, deepcopy, pickle and optimizers all stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from mixout.anchor import Anchor
from mixout.masks import Noise, Unit
from mixout.ops.reference import Gradient
from mixout.parts import check_whole, still_sharded
from mixout.streams import Stream


@dataclass(kw_only=True)
class Mixing:
    """What all mixed layers of one model share.

    Args:
        p: a tensor without dimensions, float64 on the host, so that a schedule changes it in place and a compiled
            graph takes it as an input.
        unit: what shares a coin.
        noise: the law of the mask.
        gradient: the convention of the derivative.
    """

    p: Tensor
    unit: Unit
    noise: Noise
    gradient: Gradient

    def __repr__(self) -> str:
        return f"p={float(self.p):g}, unit={self.unit!r}, noise={self.noise!r}, gradient={self.gradient!r}"

    def probability(self) -> float | Tensor:
        """P as a number; the tensor itself while compiling, where a number would be a constant of the graph."""
        return self.p if torch.compiler.is_compiling() else float(self.p)


@dataclass(kw_only=True)
class Share:
    """What one layer has of it: anchor, plain class, the stream of its masks, and in how many passes it was mixed."""

    mixing: Mixing
    anchor: Anchor
    plain: type[nn.Module]
    stream: Stream
    passes: int = 0
    compiled: bool = False

    @property
    def drawn_from(self) -> Stream | None:
        """The stream if masks come from it; None if they come from torch's default generators."""
        seed = self.stream.seed
        return self.stream if isinstance(seed, int) or seed.in_force else None


class MixOptions(TypedDict):
    """See :func:`mixout.functional.mix`."""

    p: float | Tensor
    unit: Unit
    gradient: Gradient
    noise: Noise
    stream: Stream | None


class Mixed(nn.Module):
    """Base of the mixed layers. Abstract: a subclass also derives from its plain class and defines ``forward``."""

    weight: Tensor
    _mixed: Share

    def mix_options(self) -> MixOptions:
        """The keyword arguments that the functions of :mod:`mixout.functional` share, for this pass."""
        mixing = self._mixed.mixing
        return {
            "p": mixing.probability(),
            "unit": mixing.unit,
            "gradient": mixing.gradient,
            "noise": mixing.noise,
            "stream": self._mixed.drawn_from,
        }

    def count_pass(self) -> None:
        """Count, so that coverage can tell a layer that is never called; a compiled graph cannot count."""
        if torch.compiler.is_compiling():
            self._mixed.compiled = True
        else:
            if self._mixed.passes == 0:  # DeepSpeed is initialised after apply_
                check_whole(self.weight)
            self._mixed.passes += 1

    def leave_(self) -> None:
        """Undo what a mixed layer has changed outside of itself: nothing, unless a subclass does."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._mixed.anchor.apply_(fn)
        return self

    def extra_repr(self) -> str:
        """The plain layer's, and how it is mixed."""
        plain = super().extra_repr()
        return f"{plain}, {self._mixed.mixing}" if plain else repr(self._mixed.mixing)


def mixes(layer: nn.Module) -> bool:
    """Whether this pass is mixed: in training, and not removed since.

    A tool that has kept a mixed layer's bound forward (accelerate's hooks) still calls it after :func:`restore_`.
    """
    return layer.training and "_mixed" in vars(layer)


def swap_(module: nn.Module, mixed: type[Mixed], share: Share) -> None:
    """Make ``module`` a ``mixed`` layer that holds ``share``."""
    module._mixed = share  # type: ignore[assignment]
    module.__class__ = mixed


def restore_(module: Mixed) -> None:
    """Give ``module`` its plain class back."""
    module.leave_()
    plain = still_sharded(module, module._mixed.plain)
    del module._mixed
    module.__class__ = plain  # type: ignore[assignment]
