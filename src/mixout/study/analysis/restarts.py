"""How many restarts are enough: before a study is paid for, and while it grows.

Of a t test on n differences with standard deviation s and true mean d, the power is that of the noncentral t with
n - 1 degrees of freedom (2 (n - 1) for independent samples) and noncentrality ``d sqrt(n) / s``. The permutation test
of the report has nearly that power, but its p has a smallest value: below :func:`fewest_restarts` it shows nothing,
however large a difference is. Both count the family: with m comparisons (and looks) alpha is divided by m, which is
what Holm's correction asks of the smallest p.

A pilot of few restarts estimates its spread badly, hence the range; for fewer than five no number is given.

Looks: a user who looks after each batch and stops once the interval is narrow stops too often where the spread was
underestimated. With at most m looks each uses the interval at level ``1 - alpha / m`` (Bonferroni), so that all hold
together. Such a rule also tends to stop before the first failure was seen, so it asks for ten restarts where chance is
known.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr, stdtrit

from mixout.study.analysis.compare import Comparison
from mixout.study.analysis.runs import Placed
from mixout.study.analysis.stats import ALPHA, Array, smallest_p

DETECTED = (1.0, 2.0, 5.0)  # points
POWER = 0.8
PILOT = 5
STOP_FROM, STOP_FROM_WITH_CHANCE = 5, 10
_MOST = 100_000
_QUANTILES = (np.arange(4000) + 0.5) / 4000
_NO_SPREAD = 1e-12  # relative to the scores: what rounding leaves of equal differences


@dataclass(frozen=True)
class Needed:
    """Restarts of each method with which the report's test finds a difference of so many points."""

    points: float  # the true difference
    restarts: int | None  # at the spread that the pilot saw; None above 100,000
    low: int | None  # at the lower end of the spread's interval (90 %)
    high: int | None  # at its upper end; None above 100,000


@dataclass(frozen=True, kw_only=True)
class Power(Placed):
    """What a comparison, taken as a pilot, says about the number of restarts."""

    baseline: str
    pilot: int  # restarts of the pilot
    spread: float  # standard deviation of the paired differences, or of the difference of two independent runs
    points: float  # factor from the score's unit to points
    smallest: int  # fewest restarts with which the report's test can show a difference at all
    detectable: float | None  # difference, in the score's unit, that the present restarts show with a power of 0.8
    needed: tuple[Needed, ...]  # restarts for a difference of 1, 2 and 5 points


def plan(comparisons: Iterable[Comparison]) -> list[Power]:
    """How many restarts each comparison needs; those of fewer than five restarts, or without spread, are left out."""
    return [_plan(c, spread) for c in comparisons if (spread := _pilot(c)) is not None]


def fewest_restarts(family: int, *, independent: bool = False) -> int:
    """The fewest restarts of each method with which the permutation test can show one of so many comparisons.

    Example:
        >>> fewest_restarts(1), fewest_restarts(8), fewest_restarts(1, independent=True)
        (6, 9, 4)
    """
    n = 1
    while smallest_p(n, n if independent else None, family=family) * family > ALPHA:
        n += 1
    return n


