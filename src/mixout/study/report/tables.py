"""The tables of a report as values, and as Markdown and LaTeX. They compute no statistics.

Numbers are texts already, in one width; CSV files are written elsewhere, from full precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mixout.study.analysis.across import Aggregate
from mixout.study.analysis.cells import Cell, Comparison
from mixout.study.analysis.leaders import Leader
from mixout.study.analysis.predictions import Instability
from mixout.study.analysis.restarts import Power
from mixout.study.analysis.runs import Placed
from mixout.study.analysis.stats import ALPHA, wilson
from mixout.study.analysis.words import in_points, in_words, p_value, percent_of
from mixout.study.report.wording import MISSING, Labels, Scores, interval, memory, number, percent

T = TypeVar("T")
MEANINGS = {
    "runs": "whose scores enter; of two numbers, those of the method and of the baseline",
    "mean": "over restarts",
    "± restarts": "95 % interval of the mean over restarts, Student's t; none where a run failed",
    "± dev set": "the same for the choice of dev examples, which all restarts share",
    "sd": "standard deviation over restarts",
    "max": "grows with the number of restarts",
    "failed": "runs that scored no more than a constant answer, collapsed to nearly one answer, or did not finish",
    "difference": "of the means, method minus baseline",
    "interval": "of the difference, Student's t; none where a run failed",
    "p-value": "two-sided permutation test, after Holm's correction over all comparisons with this baseline",
    "p over all pairs": "signs of all pairs of all tasks are flipped; not corrected",
    "result": "higher, lower: shown by the test; as good: within the margin by an equivalence test",
    "P(better)": "share of pairs of a run of each in which the method's scores higher; ties count half",
    "baseline's": "failed runs of the baseline among those compared",
    "more failures": "failure rate of the method minus that of the baseline, in points",
    "interval, points": "of the difference of rates, Newcombe's",
    "without failed": "difference of the means of the runs that did not fail",
    "its interval": "of the difference without failed runs, Student's t",
    "restarts now": "of each method",
    "would show": "true difference in points that these restarts show in 4 of 5 studies",
    "training": "mean time of a run, without evaluations; a busy machine makes it longer",
    "peak memory": "the largest of its runs",
    "distance": "mean Euclidean distance to all pretrained weights",
    "kept": "mean score on text of the domain that the model knew before; of an encoder 1 is the same as before",
    "disagreement": "share of dev examples that two restarts answer differently, over all pairs; jackknife interval "
    "where no run failed",
    "without failed runs": "the same among the runs that did not fail",
    "flipping": "dev examples that do not get the same answer from all restarts",
}
_NORMAL = 1.96  # of a 95 % interval of the normal law
_MOST_PLACES = 8


@dataclass(frozen=True)
class Value:
    """A place of a table."""

    text: str  # what is shown
    order: float | None = None  # what is sorted by; the text where it is None
    mark: str = ""  # why it is set off; empty where it is not
    color: str = ""  # of the method that it names


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under named columns; the first column names the row."""

    name: str  # unique within a report
    title: str  # a few words
    columns: tuple[str, ...]  # their names
    rows: tuple[tuple[Value, ...], ...]  # as many values as columns each
    note: str = ""  # a sentence below it
    shaded: frozenset[int] = frozenset()  # numbers of the rows that are set off

    @property
    def numeric(self) -> list[bool]:
        """Which columns are sorted by number, and stand at the right."""
        return [any(row[at].order is not None for row in self.rows) for at in range(len(self.columns))]

    @property
    def meanings(self) -> dict[str, str]:
        """Of the columns that need words."""
        return {name: MEANINGS[name] for name in self.columns if name in MEANINGS}


Columns = Sequence[tuple[str, Callable[[T], Value]]]


def _table(name: str, title: str, items: Sequence[T], columns: Columns[T], note: str = "",
           shaded: Callable[[T], bool] = lambda _: False) -> Table:  # fmt: skip
    """A row for each item, without the columns that say nothing in any row."""
    every = [[of(item) for _, of in columns] for item in items]
    kept = [at for at in range(len(columns)) if any(row[at].text != MISSING for row in every)]
    return Table(
        name=name,
        title=title,
        columns=tuple(columns[at][0] for at in kept),
        rows=tuple(tuple(row[at] for at in kept) for row in every),
        note=note,
        shaded=frozenset(at for at, item in enumerate(items) if shaded(item)),
    )


def overview(cells: Sequence[Cell], leaders: Sequence[Leader], labels: Labels) -> Table | None:
    """Methods by tasks and the values of factors; None for a single place, and for too many."""
    of = {(cell.method, labels.place(cell)): cell for cell in cells}
    places = {labels.place(cell): cell for cell in reversed(cells)}
    if not 1 < len(places) <= _MOST_PLACES:
        return None
    texts = {task: Scores(x for cell in cells if cell.task == task for x in cell.scores) for task in labels.tasks}

    def at(place: str) -> Callable[[str], Value]:
        def value(method: str) -> Value:
            cell = of.get((method, place))
            return Value(MISSING) if cell is None else _mean(cell, texts[cell.task], _standing(cell, leaders))

        return value

    total = dict.fromkeys((cell.method for cell in cells), 0.0)
    for cell in cells:
        total[cell.method] += cell.mean or 0.0
    note = (
        "Bold: the highest mean of a column, and what can't be told apart from it, where restarts are enough to tell."
    )
    columns = [("method", lambda method: Value(method, color=labels.looks[method].color))]
    columns += [(place, at(place)) for place in reversed(places)]
    return _table("overview", "Means", sorted(total, key=lambda method: -total[method]), columns, note)


