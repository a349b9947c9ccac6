"""How many restarts are enough: from a pilot's differences, before the rest of the study is paid for.

Of a t test on n differences with standard deviation s and true mean d, the power is that of the noncentral t with
n - 1 degrees of freedom (2 (n - 1) for independent samples) and noncentrality ``d sqrt(n) / s``. Scores of restarts
often fall into two heaps, failed and not; the simulation draws from the pilot itself and so keeps its shape.

Both take the pilot at its word. A pilot of few restarts knows its spread badly, and the difference it happened to see
even less: state the difference that would matter to you rather than the one that was seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv, ndtr, stdtrit

from mixout.errors import InputError
from mixout.study.analysis.comparison import Comparison

_MOST = 100_000
_DRAWS = 4000
_QUANTILES = (np.arange(4000) + 0.5) / 4000
_NO_SPREAD = 1e-12  # relative to the scores: what rounding leaves of equal differences
_PLANNED = (5, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class Power:
    """What a comparison, taken as a pilot, says about the number of restarts. Differences are in the score's unit.

    Args:
        task: of the comparison.
        method: of the comparison.
        baseline: of the comparison.
        factors: of the comparison.
        pilot: restarts of the pilot.
        spread: standard deviation of the paired differences, or of the difference of two independent runs.
        difference: that is to be detected: the given one, or the one that was observed.
        given: whether it was given.
        power: that is wanted.
        alpha: of the test.
        restarts: needed of each method, by the t approximation; None if above 100,000, if the difference is 0, or if
            the pilot saw no spread.
        simulated: power at that number, simulated from the pilot's differences; None where unpaired or unknown.
        widths: pairs of restarts and expected width of the interval (95 %).
    """

    task: str
    method: str
    baseline: str
    factors: dict[str, str]
    pilot: int
    spread: float
    difference: float
    given: bool
    power: float
    alpha: float
    restarts: int | None
    simulated: float | None
    widths: tuple[tuple[int, float], ...]


def plan(
    comparisons: Iterable[Comparison],
    *,
    difference: float | None = None,
    power: float = 0.8,
    alpha: float = 0.05,
    seed: int = 0,
) -> list[Power]:
    """How many restarts each comparison needs; those of fewer than three restarts are left out.

    Args:
        comparisons: of the pilot.
        difference: to detect, in points and without sign; by default what each comparison observed.
        power: probability of detecting it.
        alpha: of the two-sided test, before any correction for several comparisons.
        seed: of the simulation.

    Raises:
        InputError: power or alpha is outside (0, 1), or the difference is not positive.
    """
    _check_share("power", power)
    _check_share("alpha", alpha)
    if difference is not None and difference <= 0.0:
        raise InputError(f"expected a difference > 0 in points, got {difference}")
    return [
        _plan(
            c, c.difference if difference is None else difference / c.points, difference is not None, power, alpha, seed
        )
        for c in comparisons
        if min(c.n, c.n_baseline) >= 3
    ]


def restarts_needed(
    difference: float, spread: float, *, independent: bool = False, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """The smallest number of restarts of each method with which the t test has the power.

    Args:
        difference: true difference of means.
        spread: standard deviation of a paired difference, or of the difference of two independent runs.
        independent: whether the samples are not paired.
        power: probability of detecting the difference.
        alpha: of the two-sided test.

    Returns:
        At least 2; None if the difference is 0 or the number is above 100,000.

    Example:
        >>> restarts_needed(0.5, 1.0), restarts_needed(0.5, 2**0.5, independent=True)
        (34, 64)
    """
    if difference == 0.0:
        return None
    low, high = 1, 2
    while power_at(high, difference, spread, independent=independent, alpha=alpha) < power:
        low, high = high, 2 * high
        if high > 2 * _MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = power_at(middle, difference, spread, independent=independent, alpha=alpha) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high if high <= _MOST else None


def power_at(n: int, difference: float, spread: float, *, independent: bool = False, alpha: float = 0.05) -> float:
    """Power of the two-sided t test with n restarts of each method.

    Example:
        >>> round(power_at(34, 0.5, 1.0), 3)
        0.808
    """
    if spread == 0.0:
        return float(difference != 0.0)
    freedom = (n - 1) * (2 if independent else 1)
    shift = abs(difference) * math.sqrt(n) / spread
    limit = -float(stdtrit(freedom, alpha / 2))
    # The noncentral t as a normal law over the estimated spread, a root of chi square, at its quantiles: scipy's own is
    # nan in parts of its range.
    spreads = np.sqrt(gammaincinv(freedom / 2, _QUANTILES) * 2 / freedom)
    return float(np.mean(ndtr(shift - limit * spreads) + ndtr(-shift - limit * spreads)))


def simulated_power(
    differences: Sequence[float], n: int, difference: float, *, alpha: float = 0.05, seed: int = 0, draws: int = _DRAWS
) -> float:
    """Share of simulated studies of n restarts in which the paired t test finds the difference.

    Each draws n of the pilot's differences with replacement, moved so that their true mean is ``difference``. A draw
    without any spread counts as not found.

    Raises:
        InputError: n or the pilot has fewer than two differences.
    """
    if n < 2 or len(differences) < 2:
        raise InputError(f"expected n >= 2 and two differences or more, got n = {n} and {len(differences)} differences")
    pilot = np.asarray(differences, dtype=np.float64)
    moved = pilot - pilot.mean() + difference
    generator, found, done = np.random.default_rng(seed), 0, 0
    limit = -float(stdtrit(n - 1, alpha / 2))
    while done < draws:
        rows = min(draws - done, max(1, 4_000_000 // n))
        drawn = moved[generator.integers(0, len(moved), (rows, n))]
        error = drawn.std(axis=1, ddof=1) / math.sqrt(n)
        found += int(((error > 1e-12 * np.abs(moved).max()) & (np.abs(drawn.mean(axis=1)) > limit * error)).sum())
        done += rows
    return found / draws


def expected_width(n: int, spread: float, *, independent: bool = False, level: float = 0.95) -> float:
    """Width of the t interval of the difference of means with n restarts, at the pilot's spread.

    Example:
        >>> round(expected_width(20, 1.0), 3)
        0.936
    """
    freedom = (n - 1) * (2 if independent else 1)
    return -2 * float(stdtrit(freedom, (1 - level) / 2)) * spread / math.sqrt(n)


def spread_of(comparison: Comparison) -> float:
    """Standard deviation of a paired difference, or of the difference of two independent runs.

    Raises:
        InputError: fewer than two restarts.
    """
    if comparison.sd is None or comparison.baseline_sd is None:
        raise InputError(f"expected two restarts or more of {comparison.method} and its baseline, got fewer")
    if comparison.paired:
        return float(np.std(comparison.differences, ddof=1))
    return math.hypot(comparison.sd, comparison.baseline_sd)


def _plan(c: Comparison, difference: float, given: bool, power: float, alpha: float, seed: int) -> Power:
    spread, independent = spread_of(c), not c.paired
    some = spread > _NO_SPREAD * max(abs(c.mean), abs(c.baseline_mean))
    needed = restarts_needed(difference, spread, independent=independent, power=power, alpha=alpha) if some else None
    return Power(
        task=c.task,
        method=c.method,
        baseline=c.baseline,
        factors=c.factors,
        pilot=min(c.n, c.n_baseline),
        spread=spread,
        difference=difference,
        given=given,
        power=power,
        alpha=alpha,
        restarts=needed,
        simulated=None
        if needed is None or independent
        else simulated_power(c.differences, needed, difference, alpha=alpha, seed=seed),
        widths=tuple((n, expected_width(n, spread, independent=independent)) for n in _PLANNED),
    )


def _check_share(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise InputError(f"expected {name} between 0 and 1, got {value}")
