"""Lines of progress: plain ones in a file, on a terminal those that say where a run stands replace each other."""

from __future__ import annotations

import io
import sys

import pytest

from mixout.cli.lines import Lines

SAID = ("  step 1", "  step 2", "[1/2] done", "  step 1")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_every_line_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Lines() as lines:
        for line in SAID:
            lines(line)
    assert sys.stderr.getvalue() == "".join(f"{line}\n" for line in SAID)


def test_on_a_terminal_only_ended_runs_stay(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Lines() as lines:
        for line in (*SAID, "  " + 50 * "x"):
            lines(line)
    # A terminal: "\r" and erase begin the line anew.
    shown = [line.rpartition("\r\x1b[K")[2] for line in sys.stderr.getvalue().split("\n")]
    assert shown == ["[1/2] done", ""]
    assert max(len(part) for part in sys.stderr.getvalue().split("\r\x1b[K")) < 20
