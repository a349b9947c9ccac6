"""Intervals and tests for small samples: those that scipy has are scipy's, those that it lacks are here.

- A mean or a difference of means: Student's t, on the differences where restarts are paired, else Welch's. A bootstrap
  (BCa) covers 62 to 87 % instead of 95 % at 3 to 6 restarts (``benchmarks/results/coverage.csv``).
- Failure rates: Wilson's interval of one; Newcombe's of a difference, beside the exact p of McNemar (pairs) or Fisher.
  R. G. Newcombe, Statistics in Medicine 1998, 17: 873-890 and 2635-2650 (method 10 of both).
- Permutation tests of the difference of means: signs are flipped (pairs), or labels exchanged. Exact where all
  rearrangements can be visited, else (b + 1) / (m + 1) of random ones, so that p is never 0.
- "As good as": two one-sided t tests (TOST). D. J. Schuirmann, J. Pharmacokinetics and Biopharmaceutics 1987.
- Families of tests: S. Holm, Scandinavian Journal of Statistics 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import stdtr, stdtrit

Array = NDArray[np.float64]
Interval = tuple[float, float]
ALPHA = 0.05
SMALLEST = 3  # values from which an interval is given
EXACT_UP_TO = 1 << 15
RANDOM = 9999
_TIE = 1e-10  # sums of the same numbers in another order differ in their last bits
_BATCH = 4_000_000


def mean_interval(one: Array, other: Array | None = None, *, level: float = 0.95) -> Interval | None:
    """Student's t interval of a mean; of a difference of means (Welch's) where there is a second sample.

    Returns:
        Both ends. None for a sample of fewer than three values, and where no spread was seen: that does not prove
        that there is none.

    Example:
        >>> low, high = mean_interval(np.array([1.0, 2.0, 3.0]))
        >>> round(low, 2), round(high, 2)
        (-0.48, 4.48)
    """
    if (student := _student(one, other)) is None:
        return None
    middle, error, freedom = student
    half = -float(stdtrit(freedom, (1 - level) / 2)) * error
    return middle - half, middle + half


def equivalence_p(one: Array, other: Array | None, margin: float) -> float | None:
    """The p of "the means differ by less than ``margin``": the larger of two one-sided tests; None without spread.

    Example:
        >>> round(equivalence_p(np.array([0.4, -0.2, 0.15, 0.0, 0.3]), None, 1.0), 3)
        0.001
    """
    if (student := _student(one, other)) is None:
        return None
    middle, error, freedom = student
    return float(stdtr(freedom, (abs(middle) - margin) / error))


def _student(first: Array, second: Array | None) -> tuple[float, float, float] | None:
    """The mean, or difference of means, its standard error, and Welch's degrees of freedom; None for too few values."""
    samples = [first] if second is None else [first, second]
    # Constant samples may differ by rounding.
    largest = max(float(np.abs(sample).max(initial=0.0)) for sample in samples)
    if min(map(len, samples)) < SMALLEST or all(float(np.ptp(sample)) <= 1e-12 * largest for sample in samples):
        return None
    # scipy.stats is not used: its argument checks take a hundred times as long, and a report has thousands of these.
    variances = [float(sample.var(ddof=1)) / len(sample) for sample in samples]
    if not (total := math.fsum(variances)):  # squares of tiny numbers are 0
        return None
    parts = [(variance / total) ** 2 / (len(sample) - 1) for variance, sample in zip(variances, samples, strict=True)]
    middle = float(first.mean()) - (0.0 if second is None else float(second.mean()))
    return middle, math.sqrt(total), 1 / math.fsum(parts)


