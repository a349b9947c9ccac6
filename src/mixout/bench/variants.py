"""What is compared with plain fine-tuning: a method with its p, training or in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

import mixout
from mixout.bench.authors import AuthorsLinear, apply_authors_
from mixout.bench.table import label
from mixout.layers import Mixed

Mode = Literal["train", "eval"]
Place = Literal["", "bf16", "host"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run a model.

    Args:
        method: ``authors``, or the name of a method of mixout that takes p.
        p: its probability.
        mode: ``train``, a whole training step; or ``eval``, a forward pass without gradients.
        anchor: how anchors are kept: as the weights are; in bfloat16; or in the host's memory.

    Example:
        >>> str(Variant(method="mixout", p=0.9))
        'mixout(0.9)'
    """

    method: str
    p: float
    mode: Mode = "train"
    anchor: Place = ""

    def __str__(self) -> str:
        return label(self.method, self.p, self.mode, self.anchor)

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
        method = mixout.methods.parse(f"{self.method}({self.p})")
        if self.anchor == "bf16":  # as the weights of a checkpoint in bfloat16, which that dtype holds exactly
            return mixout.apply_(model.bfloat16().float(), method, anchor_dtype=torch.bfloat16)
        return mixout.apply_(model, method, anchor_device="cpu" if self.anchor == "host" else None)


# Plain fine-tuning is without any dropout: it does the least work of all that people run.
PLAIN = Variant(method="dropout", p=0.0)
WEIGHTS = (
    Variant(method="mixout", p=0.1),
    Variant(method="mixout", p=0.5),
    Variant(method="mixout", p=0.9),
    Variant(method="mixconnect", p=0.9),
    Variant(method="authors", p=0.9),
)
STEP = (
    Variant(method="dropout", p=0.1),
    *WEIGHTS,
    Variant(method="mixout", p=0.9, anchor="bf16"),
    Variant(method="mixout", p=0.9, anchor="host"),
    Variant(method="mixout", p=0.9, mode="eval"),
)
SWEEP = (Variant(method="dropout", p=0.1), Variant(method="mixout", p=0.9), Variant(method="authors", p=0.9))


def step(device: torch.device) -> tuple[Variant, ...]:
    """What is compared on ``device``: on a CPU anchors lie in the host's memory anyway."""
    return tuple(variant for variant in STEP if device.type != "cpu" or variant.anchor != "host")


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
