"""The two kinds of panel: a row for each method, and lines over a common axis. Computes no statistics."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeGuard

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mixout.study.analysis.stats import Interval
from mixout.study.report.canvas import INK, MANY, MUTED, PAPER, RULE, SMALL, TEXT, Dot, Look, Panel

_LINE, _DOTS, _BAR, _SPACE, _DOT, _CROSS = 13.0, 22.0, 9.0, 9.0, 5.0, 9.0
_CURVE = 210.0
_DASHED: dict[str, Any] = {"color": MUTED, "linewidth": 1.1, "linestyle": (0, (4, 3))}


@dataclass(frozen=True)
class Row:
    """A method's runs, or an estimate of it, with an interval."""

    label: str  # the method
    look: Look
    said: str  # its values in words
    note: str  # short text at the right of the label
    value: float | None  # None if there is none
    interval: Interval | None
    dots: tuple[Dot, ...] = ()  # runs, by their x alone
    sure: bool = True  # the mark is filled instead of hollow


@dataclass(frozen=True)
class Curve:
    """One method's line."""

    look: Look
    said: str  # what it shows, in words and numbers
    x: Sequence[float] = ()  # where the marks stand, in the order in which the line joins them
    y: Sequence[float] = ()  # as many
    intervals: Sequence[Interval | None] = ()  # as many; empty without intervals
    threads: Sequence[Sequence[tuple[float, float]]] = ()  # further lines behind it, one a run
    dots: Sequence[Dot] = ()  # single runs


def rows(title: str, rows: Sequence[Row], *, axis: str, line: tuple[float | None, str], far: float = 2.0) -> Panel:
    """A row for each method, from the top: labels stand above their row and stay readable on a phone.

    A dashed line stands at ``line``, unless it lies farther from the runs than ``far`` times their spread.
    """
    values = [x for row in rows for x in (row.value, *(row.interval or ()), *(dot.x for dot in row.dots)) if _known(x)]
    dashed = _near(line[0], values, far)
    low, high = min([*values, *dashed], default=0.0), max([*values, *dashed], default=1.0)
    # Equal scores still need an axis; dots must not be cut at its ends.
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    limits = low - margin, high + margin
    placed: list[tuple[Row, float, float, list[str]]] = []  # row, top, middle of its dots, lines of its label
    height = 6.0
    for row in rows:
        lines = _wrap(row.label, 38 if row.dots else 28)
        top = height + _LINE * len(lines) + 3
        middle = top + _DOTS / 2
        # Spread evenly, by the golden ratio.
        shifts = ((_DOTS - _DOT) * ((0.5 + 0.618034 * number) % 1 - 0.5) for number in range(len(row.dots)))
        row_dots = tuple(replace(dot, y=middle + shift) for dot, shift in zip(row.dots, shifts, strict=True))
        placed.append((replace(row, dots=row_dots), height, middle, lines))
        height = top + (_DOTS if row.dots else 0) + _BAR + _SPACE
    dots = tuple(dot for row, *_ in placed for dot in row.dots)

    def draw(axes: Axes) -> None:
        axes.set_xlim(*limits)
        axes.set_ylim(height, 0)
        axes.yaxis.set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(axis, labelpad=3)
        for x in dashed:
            axes.axvline(x, **_DASHED)
            share = (x - limits[0]) / (limits[1] - limits[0])
            side = "left" if share < 0.3 else "right" if share > 0.7 else "center"
            axes.text(x, -4, line[1], size=SMALL, color=MUTED, ha=side)
        for row, top, middle, lines in placed:
            # Grid lines end at the text.
            behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}
            for line_number, text in enumerate(lines):
                axes.text(limits[0], top + _LINE * line_number + 9, text, size=TEXT, color=INK, bbox=behind)
            axes.text(limits[1], top + 9, row.note, size=SMALL, color=MUTED, ha="right", bbox=behind)
            _scatter(axes, row.dots, row.look.color, bitmap=len(dots) > MANY)
            _interval(axes, row, middle + 5 + (_DOTS / 2 if row.dots else -_DOTS / 2))

    description = "; ".join(f"{row.label}: {row.said}" for row in rows)
    return Panel(title=title, description=description, height=height, draw=draw, dots=dots)


