"""What every mixed layer has: its share of one :func:`mixout.apply_`, and the swap of its class.

``module.__class__`` is exchanged for a subclass, nothing else; docs/design.md says what stays valid.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from mixout._torch import exporting
from mixout.anchor import AnchorTensor, MovingAnchor, OwnWeight
from mixout.errors import MixoutError
from mixout.layers.registry import Entry, find, parameter
from mixout.masks import Noise, Unit
from mixout.ops.reference import Gradient
from mixout.parts import check_whole, in_parts, still_sharded
from mixout.passes import Form, MixOptions
from mixout.seeds import Period
from mixout.streams import Stream
from mixout.watch import Watch

REPLACED = (
    "is computed by another tool since apply_ (pruning, weight norm, spectral norm, a parametrization), and mixing "
    "would undo what that does; call remove_ first, then prune, then apply_"
)


_SWITCHING = threading.Lock()


@dataclass(kw_only=True)
class Mixing:
    """What all mixed layers of one :func:`mixout.apply_` share."""

    # Without dimensions, float64, on the host: a schedule changes it in place, a compiled graph takes it as an input.
    p: Tensor
    unit: Unit
    noise: Noise
    gradient: Gradient
    form: Form = "auto"
    period: Period | None = None  # for masks that are kept for several optimizer steps
    watch: Watch = field(init=False, default_factory=Watch)  # for steps in which no layer is mixed
    off: bool = field(init=False)
    blocks: int = field(init=False, default=0)  # that want it off: those of two threads may overlap
    version: int = field(init=False, default=0)
    stated: float = field(init=False)  # the method's p, before any schedule
    _number: float = field(init=False)

    def __post_init__(self) -> None:
        self.off = False  # of the instance from the beginning: graphs ask where it lies
        self.stated = float(self.p)
        self.set_p(self.stated)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "off": False, "blocks": 0}  # nobody would switch a copy on again

    def set_p(self, p: float) -> None:
        """Change p, in place, so that a compiled graph sees it too."""
        self.p.fill_(p)
        self._number = p
        self.version += 1

    def switch(self, *, off: bool) -> None:
        """Let training passes read plain weights; or mixed ones again, once nobody else wants plain ones."""
        with _SWITCHING:
            self.blocks += 1 if off else -1
            self.off = self.blocks > 0
            self.version += 1
        self.watch.end()  # whoever switches knows when it mixes

    def __repr__(self) -> str:
        return f"p={float(self.p):g}, unit={self.unit!r}, noise={self.noise!r}, gradient={self.gradient!r}"

    def probability(self) -> float | Tensor:
        """The p as a number; the tensor itself while compiling, where a number would be a constant of the graph."""
        return self.p if torch.compiler.is_compiling() else self._number


@dataclass(kw_only=True)
class Share:
    """What one mixed layer has of its own."""

    mixing: Mixing  # what it shares with the others
    anchors: dict[str, AnchorTensor]  # of each of its weights, by the weight's name in the layer
    plain: type[nn.Module]  # its class without mixing
    stream: Stream  # the random numbers of its masks
    passes: int = 0  # training passes in which it was mixed
    seen: int = 0  # of these, until the last step that the watch has counted
    short: Any = None  # see layers/forwards.py
    anchor: AnchorTensor = field(init=False)  # the first of them

    def __post_init__(self) -> None:
        self.anchor = next(iter(self.anchors.values()))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "short": None}

    @property
    def called(self) -> bool:
        """Whether the layer has been called in training, eagerly or in a compiled graph."""
        return self.passes > 0 or self.stream.drawn_in_graphs


class Mixed(nn.Module):
    """Base of the mixed layers. Abstract: a subclass also derives from its plain class and defines ``forward``."""

    weight: Tensor
    _mixed: Share

    def mix_options(self, stream: Stream | None = None) -> MixOptions:
        """How this pass mixes; by default with the layer's own ``stream``."""
        mixing, stream = self._mixed.mixing, stream or self._mixed.stream
        return MixOptions(mixing.probability(), mixing.unit, mixing.gradient, mixing.noise, stream, mixing.form)

    def count_pass(self) -> None:
        """Count this pass, so that coverage can name layers that are never called; a compiled graph cannot count."""
        if not torch.compiler.is_compiling():  # in a graph the stream counts
            if self._mixed.passes == 0:  # DeepSpeed is initialised after apply_
                for path in self._mixed.anchors:
                    if (weight := parameter(self, path)) is not None:
                        check_whole(weight)
            share = self._mixed
            share.passes += 1
            if share.mixing.period is not None:
                for path in share.anchors:
                    share.mixing.period.note(f"{share.stream.key}.{path}", self.stepped(path))

    def stepped(self, path: str) -> Tensor | None:
        """The parameter of that name that an optimizer steps."""
        return parameter(self, path)

    def moving_anchors(self) -> list[tuple[MovingAnchor, Tensor | None]]:
        """The anchors that move, each with the parameter that it follows."""
        anchors = self._mixed.anchors.items()
        return [(anchor, self.stepped(path)) for path, anchor in anchors if isinstance(anchor, MovingAnchor)]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        enlist_(self)

    def leave_(self) -> None:
        """Undo what a mixed layer has changed outside of itself: nothing, unless a subclass does."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for anchor in self._mixed.anchors.values():
            anchor.apply_(fn)
        self._mixed.short = None  # its tensors are on the old device
        self._mixed.stream.forget()
        return self

    def extra_repr(self) -> str:
        """That of the plain layer, and how it is mixed."""
        plain = super().extra_repr()
        return f"{plain}, {self._mixed.mixing}" if plain else repr(self._mixed.mixing)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuse a quantised weight, which torchao sets here: it cannot be mixed, and no pass would say so."""
        if name in self._mixed.anchors and hasattr(param, "__tensor_flatten__") and not in_parts(param):
            raise _not_quantised(self)
        super().register_parameter(name, param)

    @property
    def qconfig(self) -> Any:  # noqa: ANN401
        """Set by torch's quantisation, which does not know the mixed layers and would pass over them in silence."""
        raise AttributeError("qconfig")

    @qconfig.setter
    def qconfig(self, value: Any) -> None:  # noqa: ANN401, ARG002
        raise _not_quantised(self)

    def __prepare_scriptable__(self) -> nn.Module:
        """Asked by ``torch.jit.script``, which would compile the plain forward or fail without a reason."""
        raise MixoutError(
            f"torch.jit.script cannot compile a mixed layer, got {type(self).__name__}; call remove_ first"
        )


