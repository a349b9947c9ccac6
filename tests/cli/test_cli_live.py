"""The table on a terminal fills as runs end; what is no run's line stays."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from mixout.cli import demo, main
from mixout.cli.lines import LiveTable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_cells_fill_when_runs_end_and_notes_stay():
    out, known = Terminal(), {}
    console = Console(file=out, force_terminal=True, width=60)
    with LiveTable("rate", ["plain", "mixout"], ["0.1", "0.2"], lambda: dict(known), console) as shown:
        assert out.getvalue().count("...") == 4
        known["plain"] = {"0.2": 0.51}
        shown("  plain: step 3")
        assert "0.510" not in out.getvalue()  # no run has ended
        shown("note: [slow] machine")
        shown("[1/4] plain: accuracy 0.510")
    told = out.getvalue()
    assert "note: [slow] machine" in told
    assert "[1/4] plain: accuracy 0.510" in told
    assert "0.510" in told.rpartition("note:")[2].partition("[1/4]")[0]


@pytest.mark.usefixtures("one_thread")
def test_the_demo_draws_it_on_a_terminal_only(demo_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "STUDY", demo_file)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["demo", "--workers", "1", "--output-dir", str(tmp_path / "demo"), "--restarts", "1"]) == 0
    assert "learning rate" in terminal.getvalue()
    assert "..." in terminal.getvalue()
    printed = capsys.readouterr().out
    assert "..." not in printed
    # The same numbers stand in the table that stays.
    row = next(line for line in printed.splitlines() if line.startswith("mixout(0.7)"))
    assert all(number in terminal.getvalue() for number in row.split()[1:])
