"""The charts over p and over numeric factors, a line for each method; and score against what is kept.

They compute no statistics: what is drawn stands in the summary. A chart without data is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from mixout.study.analysis.across import Sweep
from mixout.study.analysis.cells import Cell
from mixout.study.analysis.runs import if_one
from mixout.study.analysis.words import Scores, compact, number
from mixout.study.report.canvas import Chart
from mixout.study.report.charts import DOTS, Looks, Runs, by_task, chart, dot
from mixout.study.report.draw import Curve, curves
from mixout.study.report.theme import Labels, Look

# Shares of an axis: between lines at one value at most, a letter of a value's name, and between two names.
_SHIFT, _LETTER, _SPACE = 0.014, 0.022, 0.02
# Values that are farther apart than this would crowd at the left end of a linear axis.
_WIDE = 8.0
_FEWEST_P = 3
_KEPT = (
    "what the model still knows: its score on text of the domain that it knew before training. Of an encoder that is "
    "the cosine of its mean hidden states before and after, of a language model the log-likelihood"
)


def over_p(doses: Sequence[Sweep], of_cell: Runs, looks: Looks) -> Chart | None:
    """Scores against p, as in the paper's figure 4; two values are no curve."""
    found = [dose for dose in doses if len(dose.values) >= _FEWEST_P]
    # A family looks like the last of its members.
    known = looks | {dose.method: looks[dose.cells[-1].method] for dose in doses}
    return _over("over-p", found, of_cell, known, original=False)


def over_factors(sweeps: Sequence[Sweep], of_cell: Runs, looks: Looks) -> list[Chart]:
    """For each factor the scores over its values, and what is left of the original domain."""
    charts = []
    for at, factor in enumerate(dict.fromkeys(sweep.factor for sweep in sweeps), start=1):
        here = [sweep for sweep in sweeps if sweep.factor == factor]
        # A factor of a table made elsewhere may have a name that no file can have.
        name = f"factor-{at}-{re.sub('[^A-Za-z0-9_]+', '-', factor)}"
        charts.append(_over(name, here, of_cell, looks, original=False))
        charts.append(_over(f"{name}-original", here, of_cell, looks, original=True))
    return [chart for chart in charts if chart is not None]


def _over(name: str, sweeps: Sequence[Sweep], of_cell: Runs, looks: Looks, *, original: bool) -> Chart | None:
    if not sweeps:
        return None
    factor, labels = sweeps[0].factor, Labels(sweeps, looks)
    axis = _Axis([value for sweep in sweeps for value in sweep.values])
    panels = []
    for task, every in by_task(sweeps):
        here = [one for one in every if any(_mean(cell, original) is not None for cell in one.cells)]
        text = Scores(_mean(cell, original) or 0.0 for one in here for cell in one.cells)
        lines, said = [], []
        for at, one in enumerate(here):
            known = [(v, c) for v, c in zip(one.values, one.cells, strict=True) if _mean(c, original) is not None]
            points = [(axis.beside(value, at, len(here)), _mean(cell, original) or 0.0, cell) for value, cell in known]
            lines.append(_curve(labels.look(one), points, of_cell, text, kept=original))
            means = ", ".join(f"{axis.names[value]} {text.value(_mean(cell, original))}" for value, cell in known)
            said.append(f"{labels.of(one)}, mean at each {factor}: {means}")
        if lines:
            chance = None if original else if_one(cell.chance for one in here for cell in one.cells)
            panels.append(
                curves(
                    task, lines, axis=factor, value=_kept(here[0].cells) if original else here[0].cells[0].metric,
                    description="; ".join(said), ticks=axis.ticks(), log=axis.log,
                    chance=chance,
                )
            )  # fmt: skip
    joined = (
        "Lines join the means"
        if original
        else "Lines join the means, bars are their 95 % intervals where no run failed"
    )
    kept = f"On the vertical axis: {_KEPT}. " if original else ""
    title = f"{'What is kept' if original else 'Score'} over {factor}"
    caption = f"{kept}{DOTS}. {joined}. What is compared at one value stands side by side."
    return chart(name, title, caption, panels, labels.all())