@lru_cache(maxsize=4096)  # scipy takes a millisecond, and a report asks for the same few rates thousands of times
def wilson(count: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's interval of a rate of ``count`` in ``n``.

    Example:
        >>> [round(end, 3) for end in wilson(0, 20)]
        [0.0, 0.161]
    """
    low, high = stats.binomtest(count, n).proportion_ci(level, method="wilson")
    # At the ends the formula is exact except for rounding, and an interval must not exclude its own estimate.
    return (0.0 if count == 0 else float(low)), (1.0 if count == n else float(high))


def newcombe(one: Sequence[bool], other: Sequence[bool], *, paired: bool) -> Interval:
    """Newcombe's interval of the difference rate(one) - rate(other).

    Where ``paired``, outcomes with the same position belong together; their correlation then counts.
    """
    p, q = sum(one) / len(one), sum(other) / len(other)
    p_low, p_high = wilson(sum(one), len(one))
    q_low, q_high = wilson(sum(other), len(other))
    phi = _correlation(one, other) if paired else 0.0
    below = (p - p_low) ** 2 - 2 * phi * (p - p_low) * (q_high - q) + (q_high - q) ** 2
    above = (p_high - p) ** 2 - 2 * phi * (p_high - p) * (q - q_low) + (q - q_low) ** 2
    # Rounding can leave a tiny negative square where the correlation is 1.
    return max(-1.0, p - q - math.sqrt(max(below, 0.0))), min(1.0, p - q + math.sqrt(max(above, 0.0)))


def rates_p(one: Sequence[bool], other: Sequence[bool], *, paired: bool) -> float:
    """Exact p of equal rates: McNemar's in pairs, else Fisher's.

    Example:
        >>> rates_p([False] * 10, [True] * 5 + [False] * 5, paired=True)
        0.0625
    """
    if not paired:
        table = [[sum(one), len(one) - sum(one)], [sum(other), len(other) - sum(other)]]
        return float(stats.fisher_exact(np.array(table)).pvalue)
    first = sum(x and not y for x, y in zip(one, other, strict=True))
    differing = sum(x != y for x, y in zip(one, other, strict=True))
    return float(stats.binomtest(first, differing).pvalue) if differing else 1.0


def _correlation(xs: Sequence[bool], ys: Sequence[bool]) -> float:
    """Phi of the 2 x 2 table, with Newcombe's correction: a positive one is shrunk, since the interval narrows."""
    n = len(xs)
    both = sum(x and y for x, y in zip(xs, ys, strict=True))
    first, second = sum(xs), sum(ys)
    neither = n - first - second + both
    scale = math.sqrt(first * second * (n - first) * (n - second))
    if scale == 0.0:
        return 0.0
    determinant = both * neither - (first - both) * (second - both)
    return max(determinant - n / 2, 0.0) / scale if determinant > 0 else determinant / scale


def superiority(one: Array, other: Array) -> float:
    """The share of pairs of a value of ``one`` and a value of ``other`` in which the first is larger; ties count half.

    Example:
        >>> superiority(np.array([4.0, 5.0, 6.0]), np.array([1.0, 5.0, 3.0]))
        0.8333333333333334
    """
    m, n = len(one), len(other)
    ranks = stats.rankdata(np.concatenate([one, other]))
    return (float(ranks[:m].sum()) - m * (m + 1) / 2) / (m * n)  # Mann-Whitney's U over all pairs


def sign_flips(differences: Array, *, family: int = 1) -> float:
    """Sign-flip p of a mean of paired differences, two-sided: how often random signs give one at least as far from 0.

    Exact for up to 15 differences. The premise is that each difference is as likely to have the other sign, as where
    the two methods do not differ in any respect. Equal means alone are not enough: with a baseline that fails in one
    run of ten, 0.05 is reached in up to 15 % of studies. ``family``: the number of tests that it is corrected for.

    Example:
        >>> sign_flips(np.array([1.0, 2.0, 3.0]))
        0.25
    """
    # Pairs without difference are the same under either sign.
    moving = differences[differences != 0.0]
    observed = abs(float(moving.sum()))
    if 1 << len(moving) <= EXACT_UP_TO:
        bits = (np.arange(1 << len(moving))[:, None] >> np.arange(len(moving))) & 1
        return _share(np.abs((1 - 2 * bits) @ moving), observed, exact=True)
    rng, n = np.random.default_rng(0), len(moving)
    flipped = [rng.integers(0, 2, size=(rows, n), dtype=np.int8) @ moving for rows in _batches(n, family)]
    return _share(np.abs(moving.sum() - 2 * np.concatenate(flipped)), observed, exact=False)


def exchanged_labels(one: Array, other: Array, *, family: int = 1) -> float:
    """Permutation p of a difference of means, two-sided: how often random labels give one at least as large.

    ``family``: the number of tests that it is corrected for.

    Example:
        >>> exchanged_labels(np.array([4.0, 5.0, 6.0]), np.array([1.0, 2.0, 3.0]))
        0.1
    """
    m, n = len(one), len(other)
    pooled = np.concatenate([one, other])
    pooled = pooled - pooled.mean()  # the difference of means is then a multiple of the first group's sum
    observed = abs(float(pooled[:m].sum()))
    if math.comb(m + n, m) <= EXACT_UP_TO:
        groups = np.array(list(combinations(range(m + n), m)))
        return _share(np.abs(pooled[groups].sum(axis=1)), observed, exact=True)
    rng, sizes = np.random.default_rng(0), _batches(m + n, family)
    sums = [rng.permuted(np.tile(pooled, (rows, 1)), axis=1)[:, :m].sum(axis=1) for rows in sizes]
    return _share(np.abs(np.concatenate(sums)), observed, exact=False)


def smallest_p(n: int, m: int | None = None, *, family: int = 1) -> float:
    """The smallest p that the permutation test can reach with ``n`` pairs, or with samples of ``n`` and ``m``.

    Example:
        >>> smallest_p(4), smallest_p(5), smallest_p(4, 4), smallest_p(20)
        (0.125, 0.0625, 0.02857142857142857, 0.0001)
    """
    # Rearrangements that reach the distance of complete separation: with equal groups its mirror image does too.
    extreme, total = (2, 2**n) if m is None else (2 if n == m else 1, math.comb(n + m, n))
    drawn = 1 / (1 + sum(_batches(n + (m or 0), family))) if total > EXACT_UP_TO else 0.0
    return max(drawn, min(1.0, extreme / total))


def holm(p: Sequence[float]) -> list[float]:
    """Each p after Holm's correction, in the order given: the chance of any false claim in the family stays at alpha.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(np.arange(len(p), 0, -1) * np.asarray(p)[order]))
    return [float(value) for value in corrected]


def _batches(width: int, family: int) -> list[int]:
    """Sizes of the batches of random rearrangements, at most 32 MB each. For thousands of runs fewer are drawn.

    For a large family more are drawn: at least five times the number that a corrected p of ``ALPHA`` requires.
    """
    total = max(min(RANDOM, max(999, 5 * _BATCH // width)), round(5 * family / ALPHA))
    rows = max(1, min(total, _BATCH // width))
    return [min(rows, total - start) for start in range(0, total, rows)]


def _share(values: Array, observed: float, *, exact: bool) -> float:
    reached = int((values >= observed - _TIE * max(observed, float(values.max(initial=0.0)))).sum())
    return reached / len(values) if exact else (reached + 1) / (len(values) + 1)
