"""How things look in every figure: colors, marks, sizes. One place, so that a method looks the same everywhere.

The colors are those of Okabe and Ito (2008), which the color-blind tell apart; yellow is left out, since it cannot be
seen on white. A method also has a mark and a line of its own, so figures are readable without color.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mixout.finetune.extras import needs

with needs("demo", "figures"):
    import matplotlib

INK, MUTED, RULE, PAPER = "#1c2127", "#66707b", "#dcdfe4", "#ffffff"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
# As many marks as make no pair of color and mark come twice within 77 methods.
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
    line: Dashes


def look(number: int) -> Look:
    """The look of the method with this number.

    Example:
        >>> look(0).color, look(7).color, look(7).mark
        ('#0072b2', '#0072b2', '<')
    """
    return Look(color=COLORS[number % len(COLORS)], mark=MARKS[number % len(MARKS)], line=LINES[number % len(LINES)])


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
                "axes.labelcolor": MUTED,
                "axes.labelsize": SMALL,
                "axes.edgecolor": RULE,
                "axes.linewidth": 0.8,
                "axes.titlesize": TEXT,
                "axes.titleweight": "bold",
                "axes.axisbelow": True,
                "axes.facecolor": "none",
                "grid.color": RULE,
                "grid.linewidth": 0.7,
                "xtick.color": RULE,
                "ytick.color": RULE,
                "xtick.labelcolor": MUTED,
                "ytick.labelcolor": MUTED,
                "xtick.labelsize": SMALL,
                "ytick.labelsize": SMALL,
                "legend.frameon": False,
                "legend.fontsize": SMALL,
            }
        )
        yield
