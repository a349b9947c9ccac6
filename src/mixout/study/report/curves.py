"""Panels with lines: something over k, p, steps, layers or the values of a factor, a line for each method.

Lines are told apart by color, mark and dashes together. It computes no statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixout.finetune.extras import needs
from mixout.study.report.canvas import Panel
from mixout.study.report.looks import MUTED, PAPER, SMALL, Look, look

with needs("demo", "figures"):
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

_HEIGHT, _LEFT, _HEAD = 200.0, 42.0, 8.0
_DOT = 4.0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One method's line.

    Args:
        number: of the method's look.
        label: the method.
        x: where the marks stand, in the order in which the line joins them.
        y: as many.
        low: of the interval at each x, None where there is none; empty without intervals.
        high: of the interval at each x.
        threads: further lines behind it, one a restart: their x and their y.
        dots: x and y of single runs.
        failed: for each dot, whether its run counts as failed.
    """

    number: int
    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    threads: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    dots: tuple[tuple[float, float], ...] = ()
    failed: tuple[bool, ...] = ()


def curves(
    title: str,
    lines: Sequence[Curve],
    *,
    axis: str,
    value: str,
    description: str,
    chance: float | None = None,
    ticks: Mapping[float, str] | None = None,
    log: bool = False,
) -> Panel:
    """Lines over a common axis.

    Args:
        title: of the panel.
        lines: at least one.
        axis: label of the horizontal axis.
        value: label of the vertical axis.
        description: in words and numbers.
        chance: a dashed line, where it lies near the lines.
        ticks: names of places on the horizontal axis, instead of numbers.
        log: whether the horizontal axis is logarithmic; it then needs ``ticks``.
    """
    heights = [y for line in lines for y in (*line.y, *line.low, *line.high, *(dot[1] for dot in line.dots))]
    heights += [y for line in lines for thread in line.threads for y in thread[1]]
    seen = [y for y in heights if y is not None and math.isfinite(y)]
    near = chance is not None and bool(seen) and chance >= min(seen) - (max(seen) - min(seen))

    def draw(axes: Axes) -> None:
        axes.set_xlabel(axis, labelpad=3)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel(value, labelpad=4)
        if near and chance is not None:
            # Behind the runs: at the left end there often are failed ones.
            axes.axhline(chance, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1.2)
            axes.annotate("chance", (0, chance), xytext=(2, 3), xycoords=("axes fraction", "data"),
                          textcoords="offset points", size=SMALL, color=MUTED, zorder=1.1,
                          bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5})  # fmt: skip
        if log:
            axes.set_xscale("log")
        for line in lines:
            _draw(axes, line)
        _ticks(axes, lines, ticks)

    return Panel(title=title, description=description, height=_HEIGHT, draw=draw, left=_LEFT, top=_HEAD)


def _draw(axes: Axes, line: Curve) -> None:
    shown = look(line.number)
    _behind(axes, line, shown)
    # Intervals of several methods at one x would cover each other as bands.
    for x, low, high in zip(line.x, line.low, line.high, strict=False):
        if low is not None and high is not None:
            axes.plot([x, x], [low, high], color=shown.color, linewidth=1.3)
    axes.plot(
        line.x, line.y, color=shown.color, linestyle=shown.line, linewidth=1.7, marker=shown.mark, markersize=5.5,
        markeredgewidth=0, markevery=max(1, len(line.x) // 10),
    )  # fmt: skip


def _behind(axes: Axes, line: Curve, shown: Look) -> None:
    """The single restarts."""
    for x, y in line.threads:
        axes.plot(x, y, color=shown.color, linewidth=0.7, alpha=0.35)
    for failed, mark in ((False, "o"), (True, "x")):
        dots = [dot for dot, bad in zip(line.dots, line.failed, strict=True) if bad == failed]
        if dots:
            x, y = zip(*dots, strict=True)
            axes.plot(x, y, mark, color=shown.color, markersize=_DOT, alpha=0.5, markeredgewidth=1 if failed else 0)


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
