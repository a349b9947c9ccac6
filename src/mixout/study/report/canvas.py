"""How methods look, and how panels become pictures: one SVG a panel in the page, one PNG and SVG a chart for papers.

One colour a method in every figure and table, grey for the baseline. The colours are those of Okabe and Ito (2008),
which the colour-blind tell apart; yellow is left out, since it can't be seen on white. Methods that differ in p alone
are shades of one colour. A method also has a mark of its own.

A page lays panels out by the width of the screen, so each is a picture of its own; in a file they are side by side.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixout.errors import needs
from mixout.study.analysis.across import split_p
from mixout.study.analysis.runs import Placed, grouped, named

with needs("demo", "figures"):
    import matplotlib.style
    from matplotlib.axes import Axes
    from matplotlib.colors import to_hex, to_rgb
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

INK, MUTED, RULE, PAPER = "#1c2127", "#66707b", "#dcdfe4", "#ffffff"
GREY = "#7a838c"
COLORS = ("#d55e00", "#0072b2", "#009e73", "#b0589a", "#c98a00", "#3c9fd6")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "h")
Dashes = tuple[int, tuple[float, ...]]  # where to begin, and lengths of strokes and gaps; none is a solid line
LINES: tuple[Dashes, ...] = ((0, ()), (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))

# Points. A panel of the page is WIDTH wide, which on a phone is about as many pixels.
WIDTH = 360.0
TEXT, SMALL = 11.0, 10.0
MANY = 1000  # dots that an SVG holds as a bitmap, and that cannot be pointed at
_POINTS = 72.0  # to the inch
_RIGHT, _BOTTOM, _TITLE, _GAP, _LEGEND = 8.0, 36.0, 24.0, 14.0, 16.0

_STYLE: dict[str, Any] = {
    # Text stays text, so that the page's own font is used and words can be searched.
    "svg.fonttype": "none",
    # Ids follow from the content alone, so that the same runs give the same bytes.
    "svg.hashsalt": "mixout",
    # A label may hold a dollar sign.
    "text.parse_math": False,
    "font.size": TEXT,
    "text.color": INK,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), RULE),
    **dict.fromkeys(("axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), SMALL),
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one method looks like."""

    color: str
    mark: str
    line: Dashes = LINES[0]


def looks(methods: Sequence[str], baseline: str) -> dict[str, Look]:
    """The look of each method.

    Example:
        >>> found = looks(["plain", "mixout(0.5)", "mixout(0.9)", "wdecay(0.01)"], "plain")
        >>> [look.color for look in found.values()]
        ['#7a838c', '#dd7e33', '#8a3d00', '#0072b2']
    """
    unique = list(dict.fromkeys(methods))
    families = grouped(
        ((*(split_p(method) or (method, 0.0)), method) for method in unique if method != baseline), lambda item: item[0]
    )
    colors = {baseline: GREY}
    for hue, members in zip(itertools.cycle(COLORS), families.values(), strict=False):
        for rank, (_, _, method) in enumerate(sorted(members)):
            colors[method] = hue if len(members) == 1 else _shade(hue, rank / (len(members) - 1))
    marks = zip(unique, itertools.cycle(MARKS), strict=False)
    return {method: Look(color=colors[method], mark=mark) for method, mark in marks}


def _shade(hue: str, share: float) -> str:
    """From 20 % white to 35 % black: in dark mode, where light and dark are swapped, both stay visible."""
    amount = 0.2 - 0.55 * share
    towards = 1.0 if amount > 0 else 0.0
    red, green, blue = (part + abs(amount) * (towards - part) for part in to_rgb(hue))
    return to_hex((red, green, blue))


@contextmanager
def style() -> Iterator[None]:
    """Draw in this style within the context, whatever the user's own matplotlibrc says."""
    with matplotlib.style.context(_STYLE, after_reset=True), warnings.catch_warnings():
        # The page shows every letter; a picture for papers has boxes for those that its font lacks.
        warnings.filterwarnings("ignore", "Glyph")
        yield


