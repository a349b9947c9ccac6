"""How methods look and are called: one colour a method in every figure and table, grey for the baseline.

The colours are those of Okabe and Ito (2008), which the colour-blind tell apart; yellow is left out, since it can't be
seen on white. Methods that differ in p alone are shades of one colour. A method also has a mark of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mixout.errors import needs
from mixout.study.analysis.across import split_p
from mixout.study.analysis.runs import Placed, named

with needs("demo", "figures"):
    import matplotlib
    from matplotlib.colors import to_hex, to_rgb

INK, MUTED, RULE, PAPER = "#1c2127", "#66707b", "#dcdfe4", "#ffffff"
GREY = "#7a838c"
COLORS = ("#d55e00", "#0072b2", "#009e73", "#b0589a", "#c98a00", "#3c9fd6")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "h")
Dashes = tuple[int, tuple[float, ...]]  # where to begin, and lengths of strokes and gaps; none is a solid line
LINES: tuple[Dashes, ...] = ((0, ()), (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))

# Points. A panel of the page is WIDTH wide, which on a phone is about as many pixels.
WIDTH = 360.0
TEXT, SMALL = 11.0, 10.0


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
    families: dict[str, list[tuple[float, str]]] = {}
    for method in dict.fromkeys(methods):
        family, p = split_p(method) or (method, 0.0)
        if method != baseline:
            families.setdefault(family, []).append((p, method))
    colors = {baseline: GREY}
    for at, members in enumerate(families.values()):
        hue = COLORS[at % len(COLORS)]
        for place, (_, method) in enumerate(sorted(members)):
            colors[method] = hue if len(members) == 1 else _shade(hue, place / (len(members) - 1))
    return {
        method: Look(color=colors[method], mark=MARKS[at % len(MARKS)])
        for at, method in enumerate(dict.fromkeys(methods))
    }


def _shade(hue: str, share: float) -> str:
    """From 20 % of white in it to 35 % of black: in the dark, where light and dark change places, both are seen."""
    amount = 0.2 - 0.55 * share
    towards = 1.0 if amount > 0 else 0.0
    red, green, blue = (part + abs(amount) * (towards - part) for part in to_rgb(hue))
    return to_hex((red, green, blue))


@contextmanager
def style() -> Iterator[None]:
    """Draw in this style in the body, whatever the user's own matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
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
        )
        yield


class Labels:
    """What the methods of a study are called, with the factors that differ, and what they look like.

    Example:
        >>> from mixout.study.analysis.runs import Run
        >>> runs = [Run(task="RTE", method="plain", restart=0, score=0.5, factors={"epochs": n}) for n in ("3", "9")]
        >>> labels = Labels(runs, looks(["plain"], "plain"))
        >>> labels.of(runs[1]), list(labels.all())
        ('plain, epochs 9', ['plain, epochs 3', 'plain, epochs 9'])
    """

    def __init__(self, items: Iterable[Placed], looks: dict[str, Look]) -> None:
        items = list(items)
        values: dict[str, set[str | None]] = {}
        for name in {name for item in items for name in item.factors}:
            values[name] = {item.factors.get(name) for item in items}
        self.varying = sorted(name for name, seen in values.items() if len(seen) > 1)
        self.looks = looks
        self.tasks = list(dict.fromkeys(item.task for item in items))
        self._looks: dict[str, Look] = {}
        seen_of: dict[str, int] = {}
        for item in items:
            if (text := self.of(item)) not in self._looks:
                base, at = looks[item.method], seen_of.get(item.method, 0)
                # Lines of one method, with other factors, differ in their dashes.
                self._looks[text] = Look(color=base.color, mark=base.mark, line=LINES[at % len(LINES)])
                seen_of[item.method] = at + 1

    def of(self, item: Placed) -> str:
        """The label of what was among the items."""
        return ", ".join([item.method, *self._named(item)])

    def place(self, item: Placed) -> str:
        """Where it was made: its task, and the factors that differ."""
        words = self._named(item)
        return ", ".join([item.task, *words] if len(self.tasks) > 1 or not words else words)

    def _named(self, item: Placed) -> list[str]:
        return named((name, item.factors[name]) for name in self.varying if name in item.factors)

    def look(self, item: Placed) -> Look:
        """Its look."""
        return self._looks[self.of(item)]

    def all(self) -> dict[str, Look]:
        """Every label, in order, with its look."""
        return dict(self._looks)
