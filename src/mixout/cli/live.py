"""On a terminal: a table of mean scores that fills while runs end, and where they stand. It vanishes at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text


class LiveTable:
    """Takes the lines of progress that :class:`mixout.cli.lines.Lines` would print; a context.

    Args:
        corner: above the names of the rows.
        rows: their names.
        columns: their names.
        scores: what is known now: row -> column -> score.
        console: where to draw; stderr by default.
    """

    def __init__(
        self,
        corner: str,
        rows: Sequence[str],
        columns: Sequence[str],
        scores: Callable[[], Mapping[str, Mapping[str, float]]],
        console: Console | None = None,
    ) -> None:
        self._names = corner, list(rows), list(columns)
        self._scores = scores
        self._known = scores()
        self._live = Live(
            self._drawn(""),
            console=console or Console(stderr=True),
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,  # what others read stays there
        )

    def __call__(self, line: str) -> None:
        """Take a line: that of a run is shown below the table, any other stays above it."""
        if not line.startswith(("[", "  ")):
            self._live.console.print(Text(line))
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
        corner, rows, columns = self._names
        table = Table(corner, *columns)
        for row in rows:
            known = self._known.get(row, {})
            table.add_row(row, *(f"{known[column]:.3f}" if column in known else "..." for column in columns))
        return Group(table, Text(line, no_wrap=True, overflow="ellipsis"))
