"""The tables of a report on comparisons: differences, failed runs, all tasks together, restarts needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mixout._names import count
from mixout.study.analysis.across import Aggregate
from mixout.study.analysis.compare import Comparison
from mixout.study.analysis.restarts import Power
from mixout.study.analysis.stats import ALPHA, wilson
from mixout.study.analysis.words import MISSING, Scores, interval, p_value, percent, percent_of
from mixout.study.report.canvas import Labels
from mixout.study.report.tables import Columns, Table, Value, method_columns, plain, table


def differences(name: str, comparisons: Sequence[Comparison], labels: Labels) -> Table:
    """The comparisons on one task, the largest difference first."""
    text = Scores(score for c in comparisons for score in (c.mean, c.baseline_mean))
    columns: Columns[Comparison] = [
        *method_columns(labels),
        ("runs", lambda c: Value(str(c.n) if c.n == c.n_baseline else f"{c.n}, {c.n_baseline}", c.n)),
        ("difference", lambda c: plain(c.difference, text.digits, sign=True)),
        ("interval", lambda c: _ends(c.interval or (None, None), text.digits)),
        ("p-value", lambda c: _p(c.p_holm)),
        ("result", lambda c: Value(_result(c), mark="shown" if c.shown else "")),
        ("P(better)", lambda c: Value(f"{c.improvement:.2f}", c.improvement)),
    ]
    first = comparisons[0]
    notes = [f'Interval: {percent_of(first.confidence)}. Margin of "as good": {count(first.margin, "point")}.']
    if first.looks > 1:
        notes.append(f"The data were looked at up to {first.looks} times: intervals and p-values allow for it.")
    min_p = min(c.p_smallest * c.family * c.looks for c in comparisons)
    if min_p > ALPHA:
        notes.append(
            f"So few restarts can show no difference by this test: the p-value is at least {p_value(min(1.0, min_p))}."
        )
    if all(c.chance_known and not c.some_failed for c in comparisons):
        fewest = min(min(c.failure_runs, c.failure_runs_baseline) for c in comparisons)
        notes.append(f"No run failed; a failure rate of up to {percent(wilson(0, fewest)[1])} may go unseen.")
    ordered = sorted(comparisons, key=lambda c: -c.difference)
    return table(name, f"{first.task}, against {first.baseline}", ordered, columns, " ".join(notes))


def failures(name: str, comparisons: Sequence[Comparison], labels: Labels) -> Table | None:
    """Where runs failed: how their rates differ, and the runs that did not fail."""
    text = Scores(score for c in comparisons for score in (c.mean, c.baseline_mean))
    columns: Columns[Comparison] = [
        *method_columns(labels),
        ("failed", lambda c: Value(f"{c.failed} of {c.failure_runs}", c.failed)),
        ("baseline's", lambda c: Value(f"{c.baseline_failed} of {c.failure_runs_baseline}", c.baseline_failed)),
        ("difference of rates", lambda c: plain(100 * c.failure_difference, 0, sign=True)),
        ("interval of rates", lambda c: _ends((100 * c.failure_low, 100 * c.failure_high), 0)),
        ("p-value, uncorrected", lambda c: _p(c.failure_p)),
        ("without failed", lambda c: plain(c.level_difference, text.digits, sign=True)),
        ("its interval", lambda c: _ends((c.low, c.high), text.digits)),
    ]
    failing = [c for c in sorted(comparisons, key=lambda c: c.failure_difference) if c.some_failed]
    if not failing:
        return None
    tests = {"McNemar's" if c.paired else "Fisher's" for c in failing}
    note = (
        f"p-value: {' or '.join(sorted(tests))} exact test of the rates. "
        "Means over all runs mix failed runs with others and describe neither."
    )
    return table(name, f"Failed runs on {failing[0].task}, against {failing[0].baseline}", failing, columns, note)


def across(aggregates: Sequence[Aggregate], labels: Labels) -> Table | None:
    """All tasks together."""
    columns: Columns[Aggregate] = [
        *method_columns(labels),
        ("tasks", lambda aggregate: Value(str(len(aggregate.tasks)), len(aggregate.tasks))),
        ("runs", lambda aggregate: Value(str(aggregate.n), aggregate.n)),
        ("mean", lambda aggregate: plain(aggregate.mean, 1)),
        ("difference", lambda aggregate: plain(aggregate.difference, 1, sign=True)),
        ("interval", lambda aggregate: _ends((aggregate.low, aggregate.high), 1)),
        ("p-value over all pairs", lambda aggregate: _p(aggregate.p)),
    ]
    if not aggregates:
        return None
    note = "0 is chance and 100 the best run of a task." if aggregates[0].normalised else "Scores are in points."
    return table("across", f"All tasks, against {aggregates[0].baseline}", aggregates, columns, note)


def restarts(powers: Sequence[Power], labels: Labels) -> Table | None:
    """How many restarts would be enough."""
    if not powers:
        return None

    def needed(at: int, one: Power) -> Value:
        need = one.needed[at]
        high = "more" if need.high is None else f"{need.high:,}"
        text = "> 100,000" if need.restarts is None else f"{need.restarts:,} ({need.low:,} to {high})"
        return Value(text, need.restarts)

    columns: Columns[Power] = [
        *method_columns(labels, task=True),
        ("restarts now", lambda power: Value(str(power.pilot), power.pilot)),
        ("would show", lambda power: plain(None if power.detectable is None else power.detectable * power.points, 1)),
        *((f"for {count(need.points, 'point')}", partial(needed, i)) for i, need in enumerate(powers[0].needed)),
    ]
    note = (
        "Restarts of each method that show the difference in 4 of 5 studies, after correction. In brackets the range "
        f"that follows from how well the spread is known. Fewer than {powers[0].smallest} can show nothing."
    )
    return table("restarts", "Restarts needed", powers, columns, note)


def _result(c: Comparison) -> str:
    if c.shown:
        return "higher" if c.difference > 0 else "lower"
    return "as good" if c.p_equivalent is not None and c.p_equivalent <= ALPHA else "not shown"


def _p(p: float | None) -> Value:
    return Value(MISSING if p is None else p_value(p), p)


def _ends(ends: tuple[float | None, float | None], digits: int) -> Value:
    return Value(interval(*ends, digits, sign=True), ends[0])
