"""The tables of methods against the baseline: differences, all tasks together, restarts needed.

It computes no statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

from mixout.study.analysis.across import Aggregate
from mixout.study.analysis.cells import Comparison
from mixout.study.analysis.restarts import Needed, Power
from mixout.study.analysis.stats import ALPHA
from mixout.study.analysis.words import p_value, percent_of
from mixout.study.report.tables import METHOD, Column, Table, Value, compact
from mixout.study.report.wording import MISSING, Labels, Scores, interval, number, percentages


def differences(place: int, comparisons: Sequence[Comparison], labels: Labels) -> Table:
    """Every number of the comparisons on one task; ``place`` is the task's among the tasks."""
    text = Scores(score for one in comparisons for score in (one.mean, one.baseline_mean))
    rows = []
    for one in comparisons:
        chances = interval(one.improvement_low, one.improvement_high, 2)
        level = interval(one.level_low, one.level_high, text.digits, sign=True) if one.some_failed else MISSING
        rows.append(
            (
                Value(labels.of(one).text),
                Value(str(one.n) if one.n == one.n_baseline else f"{one.n}, {one.n_baseline}", one.n),
                Value(text.difference(one.difference), one.difference),
                Value(text.interval(one.low, one.high, sign=True), one.low),
                Value(_p(one.p_permutation), one.p_permutation),
                Value(_p(one.p_holm), one.p_holm, mark="shown" if one.p_holm <= ALPHA else ""),
                Value(_p(one.p_equivalent), one.p_equivalent),
                Value(f"{one.improvement:.2f}", one.improvement, chances),
                Value(
                    number(one.failure_difference * 100, 0, sign=True),
                    one.failure_difference,
                    percentages(one.failure_low, one.failure_high, sign=True),
                ),
                Value(_p(one.failure_p), one.failure_p),
                Value(
                    text.difference(one.level_difference) if one.some_failed else MISSING,
                    one.level_difference,
                    "" if level == MISSING else level,
                ),
                Value(_p(one.p_variance), one.p_variance),
            )
        )
    first = comparisons[0]
    level, margin = percent_of(first.confidence), f"{first.margin:g} point{'' if first.margin == 1 else 's'}"
    columns = (
        METHOD,
        Column(name="n", explanation="pairs, or runs of the method and of the baseline"),
        Column(name="difference", explanation="of the means"),
        Column(name=f"{level} interval", explanation="Student's t; none where some of fewer than ten runs failed"),
        Column(name="p", explanation="permutation test, two-sided"),
        Column(name="p, Holm", explanation="corrected over all comparisons of the report"),
        Column(name="p, as good", explanation=f"equivalence test: the means differ by less than {margin}; after Holm"),
        Column(name="P(better)", explanation="a run of the method beats one of the baseline; ties count half"),
        Column(name="failure rate", explanation="difference in points, with its Newcombe interval"),
        Column(name="p, failures", explanation="exact test of equal failure rates (McNemar, or Fisher), not corrected"),
        Column(name="without failed", explanation="difference of the means of the runs that did not fail"),
        Column(name="p, spread", explanation="Brown-Forsythe test of equal spread, not corrected"),
    )
    title = f"{first.task}, against {first.baseline}"
    return compact(f"differences-{place}", title, columns, rows)


def across(aggregates: Sequence[Aggregate], labels: Labels) -> Table | None:
    """All tasks together."""
    if not aggregates:
        return None
    normalised = aggregates[0].normalised
    rows = [
        (
            Value(labels.of(one).text),
            Value(str(len(one.tasks)), len(one.tasks)),
            Value(str(one.n), one.n),
            Value(number(one.mean, 1), one.mean),
            Value(number(one.difference, 1, sign=True), one.difference),
            Value(interval(one.low, one.high, 1, sign=True), one.low),
            Value(_p(one.p), one.p),
            Value(number(one.iqm, 1), one.iqm),
            Value(number(one.iqm - one.baseline_iqm, 1, sign=True), one.iqm - one.baseline_iqm),
        )
        for one in aggregates
    ]
    baseline = aggregates[0].baseline
    columns = (
        METHOD,
        Column(name="tasks"),
        Column(name="runs"),
        Column(name="mean", explanation="over the runs of all tasks"),
        Column(name="difference", explanation=f"of the means, to {baseline}"),
        Column(name="95 % interval", explanation="Student's t, from the variance within tasks"),
        Column(name="p", explanation="signs of all pairs of all tasks are flipped; not corrected"),
        Column(name="IQM", explanation="interquartile mean over the runs of all tasks"),
        Column(name="IQM, difference", explanation=f"to {baseline}"),
    )
    scale = "0 is chance and 100 the best run of a task" if normalised else "Scores are in points"
    note = (
        f"{scale}. The interquartile mean does not see failures that are fewer than a quarter of the runs, the mean "
        "does."
    )
    return compact("across", f"All tasks, against {baseline}", columns, rows, note)


def restarts(powers: Sequence[Power], comparisons: Sequence[Comparison], labels: Labels) -> Table | None:
    """How many restarts would be enough."""
    if not powers:
        return None
    texts = {}
    for task in {one.task for one in comparisons}:
        texts[task] = Scores(x for one in comparisons if one.task == task for x in (one.mean, one.baseline_mean))
    rows = [
        (
            Value(labels.of(one).text),
            Value(one.task if len(texts) > 1 else MISSING),
            Value(str(one.pilot), one.pilot),
            Value(texts[one.task].value(one.spread), one.spread),
            Value(texts[one.task].value(one.detectable), one.detectable),
            *(_needed(need) for need in one.needed),
        )
        for one in powers
    ]
    columns = (
        METHOD,
        Column(name="task", numeric=False),
        Column(name="now", explanation="restarts so far"),
        Column(name="spread", explanation="standard deviation of the differences"),
        Column(name="would show now", explanation="true difference that the present restarts show in 4 of 5 studies"),
        *(
            Column(name=f"for {_points(need.points)}", explanation="restarts that show it in 4 of 5 studies")
            for need in powers[0].needed
        ),
    )
    note = (
        f"Restarts of each method for a power of 0.8 after the correction for {_comparisons(len(comparisons))}; "
        f" with fewer than {powers[0].smallest} the test can show nothing. In brackets the range that "
        "follows from how well the spread is known (90 %)."
    )
    return compact("restarts", "Restarts needed", columns, rows, note)


def _needed(need: Needed) -> Value:
    if need.restarts is None:
        return Value("> 100,000")
    high = "" if need.high is None else f"{need.high:,}"
    return Value(f"{need.restarts:,}", need.restarts, f"[{need.low:,}, {high}]")


def _comparisons(count: int) -> str:
    return f"{count} comparison{'' if count == 1 else 's'}"


def _points(points: float) -> str:
    return f"{points:g} point{'' if points == 1 else 's'}"


def _p(p: float | None) -> str:
    return MISSING if p is None else p_value(p).removeprefix("= ")