def tradeoff(cells: Sequence[Cell], sweeps: Sequence[Sweep], of_cell: Runs, looks: Looks) -> Chart | None:
    """Score over what is kept; along the values of the first numeric factor where there is one."""
    along = [sweep for sweep in sweeps if sweep.factor == sweeps[0].factor]
    labels = Labels(along or cells, looks)
    groups: list[tuple[Sweep | Cell, Sequence[Cell]]] = [(one, one.cells) for one in along] or [
        (cell, (cell,)) for cell in cells
    ]
    panels = []
    for task in dict.fromkeys(cell.task for cell in cells):
        lines, said, chances = [], [], set()
        text = Scores(score for cell in cells if cell.task == task for score in cell.scores)
        for item, every in groups:
            members = [cell for cell in every if cell.original is not None and cell.mean is not None]
            if item.task != task or not members:
                continue
            points = [(cell.original or 0.0, cell.mean or 0.0, cell) for cell in members]
            lines.append(_curve(labels.look(item), points, of_cell, text, over_kept=True))
            means = ", ".join(f"{text.value(cell.mean)} at {number(cell.original, 3)}" for cell in members)
            said.append(f"{labels.of(item)}, mean score at what is kept: {means}")
            chances |= {cell.chance for cell in members}
        if lines:
            metric = next(cell.metric for cell in cells if cell.task == task)
            panels.append(
                curves(task, lines, axis=_kept(cells), value=metric, description="; ".join(said),
                       chance=if_one(chances))
            )  # fmt: skip
    joined = f"Lines join the means along {along[0].factor}" if along else "Larger marks are the means"
    caption = f"Up and to the right is better. On the horizontal axis: {_KEPT}. {DOTS}. {joined}."
    return chart("tradeoff", "Score against what is kept", caption, panels, labels.all())


def _curve(
    look: Look,
    points: Sequence[tuple[float, float, Cell]],
    of_cell: Runs,
    text: Scores,
    *,
    kept: bool = False,
    over_kept: bool = False,
) -> Curve:
    """The means at their places, with the runs: their score, or what they have kept, over a value or what is kept."""
    dots = []
    for place, _, cell in points:
        for run in of_cell[cell.key]:
            x, y = run.original if over_kept else place, run.original if kept else run.counted
            dots += [dot(run, x, y, text)] if x is not None and y is not None else []
    return Curve(
        look=look,
        x=tuple(x for x, _, _ in points),
        y=tuple(y for _, y, _ in points),
        low=() if kept else tuple(cell.mean_low for _, _, cell in points),
        high=() if kept else tuple(cell.mean_high for _, _, cell in points),
        dots=tuple(dots),
    )


class _Axis:
    """Where the values of a factor stand, side by side for several lines, and what they are called there."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = sorted(set(values))
        self.names = dict(zip(self.values, compact(self.values), strict=True))
        self.log = self.values[0] > 0 and self.values[-1] >= _WIDE * self.values[0]
        self._places = [math.log10(value) if self.log else value for value in self.values]
        self._length = self._places[-1] - self._places[0]

    def beside(self, value: float, line: int, lines: int) -> float:
        """Where the line draws this value: no closer to another value than to its own."""
        gap = min(b - a for a, b in zip(self._places, self._places[1:], strict=False))
        step = min(_SHIFT * self._length, gap / 2 / lines)
        place = self._places[self.values.index(value)] + step * (line - (lines - 1) / 2)
        return float(10**place) if self.log else place

    def ticks(self) -> dict[float, str]:
        """The values with a name; without those whose name would run into the one before."""
        kept: dict[float, str] = {}
        end = -math.inf
        for value, place in zip(self.values, self._places, strict=True):
            half = self._length * _LETTER * len(self.names[value]) / 2
            if place - half >= end:
                kept[value] = self.names[value]
                end = place + half + self._length * _SPACE
        return kept


def _kept(cells: Sequence[Cell]) -> str:
    """What the score on the original domain is: a cosine, or a mean log-likelihood, which is below 0."""
    known = [cell.original for cell in cells if cell.original is not None]
    return "similarity to before, 1: nothing forgotten" if min(known) > 0 else "log-likelihood of earlier text"


def _mean(cell: Cell, original: bool) -> float | None:
    return cell.original if original else cell.mean
