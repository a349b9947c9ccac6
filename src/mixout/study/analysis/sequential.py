"""When to stop adding restarts: as soon as the interval of a difference is narrow enough, without fooling oneself.

Whoever looks after each batch and stops where the interval happens to be narrow stops too often where the spread was
underestimated, and an ordinary 95 % interval then covers less than 95 %. The remedy is to spend alpha over the planned
looks: with at most m looks each uses the interval at level ``1 - alpha / m`` (Bonferroni). All m intervals then
hold together with probability 1 - alpha, hence also the one at which one stops, whatever the rule and however the looks
depend on each other. Pocock's constant would spend a little less, but needs a known law and equally spaced looks.

The interval is that of the t test on the differences (Welch's where restarts are not paired): BCa needs more restarts
than the first looks have. Where scores fall into two heaps and restarts are few, it covers less than its level, as
every interval does then. Over several comparisons the level holds for each one, not for all together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import stdtrit

from mixout.errors import InputError
from mixout.study.analysis.compare import compare
from mixout.study.analysis.comparison import Comparison
from mixout.study.analysis.power import expected_width, spread_of
from mixout.study.analysis.runs import Run

FEWEST = 5
_MOST = 100_000
_NO_SPREAD = 1e-9


@dataclass(frozen=True, kw_only=True)
class Look:
    """One comparison at one look.

    Args:
        task: of the comparison.
        method: of the comparison.
        baseline: of the comparison.
        factors: of the comparison.
        look: number of this look, from 1.
        looks: most that are planned.
        n: restarts of each method so far, the smaller number.
        difference: of the means, in points, as all that follows.
        low: lower end of its interval; None for fewer than two restarts.
        high: its upper end.
        level: of this look's interval: ``1 - alpha / looks``.
        width: that is wanted.
        reached: whether the interval is that narrow. Never with fewer than five restarts, or where no spread was seen:
            both say little about the spread to come.
        stop: whether to stop: the width is reached, or this was the last look.
        needed: restarts that will probably be needed, at the spread seen so far; None where it cannot be told.
    """

    task: str
    method: str
    baseline: str
    factors: dict[str, str]
    look: int
    looks: int
    n: int
    difference: float
    low: float | None
    high: float | None
    level: float
    width: float
    reached: bool
    stop: bool
    needed: int | None


def until_width(
    runs: Iterable[Run],
    width: float,
    *,
    look: int,
    looks: int,
    baseline: str | None = None,
    level: float = 0.95,
) -> list[Look]:
    """Where each comparison stands; call it once after each batch of restarts and stop when all of them say so.

    Args:
        runs: all so far.
        width: wanted, in points, of the interval of the difference of means.
        look: number of this look, from 1.
        looks: most looks, fixed before the first: the batches that the budget allows.
        baseline: label; by default the first method that is plain or dropout, else the first.
        level: of the intervals of all looks together.

    Raises:
        InputError: the width is not positive, the look is not among the looks, or the level is outside (0, 1).

    Example:
        >>> scores = {"plain": (60, 64, 61, 66, 62, 63), "mixout(0.9)": (63, 66, 65, 69, 64, 67)}
        >>> runs = [
        ...     Run(task="RTE", method=method, restart=k, score=score)
        ...     for method, several in scores.items() for k, score in enumerate(several)
        ... ]
        >>> [at] = until_width(runs, 4.0, look=1, looks=3)
        >>> round(at.high - at.low, 1), at.reached, at.stop
        (2.6, True, True)
    """
    if width <= 0.0:
        raise InputError(f"expected a width > 0 in points, got {width}")
    if not 1 <= look <= looks:
        raise InputError(f"expected look between 1 and the {looks} planned, got {look}; plan more looks from the start")
    if not 0.0 < level < 1.0:
        raise InputError(f"expected level between 0 and 1, got {level}")
    return [look_at(one, width, look=look, looks=looks, level=level) for one in compare(runs, baseline)]


def look_at(c: Comparison, width: float, *, look: int, looks: int, level: float = 0.95) -> Look:
    """Where one comparison stands.

    Args:
        c: over the restarts so far.
        width: wanted, in points.
        look: number of this look, from 1.
        looks: most looks.
        level: of the intervals of all looks together.
    """
    level = 1 - (1 - level) / looks
    n = min(c.n, c.n_baseline)
    low, high = _interval(c, level)
    seen = None if low is None or high is None else (high - low) * c.points
    reached = seen is not None and n >= FEWEST and _NO_SPREAD < seen <= width
    return Look(
        task=c.task,
        method=c.method,
        baseline=c.baseline,
        factors=c.factors,
        look=look,
        looks=looks,
        n=n,
        difference=c.difference * c.points,
        low=None if low is None else low * c.points,
        high=None if high is None else high * c.points,
        level=level,
        width=width,
        reached=reached,
        stop=reached or look == looks,
        needed=_needed(c, width / c.points, level),
    )


def _interval(c: Comparison, level: float) -> tuple[float | None, float | None]:
    if c.sd is None or c.baseline_sd is None:
        return None, None
    if c.paired:
        error, freedom = spread_of(c) / math.sqrt(c.n), float(c.n - 1)
    else:
        one, other = c.sd**2 / c.n, c.baseline_sd**2 / c.n_baseline
        error = math.sqrt(one + other)
        parts = one**2 / (c.n - 1) + other**2 / (c.n_baseline - 1)
        freedom = (one + other) ** 2 / parts if parts > 0.0 else float(c.n + c.n_baseline - 2)
    half = -float(stdtrit(freedom, (1 - level) / 2)) * error
    return c.difference - half, c.difference + half


def _needed(c: Comparison, width: float, level: float) -> int | None:
    """The smallest number whose expected interval is narrow enough."""
    if c.sd is None or c.baseline_sd is None or spread_of(c) * c.points <= _NO_SPREAD:
        return None
    spread, low, high = spread_of(c), FEWEST - 1, FEWEST
    while expected_width(high, spread, independent=not c.paired, level=level) > width:
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        narrow = expected_width(middle, spread, independent=not c.paired, level=level) <= width
        low, high = (low, middle) if narrow else (middle, high)
    return high
