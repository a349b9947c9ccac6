"""The tables of single methods: scores, failures, costs. It computes no statistics."""

from __future__ import annotations

from collections.abc import Sequence

from mixout.study.analysis.cells import Cell
from mixout.study.analysis.predictions import Instability
from mixout.study.report.tables import METHOD, Column, Table, Value, compact
from mixout.study.report.wording import MISSING, Labels, Scores, duration, memory, number, percent, percentages

_FLIPPING = 5


def overview(cells: Sequence[Cell], labels: Labels) -> Table | None:
    """Methods by tasks, mean (max): the form of the paper's table 1. None for a single task."""
    names = list(dict.fromkeys(cell.task for cell in cells))
    if len(names) < 2:
        return None
    of = {(labels.of(cell), cell.task): cell for cell in cells}
    texts = {task: Scores(score for cell in cells if cell.task == task for score in cell.scores) for task in names}
    best = {task: _best([cell for cell in cells if cell.task == task]) for task in names}
    rows = []
    for label in labels.all():
        values = [Value(label.text)]
        for task in names:
            cell = of.get((label, task))
            values.append(
                Value(MISSING)
                if cell is None or cell.mean is None
                else Value(
                    texts[task].value(cell.mean), cell.mean, f"({texts[task].value(cell.max)})", _mark(cell, best[task])
                )
            )
        rows.append(tuple(values))
    alike = " among methods with the same factors" if any(cell.factors for cell in cells) else ""
    metrics = {cell.task: "" if cell.metric == "score" else f", {cell.metric}" for cell in cells}
    return Table(
        name="overview",
        title="Mean (max) on each task",
        columns=(METHOD, *(Column(name=f"{task}{metrics[task]}") for task in names)),
        rows=tuple(rows),
        note=f"Marked: the highest mean of a task{alike}, which need not be a difference that the data show. A maximum "
        "grows with the number of restarts.",
    )


def scores(place: int, cells: Sequence[Cell], labels: Labels) -> Table:
    """Every number of the distribution of one task's scores; ``place`` is the task's among the tasks."""
    text = Scores(score for cell in cells for score in cell.scores)
    best = _best(cells)
    rows = []
    for cell in cells:
        moments = [Value(text.value(x), x) for x in (cell.sd, cell.median, cell.iqm, cell.min, cell.max)]
        rate = percentages(cell.failure_low, cell.failure_high)
        rows.append(
            (
                Value(labels.of(cell).text),
                Value(str(cell.n), cell.n),
                Value(text.value(cell.mean), cell.mean, mark=_mark(cell, best)),
                Value(text.interval(cell.mean_low, cell.mean_high), cell.mean_low),
                Value(text.value(cell.dev_error), cell.dev_error),
                *moments,
                Value(f"{cell.failed} of {cell.runs}", cell.failure_rate),
                Value(percent(cell.failure_rate), cell.failure_rate, rate),
            )
        )
    columns = (
        METHOD,
        Column(name="n", explanation="scores that enter"),
        Column(name="mean"),
        Column(name="95 % interval", explanation="of the mean over restarts, Student's t, on these dev examples"),
        Column(name="dev set", explanation="standard error of the mean from the choice of dev examples"),
        Column(name="sd", explanation="sample standard deviation"),
        Column(name="median"),
        Column(name="IQM", explanation="interquartile mean: mean of the middle half"),
        Column(name="min"),
        Column(name="max", explanation="grows with the number of restarts"),
        Column(name="failed", explanation="runs at or below chance, collapsed to nearly one answer, or not finished"),
        Column(name="failure rate", explanation="share of failed runs with its Wilson interval"),
    )
    # A table of scores need not say which metric it holds.
    notes = [] if cells[0].metric == "score" else [f"Score: {cells[0].metric}."]
    if cells[0].chance is not None:
        notes.append(f"Chance, the score of a constant answer: {text.value(cells[0].chance)}.")
    unscored = sum(cell.unscored for cell in cells)
    if unscored:
        fate = "left out of the scores" if cells[0].chance is None else "counted as chance"
        notes.append(f"Runs without a score, {fate}: {unscored}.")
    return compact(f"scores-{place}", cells[0].task, columns, rows, " ".join(notes))


def costs(cells: Sequence[Cell], labels: Labels) -> Table | None:
    """What each method cost on each task: time, memory, and what it moved."""
    known = [cell for cell in cells if any(value is not None for value in _costs(cell))]
    if not known:
        return None
    several = len({cell.task for cell in known}) > 1
    rows = [
        (
            Value(labels.of(cell).text),
            Value(cell.task if several else MISSING),
            Value(duration(cell.seconds), cell.seconds),
            Value(memory(cell.peak_memory), cell.peak_memory),
            Value(number(cell.distance, 2), cell.distance),
            Value(number(cell.original, 3), cell.original),
        )
        for cell in known
    ]
    columns = (
        METHOD,
        Column(name="task", numeric=False),
        Column(name="training a run", explanation="mean time, without evaluations"),
        Column(name="peak memory", explanation="the largest of its runs"),
        Column(name="distance", explanation="mean ||w - w_pre|| over all pretrained weights"),
        Column(
            name="original domain",
            explanation="mean score on text of the domain that the model knew before: of an encoder the cosine of its "
            "mean hidden states before and after, of a language model the log-likelihood",
        ),
    )
    return compact("costs", "Cost", columns, rows)


def _costs(cell: Cell) -> tuple[float | None, ...]:
    return cell.seconds, cell.peak_memory, cell.distance, cell.original


def instability(instabilities: Sequence[Instability], labels: Labels) -> Table | None:
    """How much the predictions of restarts differ, and for which examples."""
    if not instabilities:
        return None
    several = len({one.task for one in instabilities}) > 1
    rows = []
    for one in instabilities:
        classes = one.kind == "classes"
        shares = [Value(percent(x) if classes else number(x, 3), x) for x in (one.disagreement, one.working)]
        rows.append(
            (
                Value(labels.of(one).text),
                Value(one.task if several else MISSING),
                Value(str(one.n), one.n),
                *shares,
                Value(f"{len(one.flipping):,} of {one.examples:,}", len(one.flipping) / max(one.examples, 1)),
                Value(", ".join(map(str, one.flipping[:_FLIPPING])) or MISSING),
            )
        )
    columns = (
        METHOD,
        Column(name="task", numeric=False),
        Column(name="restarts"),
        Column(name="disagreement", explanation="of two restarts, averaged over all pairs"),
        Column(name="without failed runs", explanation="the same among the runs that did not fail"),
        Column(name="flipping", explanation="dev examples that do not get the same answer from all restarts"),
        Column(name="least stable", numeric=False, explanation="their numbers in the dev set, from 0"),
    )
    return compact("instability", "Disagreement between restarts", columns, rows)


def _mark(cell: Cell, best: Sequence[Cell]) -> str:
    return "highest" if any(cell is one for one in best) else ""


def _best(cells: Sequence[Cell]) -> list[Cell]:
    """The highest means among the methods with the same factors, where there is something to choose from."""
    # More examples or another rate are no merit of a method.
    known: dict[tuple[tuple[str, str], ...], list[Cell]] = {}
    for cell in cells:
        if cell.mean is not None:
            known.setdefault(tuple(sorted(cell.factors.items())), []).append(cell)
    best = []
    for several in known.values():
        highest = max(cell.mean or 0.0 for cell in several)
        best += [cell for cell in several if cell.mean == highest] if len(several) > 1 else []
    return best
