"""The demo is a study, and ends with a report."""

from __future__ import annotations

import pytest

from mixout.cli import demo, main
from mixout.study.ledger import Ledger

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_demo_ends_with_a_report(study_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "STUDY", study_file)
    folder = tmp_path / "demo"
    words = ["demo", "--restarts", "1", "--output-dir", str(folder)]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out == f"report {folder / 'report' / 'index.html'}\n"
    assert "[2/2] words, mixout(0.5), restart 0: accuracy " in printed.err
    page = (folder / "report" / "index.html").read_text()
    assert "mixout(0.5)" in page
    assert f"mixout study run {study_file} --restarts 1 --ledger {folder / 'ledger'}" in page
    # More restarts: only the new ones run.
    assert main(["demo", "--restarts", "2", "--output-dir", str(folder)]) == 0
    assert "2 of 4 runs are there already" in capsys.readouterr().err
    assert len(Ledger(folder / "ledger").runs()) == 4


def test_the_demo_names_what_is_wrong(tmp_path, capsys):
    assert main(["demo", "--restarts", "0", "--output-dir", str(tmp_path / "demo")]) == 2
    assert "expected restarts as a whole number >= 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