def _not_quantised(layer: Mixed) -> MixoutError:
    return MixoutError(
        f"quantisation does not know mixed layers, got {type(layer).__name__}; call remove_ first, then quantise"
    )


def entry_of_mixed(layer: Mixed) -> Entry:
    """How the plain class of ``layer`` stores its weights."""
    return find(layer, layer._mixed.plain)[1]  # type: ignore[index]  # a mixed layer is registered


def mixes(layer: Mixed) -> bool:
    """Whether this pass reads Phi: in training, not removed since, not switched off, with a weight that is trained."""
    # A tool that has kept a mixed layer's bound forward (accelerate's hooks) still calls it after restore_.
    if not layer.training or "_mixed" not in layer.__dict__ or layer._mixed.mixing.off:
        return False
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if tracing or (torch.compiler.is_compiling() and exporting()):
        raise MixoutError(
            "a mixed layer was traced or exported in training mode, which would keep one mask for good; call "
            "model.eval() or mixout.remove_(model) first"
        )
    weight = layer._parameters.get("weight")
    if weight is not None and weight.requires_grad:
        return True
    check_weights(layer)
    return not is_frozen(layer)


def in_eval_mode(layer: nn.Module) -> bool:
    """Whether a mixed layer was not mixed since this was asked last, and would not be because of its mode alone."""
    share: Share | None = vars(layer).get("_mixed")
    if share is None or layer.training or share.mixing.probability() == 0.0 or share.stream.drawn_in_graphs:
        return False
    passes, share.seen = share.passes - share.seen, share.passes
    return passes == 0


def is_frozen(layer: Mixed) -> bool:
    """Whether Phi is w in any case, for each weight of ``layer``."""
    return all(stays(parameter(layer, path), anchor) for path, anchor in layer._mixed.anchors.items())


def stays(weight: Tensor | None, anchor: AnchorTensor) -> bool:
    """Whether Phi is w in any case: the weight is not trained, and the anchor is not zero."""
    # A tensor that torch.func.functional_call hands in is no Parameter, and is mixed.
    if not isinstance(weight, nn.Parameter) or weight.requires_grad:
        return False
    return anchor.tensor is not None or isinstance(anchor, OwnWeight)


def check_weights(layer: Mixed) -> None:
    """Refuse a weight that another tool computes since ``apply_``: Phi would ignore what that tool does."""
    if getattr(layer, "_is_replica", False):  # replicas of DataParallel hold their weights as plain attributes
        return
    for path in layer._mixed.anchors:
        if parameter(layer, path) is None:
            raise MixoutError(f"the {path} of {layer._mixed.stream.key!r} {REPLACED}")


def swap_(module: Any, mixed: type[Mixed], share: Share) -> None:  # noqa: ANN401  a module
    """Make ``module`` a ``mixed`` layer that holds ``share``."""
    module._mixed = share
    module.__class__ = mixed
    enlist_(module)


def enlist_(layer: Mixed) -> None:
    """Give ``layer`` a stream for each of its weights, and let its moving anchors move after optimizer steps."""
    period = layer._mixed.mixing.period
    for path in layer._mixed.anchors:
        layer._mixed.stream.of(path)
    if period is not None and any(isinstance(anchor, MovingAnchor) for anchor in layer._mixed.anchors.values()):
        period.followers.add(layer)


def restore_(module: Mixed) -> None:
    """Give ``module`` its plain class back."""
    module.leave_()
    if (period := module._mixed.mixing.period) is not None:
        period.followers.discard(module)
    plain = still_sharded(module, module._mixed.plain)
    del module._mixed
    module.__class__ = plain  # type: ignore[assignment]


_SUBCLASSES: dict[tuple[type, type], type[Mixed]] = {}


def mixed_subclass(mixed: type[Mixed], plain: type[nn.Module]) -> type[Mixed]:
    """``mixed`` for ``plain``, a subclass of its plain class that keeps the forward; the same class each time."""
    if (mixed, plain) not in _SUBCLASSES:
        members = {"__reduce_ex__": _reduce, "__module__": plain.__module__}
        _SUBCLASSES[mixed, plain] = type(f"Mixed{plain.__name__}", (mixed, plain), members)
    return _SUBCLASSES[mixed, plain]


def _reduce(layer: Mixed, protocol: SupportsIndex) -> str | tuple[Any, ...]:
    """For pickle and deepcopy: no module names such a class, so it is made again from its two bases."""
    bases, reduced = type(layer).__bases__, super(Mixed, layer).__reduce_ex__(protocol)
    return (_rebuild, bases, *reduced[2:]) if bases in _SUBCLASSES else reduced


def _rebuild(mixed: type[Mixed], plain: type[nn.Module]) -> Mixed:
    subclass = mixed_subclass(mixed, plain)
    return subclass.__new__(subclass)
