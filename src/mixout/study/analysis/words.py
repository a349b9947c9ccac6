"""Comparisons in plain words: what the data show, and what they do not.

A difference of means counts as shown where the corrected p is at most 0.05. All else is worded as what was seen, with
its interval. "As good as" is said only where an equivalence test shows it; "not shown" is never turned into "equal".
"""

from __future__ import annotations

from mixout.study.analysis.cells import FEWEST_WITH_FAILURES, Comparison
from mixout.study.analysis.runs import place
from mixout.study.analysis.stats import ALPHA, percent_of, wilson

_ROUNDING = 1e-9


def describe(comparison: Comparison) -> str:
    """The comparison in a few sentences: means and verdict, failures, spread, and what was left out."""
    parts = [_means(comparison), _equivalence(comparison), _failures(comparison), _spread(comparison)]
    return " ".join(part for part in (*parts, _remarks(comparison)) if part)


def p_value(p: float) -> str:
    """The value of p as a reader needs it: no more digits than it carries, but on the right side of 0.05.

    Example:
        >>> [p_value(p) for p in (0.00002, 0.0042, 0.031, 0.0496, 0.3, 1.0)]
        ['< 0.001', '= 0.004', '= 0.03', '= 0.050', '= 0.30', '= 1']
    """
    if p < 0.001:
        return "< 0.001"
    if p >= 0.995:
        return "= 1"
    return f"= {p:.{3 if p < 0.01 or abs(p - ALPHA) < 0.005 else 2}f}"


def _means(c: Comparison) -> str:
    where = f"on {place(c.task, c.key.factors)}"
    over = f"{c.n} paired restarts" if c.paired else f"{c.n} against {c.n_baseline} unpaired restarts"
    gap = _number(abs(c.difference * c.points))
    if gap == "0.0":
        seen = f"{c.method} and {c.baseline} scored the same {where} on average over {over}"
    else:
        direction = "higher" if c.difference > 0 else "lower"
        seen = f"{c.method} scored {gap} points {direction} than {c.baseline} {where} over {over}"
    if min(c.n, c.n_baseline) < 3:
        return f"{seen}: too few restarts for an interval or a test, so this shows nothing yet."
    numbers = [f"permutation p {p_value(c.p_permutation)}"]
    if c.low is not None and c.high is not None:
        numbers.insert(0, f"{percent_of(c.confidence)} interval {_interval(c.low, c.high, c.points)}")
    corrected = [f"{_short(c.p_holm)} after Holm"] if c.family > 1 or c.looks > 1 else []
    if c.looks > 1:
        corrected.append(f"{c.looks} looks")
    numbers[-1] = ", ".join([numbers[-1], " and ".join(corrected)]) if corrected else numbers[-1]
    return f"{seen} ({'; '.join(numbers)}): {_verdict(c)}."


def _verdict(c: Comparison) -> str:
    apart = c.low is not None and c.high is not None and not c.low <= 0.0 <= c.high
    if c.p_holm <= ALPHA:
        but = "" if apart or c.low is None else ", by the test, though the interval includes 0"
        return f"evidence that {c.method} scores {'higher' if c.difference > 0 else 'lower'} on average here{but}"
    if c.p_smallest > ALPHA:
        return f"so few restarts cannot show a difference by this test (p is at least {_short(c.p_smallest)})"
    if c.p_smallest * c.family * c.looks > ALPHA:
        return f"so few restarts can hardly show a difference among {c.family} comparisons"
    if c.p_permutation <= ALPHA:
        return "not enough evidence after correction"
    if apart:
        return "interval and test disagree, so no difference is taken as shown"
    return "no difference is shown, which does not show that there is none"


def _equivalence(c: Comparison) -> str:
    if c.p_equivalent is None or c.p_equivalent > ALPHA:
        return ""
    corrected = " after Holm" if c.family > 1 else ""
    return (
        f"{c.method} is as good as {c.baseline} within {in_points(c.margin)} (equivalence test, "
        f"p {p_value(c.p_equivalent)}{corrected})."
    )


def _failures(c: Comparison) -> str:
    unknown = "" if c.chance_known else "Chance is not known, so only runs that did not finish count as failed. "
    if not c.some_failed:
        if not c.chance_known:
            return unknown.strip()
        n = min(c.failure_runs, c.failure_runs_baseline)
        unseen = f"{wilson(0, n)[1] * 100:.0f} %"
        return f"No run failed; with {n} restarts a failure rate of up to {unseen} may go unseen."
    counts = (
        f"{unknown}{c.method} failed in {c.failed} of {c.failure_runs} restarts, {c.baseline} in {c.baseline_failed} "
        f"of {c.failure_runs_baseline} (difference of rates {_interval(c.failure_low, c.failure_high, 100.0)} points; "
        f"{'McNemar' if c.paired else 'Fisher'} p {p_value(c.failure_p)})"
    )
    if c.failure_p <= ALPHA:
        direction = "lower" if c.failure_difference < 0 else "higher"
        rates = f"{counts}: evidence of a {direction} failure rate, uncorrected."
    else:
        rates = f"{counts}: no difference of failure rates is shown."
    return f"{rates} {_levels(c)}"


def _levels(c: Comparison) -> str:
    """Where runs failed the mean is of two kinds of runs: is it the failures alone?"""
    hides = "The means above mix failed runs with others and describe neither."
    if c.level_difference is None:
        return f"{hides} No runs are left to compare among those that did not fail."
    seen = f"Among runs that did not fail the means differ by {_number(c.level_difference * c.points)} points"
    if c.level_low is None or c.level_high is None:
        return f"{hides} {seen}, of too few runs for an interval."
    seen = f"{seen} ({_interval(c.level_low, c.level_high, c.points)})"
    if c.level_low <= 0.0 <= c.level_high:
        return f"{hides} {seen}: no difference is shown there."
    return f"{hides} {seen}: there is a difference there as well."


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
    n = min(c.n, c.n_baseline)
    if c.some_failed and 3 <= n < FEWEST_WITH_FAILURES:
        remarks.append(
            f"With failures among fewer than {FEWEST_WITH_FAILURES} restarts no interval of the means holds."
        )
    return " ".join(remarks)


def in_points(points: float) -> str:
    """A number of points."""
    return f"{points:g} point{'' if points == 1 else 's'}"


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