class Labels:
    """The labels of a study's methods, with the factors that differ, and the methods' looks.

    Example:
        >>> from mixout.study.analysis.runs import Run
        >>> runs = [Run(task="RTE", method="plain", restart=0, score=0.5, factors={"epochs": n}) for n in ("3", "9")]
        >>> labels = Labels(runs, looks(["plain"], "plain"))
        >>> labels.of(runs[1]), list(labels.legend)
        ('plain, epochs 9', ['plain, epochs 3', 'plain, epochs 9'])
    """

    def __init__(self, items: Iterable[Placed], looks: dict[str, Look]) -> None:
        items = list(items)
        names = {name for item in items for name in item.factors}
        self.varying = sorted(name for name in names if len({item.factors.get(name) for item in items}) > 1)
        self.looks = looks
        self.tasks = list(dict.fromkeys(item.task for item in items))
        self.legend: dict[str, Look] = {}  # every label, in order, with its look
        seen: Counter[str] = Counter()
        for label, item in {self.of(item): item for item in items}.items():
            # Lines of one method, with other factors, differ in their dashes.
            self.legend[label] = replace(looks[item.method], line=LINES[seen[item.method] % len(LINES)])
            seen[item.method] += 1

    def of(self, item: Placed) -> str:
        """The label of one of the items."""
        return ", ".join([item.method, *self._named(item)])

    def place(self, item: Placed) -> str:
        """The place of an item: its task, and the factors that differ."""
        words = self._named(item)
        return ", ".join([item.task, *words] if len(self.tasks) > 1 or not words else words)

    def _named(self, item: Placed) -> list[str]:
        return named((name, item.factors[name]) for name in self.varying if name in item.factors)


@dataclass(frozen=True)
class Dot:
    """One run: its position, whether it failed, and the text that is shown when the pointer is on it."""

    x: float
    y: float
    failed: bool = False
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes, usually a task."""

    title: str
    description: str  # what is drawn, in words and numbers, for readers who cannot see it
    height: float  # of the axes, in points
    draw: Callable[[Axes], None]  # draws into axes of that height
    dots: tuple[Dot, ...] = ()  # points with a text for the pointer
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
    """Each panel as the data URL of its picture, with its dots: position in percent, and text; within :func:`style`."""
    images = []
    for panel in chart.panels:
        figure = _figure([panel], {}, titles=False)
        address = _address(figure)  # before the transform is read: drawing sets the limits of the axes
        # From data coordinates to those of the figure, whose sides are 1.
        to_figure = (figure.axes[0].transData - figure.transFigure).transform
        spots = []
        for dot in panel.dots if len(panel.dots) <= MANY else ():
            if math.isfinite(dot.x) and math.isfinite(dot.y):
                x, y = to_figure((dot.x, dot.y))
                spots.append((round(100 * x, 1), round(100 * (1 - y), 1), dot.text))
        images.append((address, spots))
    return images


def swatch(look: Look) -> str:
    """Line and mark of a method, for a legend in the page, as the data URL of a picture."""
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
    figure.savefig(folder / f"{chart.name}.png", dpi=150, metadata={"Software": None})


def _figure(panels: Sequence[Panel], legend: Mapping[str, Look], *, titles: bool) -> Figure:
    """The panels in lines of two; in a file with titles and, below, the legend."""
    columns = min(2, len(panels))
    lines = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    head = _TITLE if titles else 0.0
    width = columns * WIDTH + (columns - 1) * _GAP
    legend_columns = max(1, int(width // (7 * max(map(len, legend), default=1) + 40)))
    foot = _LEGEND * math.ceil(len(legend) / legend_columns) + (10.0 if legend else 0.0)
    heights = [head + max(panel.top + panel.height for panel in line) + _BOTTOM for line in lines]
    total = sum(heights) + _GAP * (len(lines) - 1) + foot
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
                position = (column * (WIDTH + _GAP) + 4) / width, (below - 14) / total
                figure.text(*position, panel.title, size=TEXT + 1, weight="bold", color=INK)
        below -= height + _GAP
    if legend:
        figure.legend(
            [_handle(look) for look in legend.values()], list(legend), loc="lower left", ncols=legend_columns,
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
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return text.getvalue()