def scores(at: int, cells: Sequence[Cell], leaders: Sequence[Leader], labels: Labels) -> Table:
    """The distribution of one task's scores, the highest mean first; ``at`` is the task's number."""
    text = Scores(score for cell in cells for score in cell.scores)
    places = list(dict.fromkeys(map(labels.place, cells)))
    columns: Columns[Cell] = [
        *_method(labels),
        ("runs", lambda c: Value(str(c.n), c.n)),
        ("mean", lambda c: _mean(c, text, "highest" if _standing(c, leaders) == "highest" else "")),
        ("± restarts", lambda c: _of(None if c.mean_high is None else c.mean_high - (c.mean or 0.0), text.digits)),
        ("± dev set", lambda c: _of(None if c.dev_error is None else _NORMAL * c.dev_error, text.digits)),
        ("sd", lambda c: _of(c.sd, text.digits)),
        ("min", lambda c: _of(c.min, text.digits)),
        ("max", lambda c: _of(c.max, text.digits)),
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
    ordered = sorted(cells, key=lambda cell: (places.index(labels.place(cell)), -(cell.mean or 0.0)))
    return _table(f"scores-{at}", cells[0].task, ordered, columns, " ".join(notes),
                  lambda cell: shaded and _standing(cell, leaders) != "")  # fmt: skip


def differences(name: str, comparisons: Sequence[Comparison], labels: Labels) -> Table:
    """The comparisons on one task, the largest difference first."""
    text = Scores(score for one in comparisons for score in (one.mean, one.baseline_mean))
    columns: Columns[Comparison] = [
        *_method(labels),
        ("runs", lambda c: Value(str(c.n) if c.n == c.n_baseline else f"{c.n}, {c.n_baseline}", c.n)),
        ("difference", lambda c: Value(text.difference(c.difference), c.difference)),
        ("interval", lambda c: _ends(c.interval, text)),
        ("p-value", lambda c: Value(_p(c.p_holm), c.p_holm)),
        ("result", lambda c: Value(_result(c), mark="shown" if c.shown else "")),
        ("P(better)", lambda c: Value(f"{c.improvement:.2f}", c.improvement)),
    ]
    first = comparisons[0]
    notes = [f'Interval: {percent_of(first.confidence)}. Margin of "as good": {in_points(first.margin)}.']
    least = min(c.p_smallest * c.family * c.looks for c in comparisons)
    if least > ALPHA:
        notes.append(f"So few restarts can show no difference by this test: p is at least {p_value(min(1.0, least))}.")
    if all(c.chance_known and not c.some_failed for c in comparisons):
        fewest = min(min(c.failure_runs, c.failure_runs_baseline) for c in comparisons)
        notes.append(f"No run failed; a failure rate of up to {percent(wilson(0, fewest)[1])} may go unseen.")
    ordered = sorted(comparisons, key=lambda one: -one.difference)
    return _table(name, f"{first.task}, against {first.baseline}", ordered, columns, " ".join(notes))


def failures(name: str, comparisons: Sequence[Comparison], labels: Labels) -> Table | None:
    """Where runs failed: how their rates differ, and the runs that did not fail."""
    text = Scores(score for one in comparisons for score in (one.mean, one.baseline_mean))
    columns: Columns[Comparison] = [
        *_method(labels),
        ("failed", lambda c: Value(f"{c.failed} of {c.failure_runs}", c.failed)),
        ("baseline's", lambda c: Value(f"{c.baseline_failed} of {c.failure_runs_baseline}", c.baseline_failed)),
        ("more failures", lambda c: Value(number(100 * c.failure_difference, 0, sign=True), c.failure_difference)),
        ("interval, points", lambda c: Value(interval(100 * c.failure_low, 100 * c.failure_high, 0, sign=True))),
        ("p-value, uncorrected", lambda c: Value(_p(c.failure_p), c.failure_p)),
        ("without failed", lambda c: Value(text.difference(c.level_difference), c.level_difference)),
        ("its interval", lambda c: _ends((c.low, c.high), text)),
    ]
    failing = [one for one in sorted(comparisons, key=lambda one: one.failure_difference) if one.some_failed]
    if not failing:
        return None
    tests = {"McNemar's" if one.paired else "Fisher's" for one in failing}
    note = (
        f"p-value: {' or '.join(sorted(tests))} exact test of the rates. "
        "Means over all runs mix failed runs with others and describe neither."
    )
    return _table(name, f"Failed runs on {failing[0].task}, against {failing[0].baseline}", failing, columns, note)


def across(aggregates: Sequence[Aggregate], labels: Labels) -> Table | None:
    """All tasks together."""
    columns: Columns[Aggregate] = [
        *_method(labels),
        ("tasks", lambda one: Value(str(len(one.tasks)), len(one.tasks))),
        ("runs", lambda one: Value(str(one.n), one.n)),
        ("mean", lambda one: _of(one.mean, 1)),
        ("difference", lambda one: Value(number(one.difference, 1, sign=True), one.difference)),
        ("interval", lambda one: Value(interval(one.low, one.high, 1, sign=True), one.low)),
        ("p over all pairs", lambda one: Value(_p(one.p), one.p)),
    ]
    if not aggregates:
        return None
    note = "0 is chance and 100 the best run of a task." if aggregates[0].normalised else "Scores are in points."
    return _table("across", f"All tasks, against {aggregates[0].baseline}", aggregates, columns, note)


def restarts(powers: Sequence[Power], labels: Labels) -> Table | None:
    """How many restarts would be enough."""
    if not powers:
        return None

    def needed(at: int) -> Callable[[Power], Value]:
        def of(one: Power) -> Value:
            need = one.needed[at]
            high = "" if need.high is None else f"{need.high:,}"
            text = "> 100,000" if need.restarts is None else f"{need.restarts:,} ({need.low:,} to {high})"
            return Value(text, need.restarts)

        return of

    columns: Columns[Power] = [
        *_method(labels, task=True),
        ("restarts now", lambda one: Value(str(one.pilot), one.pilot)),
        ("would show", lambda one: _of(None if one.detectable is None else one.detectable * one.points, 1)),
        *((f"for {in_points(need.points)}", needed(at)) for at, need in enumerate(powers[0].needed)),
    ]
    note = (
        "Restarts of each method that show the difference in 4 of 5 studies, after correction. In brackets the range "
        f"that follows from how well the spread is known. Fewer than {powers[0].smallest} can show nothing."
    )
    return _table("restarts", "Restarts needed", powers, columns, note)


def costs(cells: Sequence[Cell], labels: Labels) -> Table | None:
    """What each method cost on each task: time, memory, and what it moved."""
    columns: Columns[Cell] = [
        *_method(labels, task=True),
        ("training", lambda c: Value(MISSING if c.seconds is None else in_words(c.seconds), c.seconds)),
        ("peak memory", lambda c: Value(memory(c.peak_memory), c.peak_memory)),
        ("distance", lambda c: _of(c.distance, 2)),
        ("kept", lambda c: _of(c.original, 3)),
    ]
    made = _table("costs", "Cost", cells, columns)
    return made if set(made.columns) & {"training", "peak memory", "distance", "kept"} else None


def instability(instabilities: Sequence[Instability], labels: Labels) -> Table | None:
    """How much the predictions of restarts differ."""

    def share(one: Instability, value: float | None, ends: str = "") -> Value:
        return Value(f"{percent(value) if one.kind == 'classes' else number(value, 3)}{ends}", value)

    def ends(one: Instability) -> str:
        if one.low is None or one.high is None:
            return ""
        factor, digits = (100, 0) if one.kind == "classes" else (1, 3)
        return f" ({interval(one.low * factor, one.high * factor, digits)})"

    columns: Columns[Instability] = [
        *_method(labels, task=True),
        ("disagreement", lambda one: share(one, one.disagreement, ends(one))),
        ("without failed runs", lambda one: share(one, one.working)),
        ("flipping", lambda one: Value(f"{len(one.flipping):,} of {one.examples:,}", len(one.flipping))),
    ]
    return _table("instability", "Disagreement between restarts", instabilities, columns) if instabilities else None


def _method(labels: Labels, *, task: bool = False) -> list[tuple[str, Callable[[Any], Value]]]:
    """The method, and what differs beside it, in columns of their own."""

    def factor(name: str) -> Callable[[Placed], Value]:
        return lambda item: Value(item.factors.get(name, MISSING))

    several = task and len(labels.tasks) > 1
    return [
        ("method", lambda item: Value(item.method, color=labels.looks[item.method].color)),
        ("task", lambda item: Value(item.task if several else MISSING)),
        *((name, factor(name)) for name in labels.varying),
    ]


def _mean(cell: Cell, text: Scores, mark: str) -> Value:
    return Value(text.value(cell.mean), cell.mean, mark)


def _standing(cell: Cell, leaders: Sequence[Leader]) -> str:
    """How the cell stands to the best on its task with its factors; empty where it is lower, or nobody can tell."""
    if any(cell is one.best for one in leaders):
        return "highest"
    return "not told apart" if any(cell is other for one in leaders if one.enough for other in one.alike) else ""


def _of(value: float | None, digits: int) -> Value:
    return Value(number(value, digits), value)


def _result(c: Comparison) -> str:
    if c.shown:
        return "higher" if c.difference > 0 else "lower"
    return "as good" if c.p_equivalent is not None and c.p_equivalent <= ALPHA else "not shown"


def _p(p: float | None) -> str:
    return MISSING if p is None else p_value(p)


def _ends(ends: tuple[float | None, float | None] | None, text: Scores) -> Value:
    low, high = ends or (None, None)
    return Value(text.interval(low, high, sign=True), low)
