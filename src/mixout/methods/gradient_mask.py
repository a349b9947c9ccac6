"""gradient_mask(p): plain weights forward, mixout's sparse gradient backward. A control.

``Phi = w``, ``dL/dw = g m / (1-p)``, one Bernoulli coin m per unit, drawn anew in each training pass.

- Does: no pull towards anything. Under Adam a gradient that is zero most of the time alone shortens the way from the
  start, about as sqrt(1-p): what mixout does beyond that is its pull.
- Costs: no anchor; 1-p of the weight-gradient GEMM.
- Source: as Child-Tuning_F, with a coin per weight, Xu et al., EMNLP 2021, arXiv 2109.05687.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from mixout.masks import UNITS, Noise, Unit
from mixout.methods.method import MixingMethod
from mixout.ops.reference import Gradient


@dataclass(frozen=True)
class GradientMask(MixingMethod):
    """Gradient masking with probability ``p``.

    Args:
        p: probability that a unit's gradient is 0, in [0, 1].
        unit: what shares a coin: an ``input`` neuron, an ``output`` neuron or an ``element``.
        gradient: ``exact``, g m/(1-p); or ``paper``, g m.

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if an argument is out of its range.

    Example:
        >>> GradientMask(0.9)
        GradientMask(p=0.9, unit='input', gradient='exact')
    """

    p: float
    _: KW_ONLY
    unit: Unit = "input"
    gradient: Gradient = "exact"
    name: ClassVar[str] = "gradient_mask"
    noise: ClassVar[Noise] = "bernoulli"  # type: ignore[misc]
    own_anchor: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check()
        if self.unit not in UNITS:
            raise ValueError(f"expected unit in {UNITS}, got {self.unit!r}")
        if self.gradient == "dense":
            raise ValueError("expected gradient 'exact' or 'paper' for gradient_mask, got 'dense': that masks nothing")
