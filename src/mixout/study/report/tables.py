"""The tables of a report as values, with numbers already formatted as text: of scores, then of comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, TypeVar

from mixout._names import count
from mixout.study.analysis import words
from mixout.study.analysis.across import Aggregate
from mixout.study.analysis.cells import Cell, Instability
from mixout.study.analysis.compare import Comparison
from mixout.study.analysis.restarts import Power
from mixout.study.analysis.runs import Placed, grouped, if_one, spoken
from mixout.study.analysis.stats import ALPHA, wilson
from mixout.study.analysis.summary import Leader
from mixout.study.analysis.words import MISSING, Scores, interval, number, p_value, percent
from mixout.study.report.canvas import Labels

T = TypeVar("T")
_NORMAL = 1.96  # of a 95 % interval of the normal law
_MOST_PLACES = 8


@dataclass(frozen=True)
class Value:
    """A value in a table."""

    text: str  # what is shown
    order: float | None = None  # sort key; None to sort by the text
    mark: str = ""  # why it is highlighted; empty if it is not
    color: str = ""  # of the method that it names


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under named columns; the first column names the row."""

    name: str  # unique within a report
    title: str  # a few words
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]  # as many values as columns each
    note: str = ""  # a sentence below it
    shaded: frozenset[int] = frozenset()  # numbers of the highlighted rows

    @property
    def numeric(self) -> list[bool]:
        """Which columns are sorted by number, and aligned to the right."""
        return [any(row[index].order is not None for row in self.rows) for index in range(len(self.columns))]


Columns = Sequence[tuple[str, Callable[[T], Value]]]


def table(name: str, title: str, items: Sequence[T], columns: Columns[T], note: str = "",
           shaded: Callable[[T], bool] = lambda _: False) -> Table:  # fmt: skip
    """A row for each item, without the columns that are empty in all rows."""
    all_rows = [[value_of(item) for _, value_of in columns] for item in items]
    kept = [index for index in range(len(columns)) if any(row[index].text != MISSING for row in all_rows)]
    return Table(
        name=name,
        title=title,
        columns=tuple(columns[index][0] for index in kept),
        rows=tuple(tuple(row[index] for index in kept) for row in all_rows),
        note=note,
        shaded=frozenset(index for index, item in enumerate(items) if shaded(item)),
    )


def overview(cells: Sequence[Cell], leaders: Sequence[Leader], labels: Labels) -> Table | None:
    """Methods by tasks and the values of factors; None for a single place, and for too many."""
    cell_of = {(cell.method, labels.place(cell)): cell for cell in cells}
    places = {labels.place(cell): cell for cell in reversed(cells)}
    if not 1 < len(places) <= _MOST_PLACES:
        return None
    texts = {task: Scores(x for cell in cells if cell.task == task for x in cell.scores) for task in labels.tasks}

    def mean(place: str, method: str) -> Value:
        cell = cell_of.get((method, place))
        if cell is None:
            return Value(MISSING)
        return Value(texts[cell.task].value(cell.mean), cell.mean, _standing(cell, leaders))

    methods = grouped(cells, lambda cell: cell.method)
    means_of = {method: [cell.mean for cell in group if cell.mean is not None] for method, group in methods.items()}
    ranks = {method: _rank(fmean(means) if means else None) for method, means in means_of.items()}
    note = (
        "Bold: the highest mean of a column, and what can't be told apart from it, where restarts are enough to tell."
    )
    columns: Columns[str] = [
        ("method", lambda method: Value(method, color=labels.looks[method].color)),
        *((place, partial(mean, place)) for place in reversed(places)),
    ]
    return table("overview", "Means", sorted(ranks, key=ranks.__getitem__), columns, note)


