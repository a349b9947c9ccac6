"""From panels to pictures: one SVG a panel in the page, one PNG and SVG a chart for papers and slides.

A panel is drawn alone, since a page lays panels out by the width of the screen, and beside the chart's other panels,
under titles, in a file. Sizes are absolute: no layout engine moves things.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixout.errors import needs
from mixout.study.report.theme import INK, PAPER, TEXT, WIDTH, Look, style

with needs("demo", "figures"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MANY = 1000  # dots that an SVG holds as a bitmap, and that cannot be pointed at
_POINTS = 72.0  # to the inch
_RIGHT, _BOTTOM, _TITLE, _GAP, _LEGEND = 8.0, 36.0, 24.0, 14.0, 16.0


@dataclass(frozen=True)
class Dot:
    """One run: where it stands, whether it failed, and what is said of it when it is pointed at."""

    x: float
    y: float
    failed: bool = False
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes, usually a task."""

    title: str
    description: str  # what is drawn, in words and numbers, for who does not see it
    height: float  # of the axes, in points
    draw: Callable[[Axes], None]  # draws into axes of that height
    dots: tuple[Dot, ...] = ()  # places that can be pointed at
    left: float = 6.0  # room for the labels of the vertical axis, in points
    top: float = 16.0  # room above the axes, in points


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Panels that answer one question."""

    name: str  # of the files, and of the place in the page
    title: str
    caption: str  # how to read it
    panels: tuple[Panel, ...]  # in the order of the tasks; one at least
    legend: Mapping[str, Look]  # what methods look like; empty where rows are labelled


def pictures(chart: Chart) -> list[tuple[str, list[tuple[float, float, str]]]]:
    """Each panel as the address of a picture that holds it, with the places in it that say something, in percent."""
    found = []
    for panel in chart.panels:
        figure = _figure([panel], {}, titles=False)
        address = _address(figure)  # before places are known: the limits of the axes follow from what is drawn
        [axes] = figure.axes
        width, height = figure.bbox.size
        spots = []
        for dot in panel.dots if len(panel.dots) <= MANY else ():
            if dot.text and math.isfinite(dot.x) and math.isfinite(dot.y):
                x, y = axes.transData.transform((dot.x, dot.y))
                spots.append((round(100 * x / width, 1), round(100 * (1 - y / height), 1), dot.text))
        found.append((address, spots))
    return found


def swatch(look: Look) -> str:
    """Line and mark of a method, for a legend in the page: the address of a picture that holds it."""
    with style():
        figure = Figure(figsize=(28 / _POINTS, 12 / _POINTS), facecolor="none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.set_xlim(0, 28)
        axes.set_ylim(0, 12)
        axes.add_line(_handle(look, [2, 14, 26], [6, 6, 6]))
        return _address(figure)


def write_files(chart: Chart, folder: Path) -> None:
    """Write ``NAME.svg`` and ``NAME.png`` with all panels, titled, on white."""
    figure = _figure(chart.panels, chart.legend, titles=True)
    figure.set_facecolor(PAPER)
    (folder / f"{chart.name}.svg").write_text(_svg(figure), encoding="utf-8")
    with style():
        FigureCanvasAgg(figure)
        figure.savefig(folder / f"{chart.name}.png", dpi=150, metadata={"Software": None})


def _figure(panels: Sequence[Panel], legend: Mapping[str, Look], *, titles: bool) -> Figure:
    """The panels in lines of two; in a file with titles and, below, the legend."""
    columns = min(2, len(panels))
    lines = [panels[at : at + columns] for at in range(0, len(panels), columns)]
    head = _TITLE if titles else 0.0
    width = columns * WIDTH + (columns - 1) * _GAP
    across = max(1, int(width // (7 * max(map(len, legend), default=1) + 40)))
    foot = _LEGEND * math.ceil(len(legend) / across) + (10.0 if legend else 0.0)
    heights = [head + max(panel.top + panel.height for panel in line) + _BOTTOM for line in lines]
    total = sum(heights) + _GAP * (len(lines) - 1) + foot
    with style():
        figure = Figure(figsize=(width / _POINTS, total / _POINTS), facecolor="none")
        below = total
        for line, height in zip(lines, heights, strict=True):
            for column, panel in enumerate(line):
                left, wide = column * (WIDTH + _GAP) + panel.left, WIDTH - panel.left - _RIGHT
                bottom = below - head - panel.top - panel.height
                axes = figure.add_axes((left / width, bottom / total, wide / width, panel.height / total))
                axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
                axes.tick_params(length=0, pad=5)
                axes.grid(visible=True)
                panel.draw(axes)
                if titles:
                    at = (column * (WIDTH + _GAP) + 4) / width, (below - 14) / total
                    figure.text(*at, panel.title, size=TEXT + 1, weight="bold", color=INK)
            below -= height + _GAP
        if legend:
            figure.legend(
                [_handle(look) for look in legend.values()], list(legend), loc="lower left", ncols=across,
                handlelength=2.8, bbox_to_anchor=(0, 0), borderaxespad=0.4, columnspacing=1.6,
            )  # fmt: skip
    return figure


def _handle(look: Look, x: Sequence[float] = (), y: Sequence[float] = ()) -> Line2D:
    # In a swatch only the middle of three points has a mark.
    return Line2D(
        x, y, color=look.color, linestyle=look.line, linewidth=1.6, marker=look.mark, markersize=6,
        markevery=[1] if x else None,
    )  # fmt: skip


def _address(figure: Figure) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(_svg(figure).encode()).decode()}"


def _svg(figure: Figure) -> str:
    with style():
        text = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(text, format="svg", metadata=metadata)
    return text.getvalue()
