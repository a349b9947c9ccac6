"""The charts of a report: which panels there are, with which values, and how each reads in words.

It computes no statistics: all values are in the summary. A chart without data is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from mixout.study.analysis.across import Sweep, front
from mixout.study.analysis.cells import Cell
from mixout.study.analysis.compare import Comparison
from mixout.study.analysis.runs import CellKey, Placed, Run, grouped, if_one, spoken
from mixout.study.analysis.words import Scores, compact, interval, number
from mixout.study.report.canvas import Chart, Dot, Labels, Look, Panel
from mixout.study.report.draw import Curve, Row, curves, rows

T = TypeVar("T", bound=Placed)
Runs = Mapping[CellKey, Sequence[Run]]
Looks = dict[str, Look]

_FEWEST_BEST, _FEWEST_P, _MOST_PANELS = 5, 3, 8
# Shares of an axis: the largest gap between lines at one value, a letter of a value's name, and between two names.
_SHIFT, _LETTER, _SPACE = 0.014, 0.022, 0.02
# Values that are farther apart than this would crowd at the left end of a linear axis.
_WIDE = 8.0
_DOTS = "Each dot is a run, each cross a failed one"


def scores(cells: Sequence[Cell], of_cell: Runs, labels: Labels) -> Chart | None:
    """The scores of all restarts, the highest mean first."""
    panels = []
    for task, members, name in _panels(cells, labels):
        text = Scores(score for cell in members for score in cell.scores)
        lines = []
        for cell in sorted(members, key=lambda cell: math.inf if cell.mean is None else -cell.mean):
            note = text.value(cell.mean) + (f", {cell.failed} of {cell.runs} failed" if cell.failed else "")
            words = f"mean {note}, interval {interval(cell.mean_low, cell.mean_high, text.digits)}"
            dots = tuple(_dot(run, run.counted, 0.0, text) for run in of_cell[cell.key])
            lines.append(Row(name(cell), labels.looks[cell.method], words, note, cell.mean, cell.interval, dots))
        chance = if_one(cell.chance for cell in members)
        panels.append(rows(task, lines, axis=members[0].metric, line=(chance, "chance")))
    caption = (
        f"{_DOTS}. The diamond is the mean, the bar its 95 % interval over restarts, where none failed. "
        "Chance is the score of a constant answer; it is left out where it lies far below."
    )
    return _chart("scores", "Every restart", caption, panels)


def differences(comparisons: Sequence[Comparison], labels: Labels) -> Chart | None:
    """Each method against the baseline, the largest difference first."""
    panels = []
    for task, members, name in _panels(comparisons, labels):
        text = Scores(score for c in members for score in (c.mean, c.baseline_mean))
        lines = []
        for c in sorted(members, key=lambda c: -c.difference):
            note = text.difference(c.difference)
            note += f" ({interval(*c.interval, text.digits, sign=True)})" if c.interval else ""
            words = note if c.shown else f"{note}, not shown"
            look = labels.looks[c.method]
            lines.append(Row(name(c), look, words, note, c.difference, c.interval, sure=c.shown))
        axis = f"{members[0].metric}, difference from {members[0].baseline}"
        panels.append(rows(task, lines, axis=axis, line=(0.0, members[0].baseline), far=math.inf))
    paired = "paired by restart" if all(c.paired for c in comparisons) else "not paired where seeds are not shared"
    baseline = comparisons[0].baseline if comparisons else ""
    caption = (
        f"Differences of the means, {paired}, with their intervals where no run failed. A mark is filled where the "
        "permutation test shows a difference after correction, hollow where it does not."
    )
    return _chart("differences", f"Differences from {baseline}", caption, panels)


def best_of(cells: Sequence[Cell], labels: Labels) -> Chart | None:
    """The expected best score of k restarts; none for fewer than five."""
    panels = []
    for task, members, name in _panels([cell for cell in cells if len(cell.best_of) >= _FEWEST_BEST], labels):
        text = Scores(score for cell in members for score in cell.best_of)
        lines = []
        for cell in members:
            words = f"{name(cell)}: {text.value(cell.best_of[0])} of one, {text.value(cell.best_of[-1])} of {cell.n}"
            lines.append(Curve(labels.looks[cell.method], words, x=range(1, cell.n + 1), y=cell.best_of))
        panels.append(curves(task, lines, axis="restarts k", value=members[0].metric))
    caption = (
        "What the best of k restarts scores on average, estimated from all of them. A maximum over more "
        "restarts is higher by itself: compare methods at equal k."
    )
    return _chart("best-of", "Best of k restarts", caption, panels, labels.looks)


def over_steps(cells: Sequence[Cell], of_cell: Runs, labels: Labels, *, losses: bool) -> Chart | None:
    """Every restart in the course of training: its training loss, or its score."""
    panels = []
    for task, members, name in _panels(cells, labels):
        lines = []
        for cell in members:
            logs = (run.losses if losses else run.evaluations for run in of_cell[cell.key])
            threads = [[(step, y) for step, y in thread if math.isfinite(y)] for thread in logs if len(thread) > 1]
            threads = [thread for thread in threads if thread]
            if threads:
                ends = [thread[-1][1] for thread in threads]
                words = f"{name(cell)}: at the end {number(min(ends), 3)} to {number(max(ends), 3)}"
                lines.append(Curve(labels.looks[cell.method], words, threads=threads))
        if lines:
            value = "training loss" if losses else members[0].metric
            chance = None if losses else if_one(cell.chance for cell in members)
            panels.append(curves(task, lines, axis="optimizer steps", value=value, chance=chance))
    file, title = ("losses", "Training loss") if losses else ("over-steps", "Score over steps")
    caption = "Each line is a run." + (" A run whose loss does not fall has not learned." if losses else "")
    return _chart(file, f"{title} of every restart", caption, panels, labels.looks)


def over_p(doses: Sequence[Sweep], of_cell: Runs, looks: Looks) -> Chart | None:
    """Scores against p, as in the paper's figure 4, for methods with three values or more."""
    # A family has the look of the last of its members.
    family_looks = looks | {dose.method: looks[dose.cells[-1].method] for dose in doses}
    return _over("over-p", [dose for dose in doses if len(dose.values) >= _FEWEST_P], of_cell, family_looks)


