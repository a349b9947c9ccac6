"""A comparison in plain words: what the data show, and what they do not.

A difference of means counts as shown where the corrected p is at most .05. All else is worded as what was seen, with
its interval; "not shown" is never turned into "equal".
"""

from __future__ import annotations

from collections.abc import Sequence

from mixout.study.analysis.comparison import Comparison
from mixout.study.analysis.grouping import place

ALPHA = 0.05
_FEW = 10
_ROUNDING = 1e-9


def describe(comparison: Comparison) -> str:
    """The comparison in words.

    Args:
        comparison: with every number filled.

    Returns:
        A few sentences: means and verdict, failures, spread, and what was left out.
    """
    parts = [_means(comparison), _failures(comparison), _spread(comparison), _remarks(comparison)]
    return " ".join(part for part in parts if part)


def p_value(p: float) -> str:
    """The value of p as a reader needs it: no more digits than it carries, but on the right side of .05.

    Example:
        >>> [p_value(p) for p in (0.00002, 0.0042, 0.031, 0.0496, 0.3, 1.0)]
        ['< .001', '= .004', '= .03', '= .050', '= .30', '= 1']
    """
    if p < 0.001:
        return "< .001"
    if p >= 0.995:
        return "= 1"
    digits = 3 if p < 0.01 or abs(p - ALPHA) < 0.005 else 2
    return f"= {p:.{digits}f}".replace("0.", ".", 1)


def _means(c: Comparison) -> str:
    where = f"on {place(c.task, tuple(sorted(c.factors.items())))}"
    over = f"{c.n} paired restarts" if c.paired else f"{c.n} against {c.n_baseline} unpaired restarts"
    gap = _number(abs(c.difference * c.points))
    if gap == "0.0":
        seen = f"{c.method} and {c.baseline} scored the same {where} on average over {over}"
    else:
        direction = "higher" if c.difference > 0 else "lower"
        seen = f"{c.method} scored {gap} points {direction} than {c.baseline} {where} over {over}"
    if c.low is None or c.high is None:
        return f"{seen}: too few restarts for an interval or a test, so this shows nothing yet."
    corrected = f", {p_value(c.p_holm)[2:] if c.p_holm >= 0.001 else '< .001'} after Holm" if c.family > 1 else ""
    numbers = f"95 % interval {_interval(c.low, c.high, c.points)}; permutation p {p_value(c.p_permutation)}{corrected}"
    return f"{seen} ({numbers}): {_verdict(c)}."


def _verdict(c: Comparison) -> str:
    apart = c.low is not None and c.high is not None and not c.low <= 0.0 <= c.high
    if c.p_holm <= ALPHA:
        but = "" if apart else ", by the test, though the interval includes 0"
        return f"evidence that {c.method} scores {'higher' if c.difference > 0 else 'lower'} on average here{but}"
    if c.p_smallest > ALPHA:
        return f"so few restarts cannot show a difference by this test (p is at least {_short(c.p_smallest)})"
    if c.p_smallest * c.family > ALPHA:
        return f"so few restarts can hardly show a difference among {c.family} comparisons"
    if c.p_permutation <= ALPHA:
        return "this is not evidence enough after correction"
    if apart:
        return "interval and test disagree, so no difference is taken as shown"
    return "this shows no difference, and does not show that there is none"


def _failures(c: Comparison) -> str:
    if c.failed is None or c.baseline_failed is None or c.failure_low is None or c.failure_high is None:
        return "Chance is not known, so failed runs were not counted."
    if c.failed == c.baseline_failed == 0:
        return "No run failed."
    counts = (
        f"{c.method} failed in {c.failed} of {c.failure_runs} restarts, {c.baseline} in {c.baseline_failed} of "
        f"{c.failure_runs_baseline} (difference of rates {_interval(c.failure_low, c.failure_high, 100.0)} points)"
    )
    if c.failure_low <= 0.0 <= c.failure_high:
        return f"{counts}: this shows no difference of failure rates."
    # Newcombe's interval excludes 0 even where 2 of 2 meet 0 of 2. Exact tests of failed or not (McNemar's in pairs,
    # else Fisher's) reach no smaller p than the test of the means.
    if c.p_smallest > ALPHA:
        return f"{counts}: so few restarts cannot show a difference of failure rates."
    rates = f"{counts}: evidence of a {'lower' if c.failure_high < 0.0 else 'higher'} failure rate, uncorrected."
    return f"{rates} {_levels(c)}"


