r"""anchor_decay(rate): weight decay towards the pretrained weights u instead of towards zero.

Decoupled (the default), after each optimizer step with learning rate :math:`\eta`:

.. math:: w \leftarrow u + e^{-\eta \cdot rate} (w - u)

This is AdamW's decay with its exact factor: :math:`1 - \eta \cdot rate` where that is small, and never an overshoot. It
bounds the distance: if no step moves a weight by more than s, then
:math:`|w - u| \le s / (e^{\eta \cdot rate} - 1) < s / (\eta \cdot rate)`.

- Adam, AdamW, Lion: s is about :math:`\eta`, so each weight stays within about 1 / rate of its start, whatever the
  learning rate.
- SGD: s is :math:`\eta` times the largest gradient g, so the bound is g / rate; with momentum m, g / (rate (1 - m)).

Coupled (``decoupled=False``): ``rate (w - u)`` is added to the gradient before the step. It is the derivative of the
paper's wdecay(u, lambda), :math:`L(w) + (\lambda / 2) ||w - u||^2`; with the pretrained u this is L2-SP without its
head term. It overshoots as any gradient step does.

What decays: weights of two dimensions or more in the pretrained body, or where ``where=`` says. Never biases, norms, a
new head of a transformers model, or adapters of peft. A weight that several modules share decays once.

How: hooks on every ``torch.optim.Optimizer``, built before or after ``apply_``. Nothing is added to the loss, so
accumulation and loss scaling do not change the decay. Of nested optimizers (SAM, Lookahead, ZeroRedundancyOptimizer)
the innermost decays. With ``decoupled=False`` it adds the penalty at the weights that it steps, so SAM's
``step(closure)`` gives the same update as its ``first_step`` and ``second_step``.

Limits: an optimizer that is no ``torch.optim.Optimizer``, or that steps copies of the weights, does not decay them.
DeepSpeed's ZeRO is refused. Under ``decoupled=False`` a line search (LBFGS) does not see the penalty in the loss.

Source: Lee, Cho, Kang, ICLR 2020, sections 2 and 5; Li, Grandvalet, Davoine, ICML 2018 (L2-SP).
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import ClassVar

from torch import nn

from mixout.methods.method import Method


@dataclass(frozen=True)
class AnchorDecay(Method):
    """Weight decay towards the pretrained weights.

    Args:
        rate: strength, at least 0; in units of 1 / (learning rate) if decoupled, else of the loss's curvature. Under
            Adam 1 / rate is the largest distance of a weight from its start: 100 keeps each within about 0.01.
        decoupled: shrink the distance after the step, by the factor exp(-learning rate * rate); or, if False, add
            the penalty's gradient before the step.

    Raises:
        TypeError: if ``rate`` is not a number.
        ValueError: if ``rate`` is negative or not finite.

    Example:
        >>> AnchorDecay(100.0)
        AnchorDecay(rate=100.0, decoupled=True)
    """

    rate: float
    _: KW_ONLY
    decoupled: bool = True
    name: ClassVar[str] = "anchor_decay"

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not isinstance(self.rate, Real):
            raise TypeError(f"expected rate to be a number, at least 0, got {self.rate!r}")
        if not (self.rate >= 0 and math.isfinite(self.rate)):
            raise ValueError(f"expected a finite rate, at least 0, got {self.rate}")


def decayed_fields(module: nn.Module) -> list[str]:
    """The fields of ``module`` that hold a weight of at least two dimensions."""
    parameters = module.named_parameters(recurse=False)
    return [field for field, parameter in parameters if parameter.dim() >= 2 and parameter.is_floating_point()]