def curves(
    title: str,
    lines: Sequence[Curve],
    *,
    axis: str,
    value: str,
    chance: float | None = None,
    ticks: Mapping[float, str] | None = None,
    log: bool = False,
    behind: Sequence[tuple[float, float]] = (),
) -> Panel:
    """Lines over a common axis, with a dashed one at ``chance`` where it lies near them, and a broad one ``behind``.

    ``ticks`` name places on the horizontal axis instead of numbers; a logarithmic axis needs them.
    """
    dots = tuple(dot for line in lines for dot in line.dots)
    heights = [y for line in lines for y in (*line.y, *chain(*filter(None, line.intervals)))]
    heights += [y for line in lines for thread in line.threads for _, y in thread]
    chance_lines = _near(chance, [y for y in (*heights, *(dot.y for dot in dots)) if _known(y)], 1.0)

    def draw(axes: Axes) -> None:
        axes.set_xlabel(axis, labelpad=3)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel(value, labelpad=4)
        for height in chance_lines:
            axes.axhline(height, **_DASHED, zorder=1.2)
            # The label is at the end that is farther from the lines.
            ends = [line.y[:1] for line in lines], [line.y[-1:] for line in lines]
            first, last = (min((abs(y - height) for ys in end for y in ys if _known(y)), default=0.0) for end in ends)
            edge, shift, side = (0, 2, "left") if first > last else (1, -2, "right")
            axes.annotate("chance", (edge, height), xytext=(shift, 3), xycoords=("axes fraction", "data"), ha=side,
                          textcoords="offset points", size=SMALL, color=MUTED, zorder=1.1)  # fmt: skip
        if log:
            axes.set_xscale("log")
        if behind:
            axes.plot(*zip(*behind, strict=True), color=RULE, linewidth=9, zorder=1.3, solid_capstyle="round")
        for line in lines:
            color = line.look.color
            for thread in line.threads:
                axes.plot(*zip(*thread, strict=True), color=color, linewidth=0.8, alpha=0.45)
            _scatter(axes, line.dots, color, alpha=0.5, bitmap=len(dots) > MANY)
            # Intervals of several methods at one x would cover each other as bands.
            for x, interval in zip(line.x, line.intervals, strict=False):
                if interval is not None:
                    axes.plot([x, x], interval, color=color, linewidth=1.3)
            axes.plot(
                line.x, line.y, color=color, linestyle=line.look.line, linewidth=1.8, marker=line.look.mark,
                markersize=5.5, markeredgewidth=0, markevery=max(1, len(line.x) // 10),
            )  # fmt: skip
        _ticks(axes, lines, ticks)

    description = "; ".join(line.said for line in lines)
    return Panel(title=title, description=description, height=_CURVE, draw=draw, dots=dots, left=42.0, top=8.0)


def _near(value: float | None, others: Sequence[float], far: float) -> list[float]:
    """The value as a list; empty if it is below the others by more than ``far`` times their spread."""
    return [] if value is None or not others or value < min(others) - far * (max(others) - min(others)) else [value]


def _scatter(axes: Axes, dots: Sequence[Dot], color: str, *, alpha: float = 0.8, bitmap: bool) -> None:
    # A cross is larger: it stays visible around the mean of a single failed run.
    for failed, mark, size in ((False, "o", _DOT), (True, "x", _CROSS)):
        kept = [(dot.x, dot.y) for dot in dots if dot.failed == failed and _known(dot.x) and _known(dot.y)]
        if kept:
            axes.plot(
                *zip(*kept, strict=True), mark, color=color, markersize=size, alpha=0.3 if bitmap else alpha,
                markeredgewidth=1.2 if failed else 0, clip_on=False, rasterized=bitmap,
            )  # fmt: skip


def _interval(axes: Axes, row: Row, y: float) -> None:
    color = INK if row.dots else row.look.color
    if row.interval is not None:
        axes.plot(row.interval, [y, y], color=color, linewidth=2.0, solid_capstyle="round")
    if row.value is not None:
        axes.plot(
            [row.value], [y], "D" if row.dots else row.look.mark, markersize=5.5 if row.dots else 7.5,
            markeredgewidth=1.5, markeredgecolor=color, markerfacecolor=color if row.sure else PAPER,
        )  # fmt: skip


def _ticks(axes: Axes, lines: Sequence[Curve], names: Mapping[float, str] | None) -> None:
    xs = sorted({x for line in lines for x in line.x})
    if names is not None:
        axes.minorticks_off()  # a logarithmic axis would add labels of its own
        axes.set_xticks(list(names), list(names.values()))
    elif len(xs) == 1:
        axes.set_xticks(xs, [f"{xs[0]:g}"])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=all(float(x).is_integer() for x in xs)))


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
