"""What is compared with plain fine-tuning: a method with its p, training or in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

import mixout
from mixout.bench.authors import AuthorsLinear, apply_authors_
from mixout.layers import Mixed

Mode = Literal["train", "eval"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run a model.

    Args:
        method: ``authors``, or the name of a method of mixout that takes p.
        p: its probability.
        mode: ``train``, a whole training step; or ``eval``, a forward pass without gradients.

    Example:
        >>> str(Variant(method="mixout", p=0.9))
        'mixout(0.9)'
    """

    method: str
    p: float
    mode: Mode = "train"

    def __str__(self) -> str:
        return f"{self.method}({self.p:g})" + ("" if self.mode == "train" else ", eval")

    @property
    def spared(self) -> float:
        """The share of a mixed layer's weight gradient that is zero by definition and need not be computed.

        p where a unit is an input neuron, so that whole columns are zero. Element masks leave no column out, and the
        authors' formulation computes all of it before it is masked.
        """
        return self.p if self.method == "mixout" and self.mode == "train" else 0.0

    def install_(self, model: nn.Module) -> nn.Module:
        """Make ``model``, which is plain and on its device, this variant."""
        if self.method == "authors":
            return apply_authors_(model, self.p)
        return mixout.apply_(model, mixout.methods.parse(f"{self.method}({self.p})"))


# Plain fine-tuning is without any dropout: it does the least work of all that people run.
PLAIN = Variant(method="dropout", p=0.0)
WEIGHTS = (
    Variant(method="mixout", p=0.1),
    Variant(method="mixout", p=0.5),
    Variant(method="mixout", p=0.9),
    Variant(method="mixconnect", p=0.9),
    Variant(method="authors", p=0.9),
)
STEP = (Variant(method="dropout", p=0.1), *WEIGHTS, Variant(method="mixout", p=0.9, mode="eval"))
SWEEP = (Variant(method="dropout", p=0.1), Variant(method="mixout", p=0.9), Variant(method="authors", p=0.9))


def anchors(model: nn.Module) -> Iterator[Tensor]:
    """The anchors that the mixed layers of ``model`` hold; a shared one once."""
    seen: set[int] = set()
    for module in model.modules():
        anchor = module._mixed.anchor.tensor if isinstance(module, Mixed) else None
        if isinstance(module, AuthorsLinear):
            anchor = module.anchor
        if anchor is not None and id(anchor) not in seen:
            seen.add(id(anchor))
            yield anchor
