"""Lines of progress on stderr: in a terminal, those that begin with two spaces replace each other.

Also a live table of mean scores, with the lines above and below it, and tables as aligned text.
"""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console, Group


def aligned(rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """Columns of text, the first ``left`` to the left and the others to the right.

    Example:
        >>> print(aligned([["task", "method", "n"], ["\u6570\u636e", "plain", "12"]]))
        task  method   n
        \u6570\u636e  plain   12
    """
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        gaps = [" " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = [cell + gap if i < left else gap + cell for i, (cell, gap) in enumerate(zip(row, gaps, strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _width(text: str) -> int:
    """The width in columns of a terminal: Chinese letters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


class Lines:
    """Prints one line for each call; a context manager: at its end an unfinished line of a terminal is removed."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._open = False

    def __call__(self, line: str) -> None:
        """Print a line."""
        if not self._live:
            print(line, file=sys.stderr, flush=True)
            return
        self._clear()
        self._open = line.startswith("  ")
        shown = line[: shutil.get_terminal_size().columns - 1] if self._open else line
        print(shown, end="" if self._open else "\n", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = False


class LiveTable:
    """Takes the lines of progress that :class:`Lines` would print; a context manager."""

    def __init__(
        self,
        corner: str,
        rows: Sequence[str],
        columns: Sequence[str],
        scores: Callable[[], Mapping[str, Mapping[str, float]]],
        console: Console | None = None,
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self._names = corner, list(rows), list(columns)
        self._scores = scores
        self._known = scores()
        self._live = Live(
            self._drawn(""),
            console=console or Console(stderr=True),
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,  # results for other programs stay on stdout
        )

    def __call__(self, line: str) -> None:
        """Take a line: that of a run is shown below the table, any other stays above it."""
        if not line.startswith(("[", "  ")):
            self._live.console.print(line, markup=False, highlight=False)
            return
        if line.startswith("["):
            self._known = self._scores()
        self._live.update(self._drawn(line.strip()), refresh=True)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _drawn(self, line: str) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        corner, rows, columns = self._names
        table = Table(corner, *columns)
        for row in rows:
            scores = self._known.get(row, {})
            table.add_row(row, *(f"{scores[column]:.3f}" if column in scores else "..." for column in columns))
        return Group(table, Text(line, no_wrap=True, overflow="ellipsis"))