def restarts_needed(difference: float, spread: float, *, family: int = 1, independent: bool = False) -> int | None:
    """The smallest number of restarts of each method with which the report's test has a power of 0.8.

    ``spread`` is the standard deviation of a paired difference, or of the difference of two independent runs;
    ``family`` the number of comparisons (times looks) that the test is corrected for.

    Returns:
        Never fewer than :func:`fewest_restarts`; None if the difference is 0 or the number is above 100,000.

    Example:
        >>> restarts_needed(0.5, 1.0), restarts_needed(0.5, 2**0.5, independent=True), restarts_needed(10, 1)
        (34, 64, 6)
    """

    def enough(n: int) -> bool:
        return power_at(n, difference, spread, independent=independent, alpha=ALPHA / family) >= POWER

    fewest = most = fewest_restarts(family, independent=independent)
    while most < _MOST and not enough(most):  # few are the usual case, and quicker to compute
        most = min(2 * most, _MOST)
    n = bisect_left(range(most + 1), True, lo=max(fewest, most // 2), key=enough)
    return n if n <= _MOST else None


def power_at(n: int, difference: float, spread: float, *, independent: bool = False, alpha: float = ALPHA) -> float:
    """Power of the two-sided t test with n restarts of each method.

    Example:
        >>> round(power_at(34, 0.5, 1.0), 3)
        0.808
    """
    freedom = (n - 1) * (2 if independent else 1)
    shift = abs(difference) * math.sqrt(n) / spread if spread else math.inf
    limit = -float(stdtrit(freedom, alpha / 2))
    # The noncentral t as a normal law over the estimated spread: scipy's own is nan in parts of its range.
    spreads = _spreads(freedom)
    return float(np.mean(ndtr(shift - limit * spreads) + ndtr(-shift - limit * spreads)))


@lru_cache(maxsize=1024)
def _spreads(freedom: int) -> Array:
    """Quantiles of an estimated standard deviation of 1, a root of chi square; searches ask for the same ones again."""
    return np.asarray(np.sqrt(gammaincinv(freedom / 2, _QUANTILES) * 2 / freedom))


def _pilot(c: Comparison) -> float | None:
    """The spread in a comparison of enough restarts, if any: of paired differences, or of those of two runs."""
    if min(c.n, c.n_baseline) < PILOT:
        return None
    spread = float(np.std(c.differences, ddof=1)) if c.paired else math.hypot(c.sd or 0.0, c.baseline_sd or 0.0)
    return spread if spread > _NO_SPREAD * max(abs(c.mean), abs(c.baseline_mean)) else None


def _plan(c: Comparison, spread: float) -> Power:
    pilot = min(c.n, c.n_baseline)
    freedom = (pilot - 1) * (1 if c.paired else 2)
    # An interval (90 %) of the spread: (n - 1) s^2 / sigma^2 is a chi square.
    low, high = (spread * math.sqrt(freedom / float(stats.chi2.isf(tail, freedom))) for tail in (0.05, 0.95))
    return Power(
        **c.key.named,
        baseline=c.baseline,
        pilot=pilot,
        spread=spread,
        points=c.points,
        smallest=fewest_restarts(c.family * c.looks, independent=not c.paired),
        detectable=detectable(c),
        needed=tuple(Needed(p, needed(c, p), needed(c, p, low), needed(c, p, high)) for p in DETECTED),
    )


def needed(c: Comparison, points: float, spread: float | None = None) -> int | None:
    """Restarts of each method for a difference of so many points; None above 100,000, and without pilot or spread."""
    if spread is None and (spread := _pilot(c)) is None:
        return None
    return restarts_needed(points / c.points, spread, family=c.family * c.looks, independent=not c.paired)


def detectable(c: Comparison) -> float | None:
    """The difference, in the score's unit, that the comparison's restarts show with a power of 0.8.

    To a thousandth of the spread. None where they can show none, are fewer than five, or have no spread.
    """
    n, independent, family = min(c.n, c.n_baseline), not c.paired, c.family * c.looks
    if (spread := _pilot(c)) is None or n < fewest_restarts(family, independent=independent):
        return None

    def lacking(difference: float) -> float:
        return power_at(n, difference, spread, independent=independent, alpha=ALPHA / family) - POWER

    return float(brentq(lacking, 0.0, 100 * spread, xtol=1e-3 * spread))


def reached(c: Comparison, width: float) -> bool | None:
    """Whether the interval of a comparison, of runs that did not fail, is at most so many points wide.

    Called once after each batch, with comparisons that were made for all planned looks. None where it is narrow, but
    the restarts are too few to trust it.
    """
    if c.low is None or c.high is None or (c.high - c.low) * c.points > width:
        return False
    return min(c.n, c.n_baseline) >= (STOP_FROM_WITH_CHANCE if c.chance_known else STOP_FROM) or None
