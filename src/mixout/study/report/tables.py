"""The tables of a report as values, with numbers already formatted as text. Computes no statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, TypeVar

from mixout._names import count
from mixout.study.analysis.cells import Cell, Instability
from mixout.study.analysis.runs import Placed, Run, grouped, spoken
from mixout.study.analysis.summary import Leader
from mixout.study.analysis.words import MISSING, Scores, in_words, memory, number, percent
from mixout.study.report.canvas import Labels

T = TypeVar("T")
MEANINGS = {
    "runs": "(restarts) whose scores enter; of two numbers, those of the method and of the baseline",
    "mean": "over restarts",
    "± restarts": "95 % interval of the mean over restarts, Student's t; none where a run failed",
    "± dev set": "the same for the choice of dev examples, which all restarts share",
    "sd": "standard deviation over restarts",
    "max": "grows with the number of restarts",
    "failed": "runs that did not finish, scored no more than a constant answer, or collapsed: nearly all answers are "
    "the same, with the loss of a constant answer. (Of a classifier, other answers are fewer than a fifth of its "
    "errors; of a regression, the variance of its predictions is below 5 % of its squared error.)",
    "difference": "of the means, method minus baseline",
    "interval": "of the difference over restarts, given this dev set: Student's t, Welch's where restarts are not "
    "paired; none where a run failed",
    "p-value": "two-sided permutation test, after Holm's correction over all comparisons with this baseline. It asks "
    "whether the methods differ in any respect: rare failures of one of them count as well",
    "p-value over all pairs": "signs of all pairs of all tasks are flipped; not corrected",
    "result": "higher, lower: shown by the test; as good: within the margin by an equivalence test",
    "P(better)": "share of pairs of a run of each in which the method's scores higher; ties count half",
    "baseline's": "failed runs of the baseline among those compared",
    "difference of rates": "failure rate of the method minus that of the baseline, in points",
    "interval of rates": "of their difference, Newcombe's",
    "without failed": "difference of the means of the runs that did not fail",
    "its interval": "of the difference without failed runs, Student's t",
    "restarts now": "of each method",
    "would show": "true difference in points that these restarts show in 4 of 5 studies",
    "training": "mean time of a run, without evaluations; a busy machine makes it longer",
    "peak memory": "the largest of its runs",
    "distance": "mean Euclidean distance to all pretrained weights",
    "kept": "mean score on text of the domain that the model knew before; of an encoder 1 is the same as before",
    "disagreement": "share of dev examples that two restarts answer differently, over all pairs",
    "without failed runs": "the same among the runs that did not fail",
    "flipping": "dev examples that do not get the same answer from all restarts",
}
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

    @property
    def meanings(self) -> dict[str, str]:
        """Explanations of the columns that need one."""
        return {name: MEANINGS[name] for name in self.columns if name in MEANINGS}


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


def facts(cells: Sequence[Cell], runs: Sequence[Run]) -> str:
    """How large the study is, in a line; ``runs`` are those that were trained."""
    trained = {run.key for run in runs}
    sizes = sorted({cell.runs for cell in cells})
    restarts = count(sizes[0], "restart") if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} restarts"
    values = grouped(sorted({pair for cell in cells for pair in cell.factors.items()}), lambda pair: pair[0])
    parts = [
        count(len(runs), "run"),
        count(len({cell.task for cell in cells}), "task"),
        count(len({cell.method for cell in cells}), "method"),
        *(f"{len(pairs)} values of {spoken(name)}" for name, pairs in values.items() if len(pairs) > 1),
        f"{restarts} each",
        f"{sum(cell.failed for cell in cells if cell.key in trained):,} failed",
    ]
    return " \u00b7 ".join(parts)


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
    if cells[0].chance is not None:
        notes.append(f"Chance, the score of a constant answer: {text.value(cells[0].chance)}.")
    if unscored := sum(cell.unscored for cell in cells):
        fate = "left out of the scores" if cells[0].chance is None else "counted as chance"
        notes.append(f"Runs without a score, {fate}: {unscored}.")
    ordered = sorted(cells, key=lambda cell: (places.index(labels.place(cell)), _rank(cell.mean)))
    return table(f"scores-{at}", cells[0].task, ordered, columns, " ".join(notes),
                  lambda cell: shaded and _standing(cell, leaders) != "")  # fmt: skip


def costs(cells: Sequence[Cell], labels: Labels) -> Table | None:
    """What each method cost on each task: time, memory, and what it moved."""
    columns: Columns[Cell] = [
        *method_columns(labels, task=True),
        ("training", lambda c: Value(MISSING if c.seconds is None else in_words(c.seconds), c.seconds)),
        ("peak memory", lambda c: Value(memory(c.peak_memory), c.peak_memory)),
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
    if any(cell is leader.best for leader in leaders):
        return "highest"
    tied = (alike for leader in leaders for alike in leader.alike if alike.method not in leader.few)
    return "not told apart" if any(cell is alike for alike in tied) else ""


def plain(value: float | None, digits: int, *, sign: bool = False) -> Value:
    """A number with so many digits."""
    return Value(number(value, digits, sign=sign), value)
