"""The charts over a numeric factor, a line for each method and set of other factors; and score against what is kept.

It computes no statistics: what is drawn stands in the summary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from mixout.study.analysis.cells import Cell
from mixout.study.analysis.curves import Sweep
from mixout.study.analysis.runs import CellKey, Run, by_cell
from mixout.study.report.canvas import Chart
from mixout.study.report.curves import Curve, curves
from mixout.study.report.row_charts import chart, key, tasks
from mixout.study.report.wording import Label, Labels, Scores, compact, number

# Values that are further apart than this would crowd at the left end of a linear axis.
_WIDE = 8.0
# Shares of the axis: between lines at one value at most, a letter of a value's name, and between two names.
_SHIFT, _LETTER, _SPACE = 0.014, 0.022, 0.02
_SCORES = (
    "Each dot is a run, each cross a failed one: it ended at or below chance, collapsed or did not finish. Lines join "
    "the means, bars are their t intervals (95 %). What is compared at one value stands side by side."
)
_TRADEOFF = (
    "What is gained against what is lost: the score on the task over the score on text of the domain that the model "
    "knew before, of an encoder the cosine of its mean hidden states before and after, of a language model the "
    "log-likelihood. Up and to the right is better. Each dot is a run, each cross a failed one; {lines}, bars are the "
    "scores' t intervals (95 %)."
)
_ORIGINAL = (
    "What is kept of what the model knew: its score on text of the domain that it knew before, of an encoder the "
    "cosine of its mean hidden states before and after, of a language model the log-likelihood. Each dot is a run, "
    "each cross one that failed on its task. Lines join the means."
)


def over_factors(sweeps: Sequence[Sweep], runs: Sequence[Run]) -> list[Chart | None]:
    """For each factor the scores over its values, and what is left of the original domain."""
    of_cell = by_cell(runs)
    charts = []
    for place, factor in enumerate(dict.fromkeys(sweep.factor for sweep in sweeps), start=1):
        here = [sweep for sweep in sweeps if sweep.factor == factor]
        # A factor of a table made elsewhere may have a name that no file can have.
        name = f"factor-{place}-{re.sub('[^A-Za-z0-9_]+', '-', factor)}"
        charts += [
            _chart(name, here, of_cell, original=False),
            _chart(f"{name}-original", here, of_cell, original=True),
        ]
    return charts


class _Axis:
    """Where the values of a factor stand, side by side for several lines, and what they are called there."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = sorted(set(values))
        self.names = dict(zip(self.values, compact(self.values), strict=True))
        self.log = self.values[0] > 0 and self.values[-1] >= _WIDE * self.values[0]
        self._places = [self._place(value) for value in self.values]
        self._length = self._places[-1] - self._places[0]

    def _place(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def beside(self, value: float, line: int, lines: int) -> float:
        """Where the line draws this value: no closer to another value than to its own."""
        gap = min(b - a for a, b in zip(self._places, self._places[1:], strict=False))
        step = min(_SHIFT * self._length, gap / 2 / lines)
        place = self._place(value) + step * (line - (lines - 1) / 2)
        return float(10**place) if self.log else place

    def ticks(self) -> dict[float, str]:
        """The values with a name; without those whose name would run into the one before."""
        kept: dict[float, str] = {}
        end = -math.inf
        for value, place in zip(self.values, self._places, strict=True):
            name = self.names[value]
            half = self._length * _LETTER * len(name) / 2
            if place - half >= end:
                kept[value] = name
                end = place + half + self._length * _SPACE
        return kept


def _chart(name: str, sweeps: Sequence[Sweep], of_cell: Mapping[CellKey, list[Run]], *, original: bool) -> Chart | None:
    factor = sweeps[0].factor
    axis = _Axis([value for sweep in sweeps for value in sweep.values])
    labels = Labels(sweeps)
    panels = []
    for task in tasks(sweeps):
        here = [one for one in sweeps if one.task == task and any(_mean(c, original) is not None for c in one.cells)]
        text = Scores(_mean(cell, original) or 0.0 for one in here for cell in one.cells)
        lines, said = [], []
        for at, one in enumerate(here):
            label = labels.of(one)
            known = [
                (v, cell) for v, cell in zip(one.values, one.cells, strict=True) if _mean(cell, original) is not None
            ]
            places = [axis.beside(value, at, len(here)) for value, _ in known]
            lines.append(_line(label, places, [cell for _, cell in known], of_cell, original=original))
            means = ", ".join(f"{axis.names[value]} {text.value(_mean(cell, original))}" for value, cell in known)
            said.append(f"{label.text}, mean at each {factor}: {means}")
        if lines:
            value = "original domain" if original else here[0].cells[0].metric
            panels.append(
                curves(task, lines, axis=factor, value=value, description="; ".join(said), ticks=axis.ticks(),
                       chance=None if original else _chance(here), log=axis.log)
            )  # fmt: skip
    title, caption = ("Original domain", _ORIGINAL) if original else ("Score", _SCORES)
    return chart(name, f"{title} over {factor}", caption, panels, labels.all())


def _line(
    label: Label,
    places: Sequence[float],
    cells: Sequence[Cell],
    of_cell: Mapping[CellKey, list[Run]],
    *,
    original: bool,
) -> Curve:
    dots, failed = [], []
    for x, cell in zip(places, cells, strict=True):
        for run in of_cell[key(cell)]:
            y = run.original if original else run.counted
            if y is not None and math.isfinite(y):
                dots.append((x, y))
                failed.append(run.failed)
    return Curve(
        number=label.number,
        label=label.text,
        x=tuple(places),
        y=tuple(_mean(cell, original) or 0.0 for cell in cells),
        low=() if original else tuple(cell.mean_low for cell in cells),
        high=() if original else tuple(cell.mean_high for cell in cells),
        dots=tuple(dots),
        failed=tuple(failed),
    )


def _mean(cell: Cell, original: bool) -> float | None:
    return cell.original if original else cell.mean


def _chance(sweeps: Sequence[Sweep]) -> float | None:
    """Where it is one for all: of a language model it may follow from the factor."""
    seen = {cell.chance for sweep in sweeps for cell in sweep.cells}
    return seen.pop() if len(seen) == 1 else None


def tradeoff(cells: Sequence[Cell], sweeps: Sequence[Sweep], runs: Sequence[Run]) -> Chart | None:
    """Score over what is kept; along the values of the first numeric factor where there is one."""
    of_cell = by_cell(runs)
    lines = [sweep for sweep in sweeps if sweep.factor == sweeps[0].factor]
    labels = Labels(lines or cells)
    groups = [(labels.of(sweep), sweep.task, sweep.cells) for sweep in lines] or [
        (labels.of(cell), cell.task, (cell,)) for cell in cells
    ]
    panels = []
    for task in tasks(cells):
        here = [(label, _placed(members)) for label, where, members in groups if where == task]
        drawn = [(label, _dotted(label, members, of_cell), members) for label, members in here if members]
        if drawn:
            first = drawn[0][2][0]
            chances = {cell.chance for _, _, members in drawn for cell in members}
            said = "; ".join(_in_words(label, members) for label, _, members in drawn)
            panels.append(
                curves(task, [line for _, line, _ in drawn], axis="original domain", value=first.metric,
                       description=said, chance=chances.pop() if len(chances) == 1 else None)
            )  # fmt: skip
    joined = f"lines join the means along {lines[0].factor}" if lines else "larger marks are the means"
    return chart("tradeoff", "Score against what is kept", _TRADEOFF.format(lines=joined), panels, labels.all())


def _placed(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.original is not None and cell.mean is not None]


def _dotted(label: Label, cells: Sequence[Cell], of_cell: Mapping[CellKey, list[Run]]) -> Curve:
    dots = [
        (run.original, run.counted, run.failed)
        for cell in cells
        for run in of_cell[key(cell)]
        if run.original is not None and math.isfinite(run.original) and math.isfinite(run.counted)
    ]
    return Curve(
        number=label.number,
        label=label.text,
        x=tuple(cell.original or 0.0 for cell in cells),
        y=tuple(cell.mean or 0.0 for cell in cells),
        low=tuple(cell.mean_low for cell in cells),
        high=tuple(cell.mean_high for cell in cells),
        dots=tuple((x, y) for x, y, _ in dots),
        failed=tuple(failed for _, _, failed in dots),
    )


def _in_words(label: Label, cells: Sequence[Cell]) -> str:
    text = Scores(cell.mean or 0.0 for cell in cells)
    means = ", ".join(f"{text.value(cell.mean)} at {number(cell.original, 3)}" for cell in cells)
    return f"{label.text}, mean score at what is kept: {means}"
