"""Lines of progress on stderr: where there is a terminal, those that begin with two spaces replace each other."""

from __future__ import annotations

import shutil
import sys


class Lines:
    """Prints one line a call; a context, at whose end an unfinished line of a terminal is removed."""

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

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = False