def over_factors(sweeps: Sequence[Sweep], of_cell: Runs, looks: Looks) -> list[Chart]:
    """For each factor the scores over its values."""
    charts = []
    for index, (factor, factor_sweeps) in enumerate(grouped(sweeps, lambda sweep: sweep.factor).items(), start=1):
        # In a table of scores a factor may have a name that is not valid for a file.
        name = f"factor-{index}-{re.sub('[^A-Za-z0-9_]+', '-', factor)}"
        charts.append(_over(name, factor_sweeps, of_cell, looks))
    return [chart for chart in charts if chart is not None]


def _over(name: str, sweeps: Sequence[Sweep], of_cell: Runs, looks: Looks) -> Chart | None:
    if not sweeps:
        return None
    factor, labels = spoken(sweeps[0].factor), Labels(sweeps, looks)
    axis = _Axis([value for sweep in sweeps for value in sweep.values])
    panels = []
    for task, task_sweeps in grouped(sweeps, lambda sweep: sweep.task).items():
        shown = [sweep for sweep in task_sweeps if any(cell.mean is not None for cell in sweep.cells)]
        text = Scores(cell.mean or 0.0 for sweep in shown for cell in sweep.cells)
        lines = []
        for index, sweep in enumerate(shown):
            pairs = [(v, cell) for v, cell in zip(sweep.values, sweep.cells, strict=True) if cell.mean is not None]
            xs = [axis.beside(value, index, len(shown)) for value, _ in pairs]
            dots = [_dot(run, x, run.counted, text) for x, (_, c) in zip(xs, pairs, strict=True)
                    for run in of_cell[c.key]]  # fmt: skip
            means = ", ".join(f"{axis.names[value]} {text.value(cell.mean)}" for value, cell in pairs)
            words = f"mean at each {factor}: {means}"
            lines.append(_means(labels, sweep, words, xs, [cell for _, cell in pairs], dots))
        if lines:
            metric, chance = shown[0].cells[0].metric, if_one(cell.chance for sweep in shown for cell in sweep.cells)
            panels.append(
                curves(task, lines, axis=factor, value=metric, chance=chance, ticks=axis.ticks(), log=axis.log)
            )
    caption = (
        f"{_DOTS}. Lines join the means, bars are their 95 % intervals where no run failed. "
        "Runs of one value are drawn side by side."
    )
    return _chart(name, f"Score over {factor}", caption, panels, labels.legend)


