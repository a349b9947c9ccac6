"""mixout study run --until-width: what was looked at several times stays corrected, wherever its scores go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixout.cli import main
from mixout.study.analysis.table import read_scores

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")


def looks_of(report: Path) -> int:
    return json.loads((report / "summary.json").read_text())["looks"]


def test_the_looks_stay_with_runs_that_were_there_already_and_with_their_table(study, tmp_path, capsys):
    report, table = tmp_path / "report", tmp_path / "runs.csv"
    assert study("run") == 0
    assert study("report", "--output-dir", str(report)) == 0
    assert looks_of(report) == 1
    assert study("export", "--output", str(table)) == 0
    assert "looks" not in table.read_text().splitlines()[0]
    assert {run.looks for run in read_scores(table)} == {1}
    capsys.readouterr()
    assert study("run", "--restarts", "1", "--until-width", "2.5", "--looks", "2") == 0
    assert capsys.readouterr().out.startswith("0 runs in this call")
    assert study("run", "--restarts", "1", "--until-width", "9", "--looks", "1") == 0  # fewer looks take none back
    assert study("report", "--output-dir", str(report)) == 0
    assert looks_of(report) == 2

    assert study("export", "--output", str(table)) == 0
    assert {run.looks for run in read_scores(table)} == {2}
    scores = ["study", "report", "--scores", str(table), "--output-dir", str(tmp_path / "scores")]
    assert main(scores) == 0
    assert looks_of(tmp_path / "scores") == 2
    table.write_text(table.read_text().replace(",2\n", ",0\n"))
    assert main(scores) == 2
    assert "expected looks >= 1, got 0" in capsys.readouterr().err
