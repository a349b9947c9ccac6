"""mixout(u, p): a random fraction p of the neurons' outgoing weights is replaced by the anchor's.

``Phi = u + (m / (1-p)) (w - u)``, one Bernoulli coin m per unit, E Phi = w.

- Does: pulls towards the anchor, adaptively, as dropout pulls towards zero (Corollary 1.1: for a loss of strong
  convexity c, E L(Phi) >= L(w) + c p / (2 (1-p)) ||w - u||^2).
- Costs: a copy of the mixed weights; per training pass two element-wise passes over them (forward and backward), and
  1-p of the weight-gradient GEMM instead of all of it.
- Helps: where little data and an unstable optimizer make restarts fail. See docs/methods.md for when it does not.
- Source: Lee, Cho, Kang, ICLR 2020, arXiv 1909.11299, section 3.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from mixout.masks import UNITS, Noise, Unit
from mixout.methods.method import MixingMethod
from mixout.ops.reference import Gradient


@dataclass(frozen=True)
class Mixout(MixingMethod):
    """Mixout with probability ``p``.

    Args:
        p: probability that a unit is replaced by the anchor, in [0, 1]. The paper uses .7 to .9.
        unit: what shares a coin: an ``input`` neuron (the paper), an ``output`` neuron or an ``element``.
        gradient: ``exact``, the derivative of the forward; ``paper``, smaller by 1-p, as in the authors' code; or
            ``dense``, every column's as if nothing were mixed: a control.

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if an argument is out of its range.

    Example:
        >>> Mixout(0.9)
        Mixout(p=0.9, unit='input', gradient='exact')
    """

    p: float
    _: KW_ONLY
    unit: Unit = "input"
    gradient: Gradient = "exact"
    name: ClassVar[str] = "mixout"
    noise: ClassVar[Noise] = "bernoulli"  # type: ignore[misc]

    def __post_init__(self) -> None:
        self.check()
        if self.unit not in UNITS:
            raise ValueError(f"expected unit in {UNITS}, got {self.unit!r}")
