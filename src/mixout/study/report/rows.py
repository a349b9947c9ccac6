"""Panels with a row for each method: every restart's score, and differences to a baseline.

Rows, not columns: labels as long as ``mixout(0.7)+anchor_decay(radius=0.005)`` stand above their row and stay
readable on a phone, and eleven of them make a taller panel, not a narrower one. It computes no statistics.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from mixout.finetune.extras import needs
from mixout.study.report.canvas import Panel
from mixout.study.report.looks import INK, MUTED, PAPER, SMALL, TEXT, WIDTH, look

with needs("demo", "figures"):
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

_LINE, _SWARM, _BAR, _SPACE = 13.0, 20.0, 9.0, 9.0
_DOT, _MANY = 5.0, 200
_LEFT, _HEAD = 6.0, 16.0
_LETTERS = 50


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A method's restarts on one task.

    Args:
        number: of the method's look.
        label: the method.
        note: short text at the right of the label.
        scores: of the restarts.
        failed: for each score, whether the run counts as failed.
        mean: None where there is none.
        low: of the mean's interval; None where there is none.
        high: of the mean's interval.
    """

    number: int
    label: str
    note: str
    scores: tuple[float, ...]
    failed: tuple[bool, ...]
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval.

    Args:
        number: of the method's look.
        label: what it is of.
        note: the number and its interval as text.
        value: the estimate.
        low: of the interval; None where there is none.
        high: of the interval.
        sure: drawn filled instead of hollow.
    """

    number: int
    label: str
    note: str
    value: float
    low: float | None
    high: float | None
    sure: bool = True


def strips(title: str, rows: Sequence[Strip], *, axis: str, chance: float | None, description: str) -> Panel:
    """Every restart a dot, a cross where it failed; below them mean and interval; chance as a dashed line."""
    places = _Places([row.label for row in rows], _LETTERS - 12, _SWARM + _BAR)
    seen = [x for row in rows for x in (*row.scores, row.mean, row.low, row.high) if _known(x)]
    near = chance is not None and bool(seen) and chance >= min(seen) - 2 * (max(seen) - min(seen))
    limits = _limits([*seen, chance] if near and chance is not None else seen)

    def draw(axes: Axes) -> None:
        _prepare(axes, places, limits, axis)
        scale = (WIDTH - _LEFT - 8) / (limits[1] - limits[0])
        for row, top, lines in zip(rows, places.tops, places.lines, strict=True):
            _write(axes, top, lines, row.note)
            middle = top + _LINE * len(lines) + _SWARM / 2
            heights = _swarm([score * scale for score in row.scores])
            _dots(axes, row, [middle + height for height in heights])
            _interval(axes, row.mean, row.low, row.high, middle + _SWARM / 2 + _BAR / 2 + 1)
        if near and chance is not None:
            _line(axes, chance, "chance", limits)

    return Panel(title=title, description=description, height=places.height, draw=draw, left=_LEFT, top=_HEAD)


def forest(
    title: str, rows: Sequence[Estimate], *, axis: str, description: str, line: tuple[float, str] | None = (0.0, "")
) -> Panel:
    """An estimate and its interval a row, against a line of no difference."""
    places = _Places([row.label for row in rows], _LETTERS - 22, _BAR + 6)
    seen = [x for row in rows for x in (row.value, row.low, row.high) if _known(x)]
    limits = _limits(seen if line is None else [*seen, line[0]])

    def draw(axes: Axes) -> None:
        _prepare(axes, places, limits, axis)
        if line is not None:
            _line(axes, line[0], line[1], limits)
        for row, top, lines in zip(rows, places.tops, places.lines, strict=True):
            _write(axes, top, lines, row.note)
            y = top + _LINE * len(lines) + 8
            color = look(row.number).color
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [y, y], color=color, linewidth=2.2, solid_capstyle="round")
            axes.plot(
                [row.value], [y], look(row.number).mark, markersize=7.5, markeredgewidth=1.6,
                markeredgecolor=color, markerfacecolor=color if row.sure else PAPER,
            )  # fmt: skip

    return Panel(title=title, description=description, height=places.height, draw=draw, left=_LEFT, top=_HEAD)


class _Places:
    """Where each row begins, in points from the top, and the lines of its label."""

    def __init__(self, labels: Sequence[str], letters: int, body: float) -> None:
        self.lines = [_wrap(label, letters) for label in labels]
        self.tops: list[float] = []
        self.height = 6.0
        for lines in self.lines:
            self.tops.append(self.height)
            self.height += _LINE * len(lines) + body + _SPACE


def _known(x: float | None) -> TypeGuard[float]:
    return x is not None and math.isfinite(x)


def _wrap(label: str, letters: int) -> list[str]:
    """The label in lines, broken after ``+``, commas and spaces where that is possible."""
    lines = [""]
    for part in re.findall(rf"[^+,\s]{{1,{letters}}}[+,\s]*|[+,\s]+", label):
        if len(lines[-1]) + len(part.rstrip()) > letters and lines[-1]:
            lines.append("")
        lines[-1] += part
    return [line.strip() for line in lines]


def _limits(seen: Sequence[float]) -> tuple[float, float]:
    low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
    # Equal scores still need an axis; dots must not be cut at its ends.
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _prepare(axes: Axes, places: _Places, limits: tuple[float, float], axis: str) -> None:
    axes.set_xlim(*limits)
    axes.set_ylim(places.height, 0)
    axes.yaxis.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(axis, labelpad=3)


def _write(axes: Axes, top: float, lines: Sequence[str], note: str) -> None:
    left, right = axes.get_xlim()
    # Lines of the grid end at the text.
    behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
    for number, line in enumerate(lines):
        axes.text(left, top + _LINE * number + 9, line, size=TEXT, color=INK, bbox=behind)
    axes.text(right, top + 9, note, size=SMALL, color=MUTED, ha="right", bbox=behind)


def _swarm(x: Sequence[float]) -> list[float]:
    """Heights, symmetric about 0, that keep dots at ``x`` (in points) apart; what does not fit is squeezed."""
    room = (_SWARM - _DOT) / 2
    if len(x) > _MANY:  # the dots overlap in any case: spread evenly, by the golden ratio
        return [room * (2 * (0.618034 * place % 1) - 1) for place in range(len(x))]
    placed: list[tuple[float, float]] = []
    heights = [0.0] * len(x)
    for index in sorted(range(len(x)), key=lambda index: x[index]):
        if not math.isfinite(x[index]):
            continue
        near = [y for other, y in placed if abs(other - x[index]) < _DOT]
        step = 0
        while any(abs(_height(step) - y) < _DOT for y in near):
            step += 1
        heights[index] = _height(step)
        placed.append((x[index], heights[index]))
    reach = max((abs(height) for height in heights), default=0.0)
    return [height * min(1.0, room / reach) if reach else 0.0 for height in heights]


def _height(step: int) -> float:
    """0, then above and below by turns, a step further each time."""
    return (1 if step % 2 else -1) * math.ceil(step / 2) * (_DOT + 0.01)


def _dots(axes: Axes, row: Strip, heights: Sequence[float]) -> None:
    color = look(row.number).color
    for failed, mark, size in ((False, "o", _DOT), (True, "x", _DOT - 0.5)):
        kept = [
            (score, y)
            for score, y, bad in zip(row.scores, heights, row.failed, strict=True)
            if bad == failed and math.isfinite(score)
        ]
        if kept:
            x, y = zip(*kept, strict=True)
            axes.plot(
                x, y, mark, color=color, markersize=size, alpha=0.85,
                markeredgewidth=1.2 if failed else 0, clip_on=False,
            )  # fmt: skip


def _interval(axes: Axes, mean: float | None, low: float | None, high: float | None, y: float) -> None:
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=INK, linewidth=1.8, solid_capstyle="round")
    if mean is not None:
        axes.plot([mean], [y], "D", color=INK, markersize=5.5, markeredgewidth=0)


def _line(axes: Axes, x: float, name: str, limits: tuple[float, float]) -> None:
    axes.axvline(x, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)))
    share = (x - limits[0]) / (limits[1] - limits[0])
    side = "left" if share < 0.1 else "right" if share > 0.9 else "center"
    axes.text(x, -4, name, size=SMALL, color=MUTED, ha=side)
