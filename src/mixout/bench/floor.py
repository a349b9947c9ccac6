"""The floor of a training step: the time that its arithmetic alone would take, as a ratio to plain fine-tuning.

FLOPs of one training step, a multiply-add counted as 2; B sequences of L tokens:

- a linear of (out, in) on N rows: three GEMMs (y, grad_x, grad_w) of 2 N in out;
- attention of width d in a layer: two GEMMs forward and four backward of 2 B L^2 d; half of that where it is causal;
- everything else, an estimate: ``ELEMENTWISE`` for each element that a layer norm, an activation or an embedding puts
  out and for each attention score, three times (forward, and twice that backward); ``ADAMW`` for each parameter.

Mixout with probability p leaves out p of grad_w of the mixed linears, a third of their work::

    floor(p) = (mixed * (2 + (1-p)) / 3 + unmixed + attention + other) / (mixed + unmixed + attention + other)

A floor, not a forecast. It supposes that all FLOPs take the same time, while what is not a GEMM is bound by memory and
takes more, that making Phi costs nothing, and that exactly 1-p of the columns are kept.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mixout.bench.cases import Case, build, inputs
from mixout.selection import chosen_layers, resolve

ELEMENTWISE = 10
ADAMW = 13


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of one training step without regularisation.

    Args:
        mixed: GEMMs of the linears that a mixing method takes.
        unmixed: GEMMs of the other linears.
        attention: GEMMs of scores and values.
        other: everything else.
    """

    mixed: float
    unmixed: float = 0.0
    attention: float = 0.0
    other: float = 0.0

    @property
    def total(self) -> float:
        """FLOPs of the step."""
        return self.mixed + self.unmixed + self.attention + self.other

    def floor(self, p: float) -> float:
        """The part of the arithmetic that is left with mixout at ``p``.

        Example:
            >>> round(Work(mixed=3.0).floor(0.9), 3), round(Work(mixed=3.0, unmixed=2.0).floor(1.0), 3)
            (0.7, 0.8)
        """
        return (self.mixed * (2 + (1 - p)) / 3 + self.unmixed + self.attention + self.other) / self.total


def linear_flops(rows: int, in_features: int, out_features: int) -> int:
    """The three GEMMs of one linear in one training step.

    Example:
        >>> linear_flops(2, 3, 5)  # 3 * 2 * (2 * 3 * 5)
        180
    """
    return 3 * 2 * rows * in_features * out_features


def count(case: Case) -> Work:
    """The work of ``case``, from one forward pass of its model on fake tensors: shapes, and nothing computed."""
    plain = build(case, "meta")
    mixed_names = chosen_layers(plain, resolve(None, plain)).keys()
    # Fake, not meta: transformers looks into positions unless it knows that there is nothing to see.
    with FakeTensorMode():
        return _count(case, mixed_names)


def _count(case: Case, mixed_names: Collection[str]) -> Work:
    model = build(case, "cpu")
    linears: dict[str, int] = {}
    elements: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401  whatever a layer returns
            if isinstance(module, nn.Linear):
                rows = math.prod(args[0].shape[:-1])
                linears[name] = linears.get(name, 0) + linear_flops(rows, module.in_features, module.out_features)
            elif isinstance(output, torch.Tensor):
                elements[name] = elements.get(name, 0) + output.numel()

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        # Dropouts are off in what the floor is compared with.
        if not any(module.children()) and not isinstance(module, nn.Dropout):
            watch(name, module)
    model(**inputs(case, "cpu"))
    pairs = case.batch * case.length**2 / (2 if case.family == "llama" else 1)
    passes = ELEMENTWISE * 3 * (sum(elements.values()) + case.layers * case.heads * pairs)
    return Work(
        mixed=sum(flops for name, flops in linears.items() if name in mixed_names),
        unmixed=sum(flops for name, flops in linears.items() if name not in mixed_names),
        attention=case.layers * 6 * 2 * pairs * case.width,
        other=passes + ADAMW * sum(p.numel() for p in model.parameters()),
    )
