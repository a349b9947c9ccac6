"""dropconnect(p) = mixconnect(0, p): every weight is dropped on its own, the rest is rescaled.

``Phi = (M / (1-p)) w``.

- Does: pulls towards zero, not towards the pretrained weights.
- Source: Wan et al., ICML 2013; as a special case of mixconnect, Lee, Cho, Kang, ICLR 2020, section 3.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from mixout.masks import Noise, Unit
from mixout.methods.method import MixingMethod
from mixout.ops.reference import Gradient


@dataclass(frozen=True)
class Dropconnect(MixingMethod):
    """Element-wise dropping of weights with probability ``p``; the anchor is 0 and needs no memory.

    Args:
        p: probability that a weight is dropped, in [0, 1].
        gradient: ``exact``, M/(1-p); or ``paper``, M.

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if an argument is out of its range.

    Example:
        >>> Dropconnect(0.1)
        Dropconnect(p=0.1, gradient='exact')
    """

    p: float
    _: KW_ONLY
    gradient: Gradient = "exact"
    name: ClassVar[str] = "dropconnect"
    unit: ClassVar[Unit] = "element"  # type: ignore[misc]
    noise: ClassVar[Noise] = "bernoulli"  # type: ignore[misc]
    zero_anchor: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check()
