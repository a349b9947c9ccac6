"""The two kinds of panel: a row for each method, and lines over something. It computes no statistics."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from mixout.errors import needs
from mixout.study.report.canvas import INK, MANY, MUTED, PAPER, RULE, SMALL, TEXT, Dot, Look, Panel

with needs("demo", "figures"):
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

_LINE, _DOTS, _BAR, _SPACE, _DOT, _CROSS = 13.0, 22.0, 9.0, 9.0, 5.0, 9.0
_CURVE = 210.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method's runs, or an estimate of it, with an interval."""

    label: str  # the method
    note: str  # short text at the right of the label
    look: Look
    said: str  # label and values in words
    dots: tuple[Dot, ...] = ()  # runs, by their x alone
    value: float | None = None  # None where there is none
    low: float | None = None  # of the interval; None where there is none
    high: float | None = None  # of the interval
    sure: bool = True  # the mark is filled instead of hollow


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One method's line."""

    look: Look
    said: str  # what it shows, in words and numbers
    x: Sequence[float]  # where the marks stand, in the order in which the line joins them
    y: Sequence[float]  # as many
    low: Sequence[float | None] = ()  # of the interval at each x, None where there is none; empty without intervals
    high: Sequence[float | None] = ()  # of the interval at each x
    threads: Sequence[Sequence[tuple[float, float]]] = ()  # further lines behind it, one a run
    dots: Sequence[Dot] = ()  # single runs


def rows(title: str, rows: Sequence[Row], *, axis: str, line: tuple[float | None, str], far: float = 2.0) -> Panel:
    """A row for each method, from the top: labels stand above their row and stay readable on a phone.

    A dashed line stands at ``line``, unless it lies farther from the runs than ``far`` times their spread.
    """
    seen = [x for row in rows for x in (row.value, row.low, row.high, *(dot.x for dot in row.dots)) if _known(x)]
    at = line[0]
    near = at is not None and bool(seen) and at >= min(seen) - far * (max(seen) - min(seen))
    limits = _limits([*seen, at] if near and at is not None else seen)
    # row, top, middle of its dots, lines of its label, its dots
    placed: list[tuple[Row, float, float, list[str], list[Dot]]] = []
    height = 6.0
    for row in rows:
        lines = _wrap(row.label, 38 if row.dots else 28)
        top = height + _LINE * len(lines) + 3
        middle = top + _DOTS / 2
        own = [Dot(dot.x, middle + _jitter(number), dot.failed, dot.text) for number, dot in enumerate(row.dots)]
        placed.append((row, height, middle, lines, own))
        height = top + (_DOTS if row.dots else 0) + _BAR + _SPACE
    dots = tuple(dot for *_, own in placed for dot in own)

    def draw(axes: Axes) -> None:
        axes.set_xlim(*limits)
        axes.set_ylim(height, 0)
        axes.yaxis.set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(axis, labelpad=3)
        if near and at is not None:
            _dashed(axes, at, line[1], limits)
        for row, top, middle, lines, own in placed:
            # Lines of the grid end at the text.
            behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}
            for line_number, text in enumerate(lines):
                axes.text(limits[0], top + _LINE * line_number + 9, text, size=TEXT, color=INK, bbox=behind)
            axes.text(limits[1], top + 9, row.note, size=SMALL, color=MUTED, ha="right", bbox=behind)
            _scatter(axes, own, row.look.color, bitmap=len(dots) > MANY)
            bar = middle + (_DOTS / 2 + 5 if row.dots else 5 - _DOTS / 2)
            _interval(axes, row, bar)

    return Panel(title=title, description=_said(rows), height=height, draw=draw, dots=dots)


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
    heights = [y for line in lines for y in (*line.y, *line.low, *line.high, *(dot.y for dot in line.dots))]
    heights += [y for line in lines for thread in line.threads for _, y in thread]
    seen = [y for y in heights if _known(y)]
    near = chance is not None and bool(seen) and chance >= min(seen) - (max(seen) - min(seen))
    dots = tuple(dot for line in lines for dot in line.dots)

    def draw(axes: Axes) -> None:
        axes.set_xlabel(axis, labelpad=3)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel(value, labelpad=4)
        if near and chance is not None:
            axes.axhline(chance, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1.2)
            # At the end that is farther from the lines.
            ends = [line.y[:1] for line in lines], [line.y[-1:] for line in lines]
            first, last = (min((abs(y - chance) for end in one for y in end if _known(y)), default=0.0) for one in ends)
            at, shift, side = (0, 2, "left") if first > last else (1, -2, "right")
            axes.annotate("chance", (at, chance), xytext=(shift, 3), xycoords=("axes fraction", "data"), ha=side,
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
            for x, low, high in zip(line.x, line.low, line.high, strict=False):
                if low is not None and high is not None:
                    axes.plot([x, x], [low, high], color=color, linewidth=1.3)
            axes.plot(
                line.x, line.y, color=color, linestyle=line.look.line, linewidth=1.8, marker=line.look.mark,
                markersize=5.5, markeredgewidth=0, markevery=max(1, len(line.x) // 10),
            )  # fmt: skip
        _ticks(axes, lines, ticks)

    return Panel(title=title, description=_said(lines), height=_CURVE, draw=draw, dots=dots, left=42.0, top=8.0)


def _said(items: Sequence[Row] | Sequence[Curve]) -> str:
    return "; ".join(item.said for item in items)


def _scatter(axes: Axes, dots: Sequence[Dot], color: str, *, alpha: float = 0.8, bitmap: bool) -> None:
    # A cross is seen around the mark of a mean that is of one failed run alone.
    for failed, mark, size in ((False, "o", _DOT), (True, "x", _CROSS)):
        kept = [(dot.x, dot.y) for dot in dots if dot.failed == failed and _known(dot.x) and _known(dot.y)]
        if kept:
            axes.plot(
                *zip(*kept, strict=True), mark, color=color, markersize=size, alpha=0.3 if bitmap else alpha,
                markeredgewidth=1.2 if failed else 0, clip_on=False, rasterized=bitmap,
            )  # fmt: skip


def _interval(axes: Axes, row: Row, y: float) -> None:
    color = INK if row.dots else row.look.color
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [y, y], color=color, linewidth=2.0, solid_capstyle="round")
    if row.value is not None:
        axes.plot(
            [row.value], [y], "D" if row.dots else row.look.mark, markersize=5.5 if row.dots else 7.5,
            markeredgewidth=1.5, markeredgecolor=color, markerfacecolor=color if row.sure else PAPER,
        )  # fmt: skip


def _dashed(axes: Axes, x: float, name: str, limits: tuple[float, float]) -> None:
    axes.axvline(x, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)))
    share = (x - limits[0]) / (limits[1] - limits[0])
    side = "left" if share < 0.3 else "right" if share > 0.7 else "center"
    axes.text(x, -4, name, size=SMALL, color=MUTED, ha=side)


def _ticks(axes: Axes, lines: Sequence[Curve], names: Mapping[float, str] | None) -> None:
    places = sorted({x for line in lines for x in line.x})
    if names is not None:
        axes.minorticks_off()  # a logarithmic axis would name places of its own
        every = max(1, math.ceil(len(names) / 12))
        axes.set_xticks(list(names)[::every], list(names.values())[::every])
    elif len(places) == 1:
        axes.set_xticks(places, [f"{places[0]:g}"])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=all(float(x).is_integer() for x in places)))


def _jitter(number: int) -> float:
    """Spread evenly, by the golden ratio."""
    return (_DOTS - _DOT) * ((0.5 + 0.618034 * number) % 1 - 0.5)


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
