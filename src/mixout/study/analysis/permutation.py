"""Tests between two samples, and the correction for doing many of them.

Sign flips (paired) and exchanged labels (independent samples) of the difference of means, two-sided: exact where all
rearrangements can be visited, otherwise Monte Carlo with the observed one counted, (b + 1) / (m + 1), so that p is
never 0. Brown-Forsythe for spreads. Holm for families: S. Holm, Scandinavian Journal of Statistics 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from mixout.errors import InputError

Array = NDArray[np.float64]
EXACT_UP_TO = 1 << 15
RANDOM = 9999
_TIE = 1e-10


def sign_flips(differences: Array, *, seed: int = 0) -> float:
    """Sign-flip p of a mean of paired differences, two-sided: how often random signs give one at least as far from 0.

    Exact for up to 15 differences. The null hypothesis is that each difference is as likely to have the other sign.

    Args:
        differences: one for each pair.
        seed: of the random signs.

    Raises:
        InputError: there is no difference.

    Example:
        >>> sign_flips(np.array([1.0, 2.0, 3.0]))
        0.25
    """
    n = len(differences)
    if n == 0:
        raise InputError("expected at least one difference, got none")
    # Pairs without difference are the same under either sign.
    moving = differences[differences != 0.0]
    if 1 << len(moving) <= EXACT_UP_TO:
        bits = (np.arange(1 << len(moving))[:, None] >> np.arange(len(moving))) & 1
        return _share(np.abs((1 - 2 * bits) @ moving), abs(float(moving.sum())), exact=True)
    signs = np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), size=(RANDOM, len(moving)))
    return _share(np.abs(signs @ moving), abs(float(moving.sum())), exact=False)


def exchanged_labels(one: Array, other: Array, *, seed: int = 0) -> float:
    """Permutation p of a difference of means, two-sided: how often random labels give one at least as large.

    Args:
        one: independent of ``other``.
        other: of any length.
        seed: of the random labels.

    Raises:
        InputError: a sample is empty.

    Example:
        >>> exchanged_labels(np.array([4.0, 5.0, 6.0]), np.array([1.0, 2.0, 3.0]))
        0.1
    """
    m, n = len(one), len(other)
    if m == 0 or n == 0:
        raise InputError(f"expected at least one value in each sample, got {m} and {n}")
    pooled = np.concatenate([one, other])
    pooled = pooled - pooled.mean()  # the difference of means is then a multiple of the first group's sum
    observed = abs(float(pooled[:m].sum()))
    exact = math.comb(m + n, m) <= EXACT_UP_TO
    if exact:
        groups = np.array(list(combinations(range(m + n), m)))
    else:
        draw = np.random.default_rng(seed)
        groups = draw.permuted(np.tile(np.arange(m + n), (RANDOM, 1)), axis=1)[:, :m]
    return _share(np.abs(pooled[groups].sum(axis=1)), observed, exact=exact)


def smallest_p(n: int, m: int | None = None) -> float:
    """The smallest p that the test can reach with ``n`` pairs, or with independent samples of ``n`` and ``m``.

    Example:
        >>> smallest_p(4), smallest_p(5), smallest_p(4, 4)
        (0.125, 0.0625, 0.02857142857142857)
    """
    # Rearrangements that reach the distance of complete separation: with equal groups its mirror image does too.
    extreme, total = (2, 2**n) if m is None else (2 if n == m else 1, math.comb(n + m, n))
    return min(1.0, extreme / total)


def brown_forsythe(one: Array, other: Array) -> float | None:
    """Brown-Forsythe p for equal spreads: an analysis of variance of the distances to the medians.

    It takes the samples as independent. None where it says nothing: a sample of fewer than three values, or distances
    that do not vary within the samples.

    Example:
        >>> brown_forsythe(np.array([1.0, 2.0]), np.array([1.0, 2.0, 3.0])) is None
        True
    """
    if min(len(one), len(other)) < 3:
        return None
    distances = [np.abs(sample - np.median(sample)) for sample in (one, other)]
    n = len(one) + len(other)
    grand = np.concatenate(distances).mean()
    between = sum(len(d) * (d.mean() - grand) ** 2 for d in distances)
    within = sum(((d - d.mean()) ** 2).sum() for d in distances)
    if within <= _TIE**2 * max(float(grand), 1e-300) ** 2:
        return None
    return float(f_distribution.sf(between * (n - 2) / within, 1, n - 2))


def holm(p: Sequence[float]) -> list[float]:
    """Each p after Holm's correction, in the order given: the chance of any false claim in the family stays at alpha.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def _share(values: Array, observed: float, *, exact: bool) -> float:
    # Sums of the same numbers in another order differ in their last bits: ties must count.
    reached = int((values >= observed - _TIE * max(observed, float(values.max(initial=0.0)))).sum())
    return reached / len(values) if exact else (reached + 1) / (len(values) + 1)