def _levels(c: Comparison) -> str:
    """Asked only where failure rates differ: is it the failures alone?"""
    if c.level_difference is None or c.level_low is None or c.level_high is None:
        return "Too few runs did not fail to compare their level."
    interval = f"{_number(c.level_difference * c.points)} points ({_interval(c.level_low, c.level_high, c.points)})"
    seen = f"Among runs that did not fail the means differ by {interval}"
    if c.level_low <= 0.0 <= c.level_high:
        return f"{seen}: a difference of failure rates is seen, one of the level that is reached is not."
    return f"{seen}: the level that is reached differs as well."


def _spread(c: Comparison) -> str:
    if c.p_variance is None or c.sd is None or c.baseline_sd is None or c.p_variance > ALPHA:
        return ""
    return (
        f"The scores of {c.method} spread {'less' if c.sd < c.baseline_sd else 'more'} (standard deviation "
        f"{_number(c.sd * c.points)} against {_number(c.baseline_sd * c.points)}; Brown-Forsythe p "
        f"{p_value(c.p_variance)}, uncorrected)."
    )


def _remarks(c: Comparison) -> str:
    remarks = []
    if c.left_out:
        missing = "a counterpart or a score" if c.paired else "a score"
        remarks.append(f"{_runs(c.left_out)} without {missing} {_were(c.left_out)} left out.")
    if c.at_chance:
        remarks.append(f"{_runs(c.at_chance)} without a score {_were(c.at_chance)} counted as chance.")
    if c.low is not None and min(c.n, c.n_baseline) < _FEW:
        remarks.append("From so few restarts the interval is likely to be too narrow.")
    return " ".join(remarks)


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _interval(low: float, high: float, points: float) -> str:
    return f"{_number(low * points)} to {_number(high * points)}"


def _number(value: float) -> str:
    text = f"{value:.1f}"
    if text not in ("0.0", "-0.0"):
        return text
    return f"{value:.1g}" if abs(value) > _ROUNDING else "0.0"


def _short(p: float) -> str:
    return p_value(p).removeprefix("= ")


def overall(comparisons: Sequence[Comparison]) -> str:
    """What all comparisons together show, in words.

    Example:
        >>> overall([])
        'Nothing was compared: a comparison needs two methods with scores on the same task.'
    """
    if not comparisons:
        return "Nothing was compared: a comparison needs two methods with scores on the same task."
    shown = [c for c in comparisons if c.p_holm <= ALPHA]
    higher = [f"{c.method} on {place(c.task, tuple(sorted(c.factors.items())))}" for c in shown if c.difference > 0]
    lower = [f"{c.method} on {place(c.task, tuple(sorted(c.factors.items())))}" for c in shown if c.difference < 0]
    open_ = len(comparisons) - len(shown)
    many = f"{len(comparisons)} comparison{'' if len(comparisons) == 1 else 's'} with {comparisons[0].baseline}"
    parts = [f"Of {many}, {len(shown)} show{'s' if len(shown) == 1 else ''} a difference of means after correction."]
    if higher:
        parts.append(f"Higher: {', '.join(higher)}.")
    if lower:
        parts.append(f"Lower: {', '.join(lower)}.")
    if open_:
        parts.append(f"The other {open_} show{'s' if open_ == 1 else ''} none, which does not mean that there is none.")
    return " ".join(parts)
