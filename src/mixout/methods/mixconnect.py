"""mixconnect(u, mu, sigma^2): every weight has its own independent mask.

``Phi = u + (M / mu) (w - u)`` with E M = mu and Var M = sigma^2 (equation 4). Phi depends on the law of M / mu alone,
of mean 1 and variance sigma^2 / mu^2; with p that variance is p / (1-p), the same as mixout's.

- Does: mixout without the correlation between a neuron's weights; Theorem 1 holds with m sigma^2 / (2 mu^2).
- Costs: a mask as large as the weight and a full weight gradient.
- Source: Lee, Cho, Kang, ICLR 2020, section 3, equation 4. One draw of it after training is DARE (Yu et al. 2024).
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from mixout.masks import NOISES, Noise, Unit, check_p
from mixout.methods.method import MixingMethod
from mixout.ops.reference import Gradient


@dataclass(frozen=True)
class Mixconnect(MixingMethod):
    """Element-wise mixing with probability ``p``, mask mean 1-p and variance p(1-p).

    Args:
        p: probability that a weight is replaced by the anchor's, in [0, 1]; in [0, 1) with Gaussian noise.
        noise: ``bernoulli``, or ``gaussian`` with the same mean and variance.
        gradient: ``exact``, M/mu; or ``paper``, M.

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if an argument is out of its range.

    Example:
        >>> Mixconnect(0.5, noise="gaussian")
        Mixconnect(p=0.5, noise='gaussian', gradient='exact')
    """

    p: float
    _: KW_ONLY
    noise: Noise = "bernoulli"
    gradient: Gradient = "exact"
    name: ClassVar[str] = "mixconnect"
    unit: ClassVar[Unit] = "element"  # type: ignore[misc]

    def __post_init__(self) -> None:
        self.check()
        if self.noise not in NOISES:
            raise ValueError(f"expected noise in {NOISES}, got {self.noise!r}")
        check_p(self.p, self.noise)

    @classmethod
    def from_moments(cls, mean: float, variance: float, *, noise: Noise = "gaussian") -> Mixconnect:
        """The method of equation 4 with E M = ``mean`` and Var M = ``variance``: p / (1-p) = variance / mean^2.

        Args:
            mean: mu, not 0.
            variance: sigma^2, at least 0.
            noise: the law of M / mu.

        Raises:
            ValueError: if a moment is out of its range.

        Example:
            >>> Mixconnect.from_moments(1.0, 1.0).p
            0.5
        """
        if mean == 0 or variance < 0:
            raise ValueError(f"expected mean != 0 and variance >= 0, got mean {mean} and variance {variance}")
        return cls(variance / (variance + mean * mean), noise=noise)