def scores(at: int, cells: Sequence[Cell], leaders: Sequence[Leader], labels: Labels) -> Table:
    """The distribution of one task's scores, the highest mean first; ``at`` is the task's number."""
    text = Scores(score for cell in cells for score in cell.scores)
    places = list(dict.fromkeys(map(labels.place, cells)))
    columns: Columns[Cell] = [
        *method_columns(labels),
        ("runs", lambda c: Value(str(c.n), c.n)),
        ("mean", lambda c: Value(text.value(c.mean), c.mean, "highest" if _standing(c, leaders) == "highest" else "")),
        ("± restarts", lambda c: plain(None if c.mean_high is None else c.mean_high - (c.mean or 0.0), text.digits)),
        ("± dev set", lambda c: plain(None if c.dev_error is None else _NORMAL * c.dev_error, text.digits)),
        ("sd", lambda c: plain(c.sd, text.digits)),
        ("min", lambda c: plain(c.min, text.digits)),
        ("max", lambda c: plain(c.max, text.digits)),
        ("failed", lambda c: Value(f"{c.failed} of {c.runs}" if c.failed else "0", c.failure_rate)),
    ]
    # A table of scores need not say which metric it holds.
    notes = [] if cells[0].metric == "score" else [f"Score: {cells[0].metric}."]
    shaded = any(_standing(cell, leaders) == "not told apart" for cell in cells)
    if shaded:
        notes.insert(0, "Shaded: the highest mean, and what can't be told apart from it.")
    if (chance := if_one(cell.chance for cell in cells)) is not None:
        notes.append(f"Chance, the score of a constant answer: {text.value(chance)}.")
    for known, fate in ((True, "counted as chance"), (False, "left out of the scores")):
        if unscored := sum(cell.unscored for cell in cells if (cell.chance is not None) == known):
            notes.append(f"Runs without a score, {fate}: {unscored}.")
    ordered = sorted(cells, key=lambda cell: (places.index(labels.place(cell)), _rank(cell.mean)))
    return table(f"scores-{at}", cells[0].task, ordered, columns, " ".join(notes),
                  lambda cell: shaded and _standing(cell, leaders) != "")  # fmt: skip


def costs(cells: Sequence[Cell], labels: Labels) -> Table | None:
    """What each method cost on each task: time, memory, and what it moved."""
    columns: Columns[Cell] = [
        *method_columns(labels, task=True),
        ("training", lambda c: Value(MISSING if c.seconds is None else words.in_words(c.seconds), c.seconds)),
        ("peak memory", lambda c: Value(words.memory(c.peak_memory), c.peak_memory)),
        ("distance", lambda c: plain(c.distance, 2)),
        ("kept", lambda c: plain(c.original, 3)),
        ("KL to the base", lambda c: plain(c.kl_to_base, 3)),
    ]
    cost_table = table("costs", "Cost", cells, columns)
    return cost_table if {name for name, _ in columns[-5:]} & {*cost_table.columns} else None


def instability(instabilities: Sequence[Instability], labels: Labels) -> Table | None:
    """How much the predictions of restarts differ."""

    def share(one: Instability, value: float | None) -> Value:
        return Value(percent(value) if one.kind == "classes" else number(value, 3), value)

    columns: Columns[Instability] = [
        *method_columns(labels, task=True),
        ("disagreement", lambda row: share(row, row.disagreement)),
        ("without failed runs", lambda row: share(row, row.working)),
        ("flipping", lambda row: Value(f"{len(row.flipping):,} of {row.examples:,}", len(row.flipping))),
    ]
    return table("instability", "Disagreement between restarts", instabilities, columns) if instabilities else None


def method_columns(labels: Labels, *, task: bool = False) -> list[tuple[str, Callable[[Any], Value]]]:
    """The method, and what differs beside it, in columns of their own."""

    def factor(name: str, item: Placed) -> Value:
        return Value(spoken(item.factors.get(name, MISSING)))

    with_task = task and len(labels.tasks) > 1
    return [
        ("method", lambda item: Value(item.method, color=labels.looks[item.method].color)),
        ("task", lambda item: Value(item.task if with_task else MISSING)),
        *((spoken(name), partial(factor, name)) for name in labels.varying),
    ]


def _rank(mean: float | None) -> float:
    """The highest first, what has no score last."""
    return math.inf if mean is None else -mean


def _standing(cell: Cell, leaders: Sequence[Leader]) -> str:
    """Whether the cell is the highest in its place, or not told apart from it; empty if lower or undecided."""
    ahead = ((leader.best, *(alike for alike in leader.alike if alike.mean == leader.best.mean)) for leader in leaders)
    if any(cell is highest for group in ahead for highest in group):
        return "highest"
    tied = (alike for leader in leaders for alike in leader.alike if alike.method not in leader.few)
    return "not told apart" if any(cell is alike for alike in tied) else ""


def plain(value: float | None, digits: int, *, sign: bool = False) -> Value:
    """A number with so many digits."""
    return Value(number(value, digits, sign=sign), value)


def differences(name: str, comparisons: Sequence[Comparison], labels: Labels, least_p: float) -> Table:
    """The comparisons on one task, the largest difference first; ``least_p``: the smallest p that they can reach."""
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
    notes = [f'Interval: {words.percent_of(first.confidence)}. Margin of "as good": {count(first.margin, "point")}.']
    if first.looks > 1:
        notes.append(f"The data were looked at up to {first.looks} times: intervals and p-values allow for it.")
    if least_p > ALPHA:
        least = p_value(min(1.0, least_p))
        notes.append(f"So few restarts can show no difference by this test: the p-value is at least {least}.")
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
