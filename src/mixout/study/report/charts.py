"""The charts of a report: which panels there are, with which values, and how each reads in words.

It computes no statistics: what is drawn stands in the summary. A chart without data is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from mixout.study.analysis.cells import Cell
from mixout.study.analysis.compare import Comparison
from mixout.study.analysis.runs import CellKey, Placed, Run
from mixout.study.analysis.words import Scores, number
from mixout.study.report.canvas import Chart, Dot, Panel
from mixout.study.report.draw import Curve, Row, curves, rows
from mixout.study.report.theme import Labels, Look

T = TypeVar("T", bound=Placed)
Runs = Mapping[CellKey, Sequence[Run]]
Looks = dict[str, Look]
Course = Callable[[Run], Sequence[tuple[int, float]]]

_FEWEST_BEST, _MOST_PANELS = 5, 8
DOTS = "Each dot is a run, each cross a failed one"


def scores(cells: Sequence[Cell], of_cell: Runs, labels: Labels) -> Chart:
    """The scores of all restarts, the highest mean first."""
    panels = []
    for task, here, name in _panels(cells, labels):
        text = Scores(score for cell in here for score in cell.scores)
        lines = [
            Row(
                label=name(cell),
                note=f"{text.value(cell.mean)}{f', {cell.failed} of {cell.runs} failed' if cell.failed else ''}",
                look=labels.looks[cell.method],
                dots=tuple(dot(run, run.counted, 0.0, text) for run in of_cell[cell.key]),
                value=cell.mean,
                low=cell.mean_low,
                high=cell.mean_high,
            )
            for cell in sorted(here, key=lambda cell: math.inf if cell.mean is None else -cell.mean)
        ]
        said = "; ".join(f"{row.label}: mean {row.note}, interval {text.interval(row.low, row.high)}" for row in lines)
        panels.append(rows(task, lines, axis=here[0].metric, line=(here[0].chance, "chance"), description=said))
    return Chart(
        name="scores",
        title="Every restart",
        caption=f"{DOTS}. The diamond is the mean, the bar its 95 % interval over restarts, where none failed. "
        "Chance is the score of a constant answer; it is left out where it lies far below.",
        panels=tuple(panels),
        legend={},
    )


def differences(comparisons: Sequence[Comparison], labels: Labels) -> Chart | None:
    """Each method against the baseline, the largest difference first."""
    panels = []
    for task, here, label in _panels(comparisons, labels):
        text = Scores(score for one in here for score in (one.mean, one.baseline_mean))
        lines = [
            Row(
                label=label(one),
                note=f"{text.difference(one.difference)}"
                + (f" ({text.interval(*one.interval, sign=True)})" if one.interval else ""),
                look=labels.looks[one.method],
                value=one.difference,
                low=one.interval and one.interval[0],
                high=one.interval and one.interval[1],
                sure=one.shown,
            )
            for one in sorted(here, key=lambda one: -one.difference)
        ]
        said = "; ".join(f"{row.label}: {row.note}{'' if row.sure else ', not shown'}" for row in lines)
        axis = f"{here[0].metric}, difference from {here[0].baseline}"
        panels.append(rows(task, lines, axis=axis, description=said, line=(0.0, here[0].baseline), far=math.inf))
    paired = "paired by restart" if all(one.paired for one in comparisons) else "not paired where seeds are not shared"
    return chart(
        "differences",
        f"Differences from {comparisons[0].baseline}",
        f"Differences of the means, {paired}, with their intervals where no run failed. A mark is filled where the "
        "permutation test shows a difference after correction, hollow where it does not.",
        panels,
    )


def best_of(cells: Sequence[Cell], labels: Labels) -> Chart | None:
    """The expected best score of k restarts; fewer than five say nothing."""
    panels = []
    for task, here, name in _panels([cell for cell in cells if len(cell.best_of) >= _FEWEST_BEST], labels):
        text = Scores(score for cell in here for score in cell.best_of)
        lines = [
            Curve(
                look=labels.looks[cell.method], x=tuple(float(k + 1) for k in range(len(cell.best_of))), y=cell.best_of
            )
            for cell in here
        ]
        said = "; ".join(
            f"{name(cell)}: {text.value(cell.best_of[0])} of one, {text.value(cell.best_of[-1])} of {cell.n}"
            for cell in here
        )
        panels.append(curves(task, lines, axis="restarts k", value=here[0].metric, description=said))
    return chart(
        "best-of",
        "Best of k restarts",
        "What the best of k restarts scores on average, estimated from all of them. A maximum over more "
        "restarts is higher by itself: compare methods at equal k.",
        panels,
        _legend(cells, labels),
    )


def over_steps(cells: Sequence[Cell], of_cell: Runs, labels: Labels, *, losses: bool) -> Chart | None:
    """Every restart in the course of training: its training loss, or its score."""
    course: Course = (lambda run: run.losses) if losses else (lambda run: run.evaluations)
    panels = []
    for task, here, label in _panels(cells, labels):
        lines, said = [], []
        for cell in here:
            threads = [
                tuple((float(step), value) for step, value in course(run) if math.isfinite(value))
                for run in of_cell[cell.key]
                if len(course(run)) > 1
            ]
            threads = [thread for thread in threads if thread]
            if threads:
                ends = [thread[-1][1] for thread in threads]
                said.append(f"{label(cell)}: at the end {number(min(ends), 3)} to {number(max(ends), 3)}")
                lines.append(Curve(look=labels.looks[cell.method], x=(), y=(), threads=tuple(threads)))
        if lines:
            value, chance = ("training loss", None) if losses else (here[0].metric, here[0].chance)
            panels.append(curves(task, lines, axis="optimizer steps", value=value, chance=chance,
                                 description="; ".join(said)))  # fmt: skip
    name, title = ("losses", "Training loss") if losses else ("over-steps", "Score over steps")
    caption = "Each line is a run." + (" A run whose loss does not fall has not learned." if losses else "")
    return chart(name, f"{title} of every restart", caption, panels, _legend(cells, labels))


def by_task(items: Iterable[T]) -> list[tuple[str, list[T]]]:
    """Tasks and what belongs to them, in the order in which they come."""
    found: dict[str, list[T]] = {}
    for item in items:
        found.setdefault(item.task, []).append(item)
    return list(found.items())


def _panels(items: Sequence[T], labels: Labels) -> list[tuple[str, list[T], Callable[[T], str]]]:
    """Title, members and what they are called: a panel for each task and set of factors, or for each task if many."""
    places: dict[str, list[T]] = {}
    for item in items:
        places.setdefault(labels.place(item), []).append(item)
    if len(places) <= _MOST_PANELS:
        return [(title, here, lambda item: item.method) for title, here in places.items()]
    return [(task, here, labels.of) for task, here in by_task(items)]


def _legend(items: Iterable[Placed], labels: Labels) -> Looks:
    return {item.method: labels.looks[item.method] for item in items}


def chart(name: str, title: str, caption: str, panels: Sequence[Panel], legend: Looks | None = None) -> Chart | None:
    """The chart; None without panels."""
    return Chart(name=name, title=title, caption=caption, panels=tuple(panels), legend=legend or {}) if panels else None


def dot(run: Run, x: float, y: float, text: Scores) -> Dot:
    """A run, with what is said of it when it is pointed at."""
    ended = f", {run.status}" if run.status != "finished" else ", failed" if run.failed else ""
    return Dot(x, y, run.failed, f"{run.label}, restart {run.restart}: {text.value(run.counted)}{ended}")
