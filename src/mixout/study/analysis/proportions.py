"""Rates and their intervals: Wilson for one rate, Newcombe for the difference of two, and for P(X > Y).

E. B. Wilson, JASA 1927. R. G. Newcombe, Statistics in Medicine 1998, 17: 873-890 (method 10, independent rates) and
2635-2650 (method 10, paired rates); 2006, 25: 559-573 (method 5, P(X > Y) from the Mann-Whitney statistic). All keep
within their range and give a real interval also at 0 of n and n of n, where a bootstrap gives a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri

from mixout.errors import InputError


def wilson(count: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a rate of ``count`` in ``n``.

    Raises:
        InputError: not 0 <= count <= n, or n is 0.

    Example:
        >>> [round(end, 3) for end in wilson(0, 20)]
        [0.0, 0.161]
    """
    if not 0 <= count <= n or n == 0:
        raise InputError(f"expected 0 <= count <= n and n >= 1, got {count} of {n}")
    z = float(ndtri((1 + level) / 2))
    rate = count / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the formula is exact but for rounding, and an interval must not exclude its own estimate.
    low = 0.0 if count == 0 else middle - half
    high = 1.0 if count == n else middle + half
    return low, high


def newcombe(one: Sequence[bool], other: Sequence[bool], *, paired: bool, level: float = 0.95) -> tuple[float, float]:
    """Interval of the difference rate(one) - rate(other).

    Args:
        one: outcomes of the first sample.
        other: outcomes of the second; in the same order where ``paired``.
        paired: whether outcomes with the same position belong together; their correlation then counts.
        level: of the interval.

    Raises:
        InputError: a sample is empty, or paired samples differ in length.
    """
    if paired and len(one) != len(other):
        raise InputError(f"expected paired samples of one length, got {len(one)} and {len(other)}")
    p, q = sum(one) / max(len(one), 1), sum(other) / max(len(other), 1)
    (p_low, p_high), (q_low, q_high) = (
        wilson(sum(one), len(one), level=level),
        wilson(sum(other), len(other), level=level),
    )
    phi = _correlation(one, other) if paired else 0.0
    below = (p - p_low) ** 2 - 2 * phi * (p - p_low) * (q_high - q) + (q_high - q) ** 2
    above = (p_high - p) ** 2 - 2 * phi * (p_high - p) * (q - q_low) + (q - q_low) ** 2
    # Rounding can leave a tiny negative square where the correlation is 1.
    return max(-1.0, p - q - math.sqrt(max(below, 0.0))), min(1.0, p - q + math.sqrt(max(above, 0.0)))


def _correlation(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Phi of the 2 x 2 table, with Newcombe's correction: a positive one is shrunk, since the interval narrows."""
    n = len(one)
    both = sum(x and y for x, y in zip(one, other, strict=True))
    first, second = sum(one), sum(other)
    neither = n - first - second + both
    scale = math.sqrt(first * second * (n - first) * (n - second))
    if scale == 0.0:
        return 0.0
    determinant = both * neither - (first - both) * (second - both)
    if determinant > 0:
        return max(determinant - n / 2, 0.0) / scale
    return determinant / scale


def superiority(
    one: NDArray[np.float64], other: NDArray[np.float64], *, level: float = 0.95
) -> tuple[float, float, float]:
    """P(X > Y) + P(X = Y) / 2 over all pairs of a value of ``one`` and a value of ``other``, with its interval.

    The interval takes the samples as independent. Runs with the same seeds can be positively correlated; it is then
    wider than it needs to be.

    Raises:
        InputError: a sample is empty.

    Example:
        >>> estimate, low, high = superiority(np.array([3.0, 4.0, 5.0]), np.array([1.0, 2.0, 3.0]))
        >>> round(estimate, 3), round(low, 2), round(high, 2)
        (0.944, 0.45, 1.0)
    """
    m, n = len(one), len(other)
    if m == 0 or n == 0:
        raise InputError(f"expected at least one value in each sample, got {m} and {n}")
    estimate = float(((one[:, None] > other).mean() + (one[:, None] >= other).mean()) / 2)
    z = float(ndtri((1 + level) / 2))
    extra = (m + n) / 2 - 1

    def beyond(theta: float) -> float:
        spread = 1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (theta - estimate) ** 2 - z * z * theta * (1 - theta) * spread / (m * n)

    low = 0.0 if estimate == 0.0 else _root(beyond, 0.0, estimate)
    high = 1.0 if estimate == 1.0 else _root(beyond, estimate, 1.0)
    return estimate, low, high


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(brentq(function, low, high))