def tradeoff(cells: Sequence[Cell], sweeps: Sequence[Sweep], of_cell: Runs, looks: Looks) -> Chart | None:
    """Score over what is kept, with the front; along the values of the first numeric factor where there is one."""
    along = [sweep for sweep in sweeps if sweep.factor == sweeps[0].factor]
    # Without a factor each cell is a line of one point.
    drawn = along or [Sweep(**cell.key.named, factor="", values=(), cells=(cell,)) for cell in cells]
    labels = Labels(drawn, looks)
    panels, fronts = [], []
    for task, on_task in grouped(cells, lambda cell: cell.task).items():
        best = front(on_task)
        fronts += [f"{task}: {', '.join(cell.label for cell in best)}"] if best else []
        lines, chances = [], set()
        text = Scores(score for cell in on_task for score in cell.scores)
        for line in drawn:
            shown = [cell for cell in line.cells if cell.original is not None and cell.mean is not None]
            if line.task != task or not shown:
                continue
            dots = [_dot(run, run.original, run.counted, text) for cell in shown for run in of_cell[cell.key]
                    if run.original is not None]  # fmt: skip
            means = ", ".join(f"{text.value(cell.mean)} at {number(cell.original, 3)}" for cell in shown)
            xs = [cell.original or 0.0 for cell in shown]
            lines.append(_means(labels, line, f"mean score at what is kept: {means}", xs, shown, dots))
            chances |= {cell.chance for cell in shown}
        if lines:
            metric = on_task[0].metric
            # A mean log-likelihood, or a cosine, which can be a little below 0 too.
            of_text = metric in ("log_likelihood", "perplexity") or min(x for line in lines for x in line.x) < -1
            axis = "log-likelihood of earlier text" if of_text else "similarity to before, 1: nothing forgotten"
            behind = [(cell.original or 0.0, cell.mean or 0.0) for cell in best]
            panels.append(curves(task, lines, axis=axis, value=metric, chance=if_one(chances), behind=behind))
    joined = f"Lines join the means along {spoken(along[0].factor)}" if along else "Larger marks are the means"
    caption = (
        "Up and to the right is better. The horizontal axis shows what the model still knows: its score on text of the "
        "domain that it knew before training. For an encoder this is the cosine of its mean hidden states before and "
        f"after, for a language model the log-likelihood. {_DOTS}. {joined}. The broad grey line is the front: no "
        f"other mean is higher and keeps more. On it, from the highest score: {'; '.join(fronts)}. With few runs, what "
        "lies near the front may belong to it as well."
    )
    return _chart("tradeoff", "Score against what is kept", caption, panels, labels.legend)


def _means(
    labels: Labels, item: Placed, words: str, x: Sequence[float], cells: Sequence[Cell], dots: Sequence[Dot]
) -> Curve:
    """The line of an item of these labels through the means of its cells."""
    means, intervals = [cell.mean or 0.0 for cell in cells], [cell.interval for cell in cells]
    label = labels.of(item)
    return Curve(labels.legend[label], f"{label}, {words}", x, means, intervals, dots=dots)


class _Axis:
    """Positions of a factor's values on the axis, side by side for several lines, and their names."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = sorted(set(values))
        self.names = dict(zip(self.values, compact(self.values), strict=True))
        self.log = self.values[0] > 0 and self.values[-1] >= _WIDE * self.values[0]
        self._places = [math.log10(value) if self.log else value for value in self.values]
        self._length = self._places[-1] - self._places[0]

    def beside(self, value: float, line: int, lines: int) -> float:
        """The position at which the line draws this value: no closer to another value than to its own."""
        gap = min(b - a for a, b in pairwise(self._places))
        step = min(_SHIFT * self._length, gap / 2 / lines)
        x = self._places[self.values.index(value)] + step * (line - (lines - 1) / 2)
        return float(10**x) if self.log else x

    def ticks(self) -> dict[float, str]:
        """The values with a name, without those whose name would overlap the one before, or the last one."""
        kept: dict[float, str] = {}
        end = -math.inf
        for value, x in zip(self.values, self._places, strict=True):
            half = self._length * _LETTER * len(self.names[value]) / 2
            if x - half < end and value == self.values[-1] and len(kept) > 1:
                kept.popitem()
                end = x - half
            if x - half >= end:
                kept[value] = self.names[value]
                end = x + half + self._length * _SPACE
        return kept


def _panels(items: Sequence[T], labels: Labels) -> list[tuple[str, list[T], Callable[[T], str]]]:
    """Title, members and their label: a panel for each task and set of factors, or for each task if there are many."""
    places = grouped(items, labels.place)
    if len(places) <= _MOST_PANELS:
        return [(title, members, lambda item: item.method) for title, members in places.items()]
    return [(task, members, labels.of) for task, members in grouped(items, lambda item: item.task).items()]


def _chart(name: str, title: str, caption: str, panels: Sequence[Panel], legend: Looks | None = None) -> Chart | None:
    return Chart(name=name, title=title, caption=caption, panels=tuple(panels), legend=legend or {}) if panels else None


def _dot(run: Run, x: float, y: float, text: Scores) -> Dot:
    """A run, with the text that is shown when the pointer is on it."""
    ended = f", {run.status}" if run.status != "finished" else ", failed" if run.failed else ""
    return Dot(x, y, run.failed, f"{run.label}, restart {run.restart}: {text.value(run.counted)}{ended}")
