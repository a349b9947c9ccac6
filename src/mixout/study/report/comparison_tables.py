"""The tables of methods against the baseline: differences, all tasks together, restarts needed.

It computes no statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

from mixout.study.analysis.aggregate import Aggregate, Estimate
from mixout.study.analysis.comparison import Comparison
from mixout.study.analysis.power import Power
from mixout.study.analysis.sentences import ALPHA, p_value
from mixout.study.report.labels import Labels
from mixout.study.report.tables import METHOD, Column, Table, Value, compact
from mixout.study.report.wording import MISSING, Scores, interval, number, percent, percentages

_PLANNED = 3


def differences(place: int, comparisons: Sequence[Comparison], labels: Labels) -> Table:
    """Every number of the comparisons on one task; ``place`` is the task's among the tasks."""
    text = Scores(score for one in comparisons for score in (one.mean, one.baseline_mean))
    rows = []
    for one in comparisons:
        chances = interval(one.improvement_low, one.improvement_high, 2)
        failure = None if one.failure_difference is None else one.failure_difference * 100
        rows.append(
            (
                Value(labels.of(one).text),
                Value(str(one.n) if one.n == one.n_baseline else f"{one.n}, {one.n_baseline}", one.n),
                Value(text.difference(one.difference), one.difference),
                Value(text.interval(one.low, one.high, sign=True), one.low),
                Value(_p(one.p_permutation), one.p_permutation),
                Value(_p(one.p_holm), one.p_holm, mark="shown" if one.p_holm <= ALPHA else ""),
                Value(f"{one.improvement:.2f}", one.improvement, chances),
                Value(number(failure, 0, sign=True), failure,
                      percentages(one.failure_low, one.failure_high, sign=True)),
                Value(_p(one.p_variance), one.p_variance),
            )
        )  # fmt: skip
    columns = (
        METHOD,
        Column(name="n", explanation="pairs, or runs of the method and of the baseline"),
        Column(name="difference", explanation="of the means"),
        Column(name="95 % interval", explanation="bootstrap (BCa)"),
        Column(name="p", explanation="permutation test, two-sided"),
        Column(name="p, Holm", explanation="corrected over all comparisons of the report"),
        Column(name="P(better)", explanation="a run of the method beats one of the baseline; ties count half"),
        Column(name="failure rate", explanation="difference in points, with its Newcombe interval"),
        Column(name="p, spread", explanation="Brown-Forsythe test of equal spread, not corrected"),
    )
    title = f"{comparisons[0].task}, against {comparisons[0].baseline}"
    return compact(f"differences-{place}", title, columns, rows)


def across(aggregates: Sequence[Aggregate], labels: Labels) -> Table | None:
    """All tasks together."""
    if not aggregates:
        return None
    normalised = aggregates[0].normalised
    rows = []
    for one in aggregates:
        values = [Value(labels.of(one).text), Value(str(len(one.tasks)), len(one.tasks)), Value(str(one.n), one.n)]
        for estimate in (one.iqm, one.mean):
            values.append(_estimate(estimate))
        for estimate in (one.iqm_difference, one.mean_difference):
            values.append(_estimate(estimate, sign=True))
        rows.append(tuple(values))
    columns = (
        METHOD,
        Column(name="tasks"),
        Column(name="runs"),
        Column(name="IQM", explanation="interquartile mean over the runs of all tasks, stratified bootstrap"),
        Column(name="mean", explanation="over the runs of all tasks"),
        Column(name="IQM, difference", explanation=f"to {aggregates[0].baseline}"),
        Column(name="mean, difference", explanation=f"to {aggregates[0].baseline}"),
    )
    scale = "0 is chance and 100 the best run of a task" if normalised else "Scores are in points"
    note = (
        f"{scale}. Intervals (95 %) resample restarts within tasks. The interquartile mean does not see failures that "
        "are fewer than a quarter of the runs, the mean does."
    )
    return compact("across", f"All tasks, against {aggregates[0].baseline}", columns, rows, note)


def restarts(powers: Sequence[Power], comparisons: Sequence[Comparison], labels: Labels) -> Table | None:
    """How many restarts would be enough."""
    if not powers:
        return None
    texts = {}
    for task in {one.task for one in comparisons}:
        texts[task] = Scores(x for one in comparisons if one.task == task for x in (one.mean, one.baseline_mean))
    # What more restarts would bring, not what fewer would have.
    planned = [n for n, _ in powers[0].widths if n > max(one.pilot for one in powers)][:_PLANNED]
    rows = [
        (
            Value(labels.of(one).text),
            Value(one.task if len(texts) > 1 else MISSING),
            Value(str(one.pilot), one.pilot),
            Value(texts[one.task].value(one.spread), one.spread),
            Value(texts[one.task].difference(one.difference), one.difference),
            Value(MISSING if one.restarts is None else f"{one.restarts:,}", one.restarts),
            Value(percent(one.simulated), one.simulated),
            *(Value(texts[one.task].value(width), width) for n, width in one.widths if n in planned),
        )
        for one in powers
    ]
    first = powers[0]
    columns = (
        METHOD,
        Column(name="task", numeric=False),
        Column(name="now", explanation="restarts so far"),
        Column(name="spread", explanation="standard deviation of the differences"),
        Column(name="to detect", explanation="the difference that is to be detected"),
        Column(name="needed", explanation=f"restarts for a power of {percent(first.power)}, by the t test"),
        Column(name="simulated", explanation="power at that number, simulated from the runs themselves"),
        *(
            Column(name=f"width at {n}", explanation=f"expected width of the interval with {n} restarts")
            for n in planned
        ),
    )
    aim = "the difference to detect" if first.given else "the difference that was seen"
    doubt = "" if first.given else " A pilot knows that difference badly: ask rather for the one that would matter."
    note = (
        f"Needed of each method to show {aim} with a power of {percent(first.power)} (two-sided, "
        f"{percent(first.alpha)}, before any correction).{doubt}"
    )
    return compact("restarts", "Restarts needed", columns, rows, note)


def _estimate(estimate: Estimate, *, sign: bool = False) -> Value:
    text = interval(estimate.low, estimate.high, 1, sign=sign)
    return Value(number(estimate.value, 1, sign=sign), estimate.value, "" if text == MISSING else text)


def _p(p: float | None) -> str:
    return MISSING if p is None else p_value(p).removeprefix("= ")
