"""mixout study run --until-width: what was looked at several times stays corrected, wherever its scores go."""

from __future__ import annotations

import html
import json
import shlex
from pathlib import Path

import pytest

from mixout.cli import main
from mixout.study.analysis.table import read_scores
from mixout.study.ledger import Ledger

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")


def looks_of(report: Path) -> int:
    return json.loads((report / "summary.json").read_text())["looks"]


def test_the_looks_stay_with_runs_that_were_there_already_and_with_their_table(study, study_file, tmp_path, capsys):
    report, table = tmp_path / "report", tmp_path / "runs.csv"
    assert study("run") == 0
    assert study("report", "--output-dir", str(report)) == 0
    assert looks_of(report) == 1
    assert study("export", "--output", str(table)) == 0
    assert "looks" not in table.read_text().splitlines()[0]
    assert {run.looks for run in read_scores(table)} == {1}
    capsys.readouterr()
    words = ["--restarts", "1", "--until-width", "2.5", "--looks", "2"]
    assert study("run", *words) == 0
    assert capsys.readouterr().out.startswith("0 runs in this call")
    assert study("run", "--restarts", "1", "--until-width", "9", "--looks", "1") == 0  # fewer looks take none back
    assert study("report", "--output-dir", str(report)) == 0
    assert looks_of(report) == 2
    text = html.unescape((report / "index.html").read_text())
    said = [line for line in text.splitlines() if f"mixout study run {study_file}" in line]
    ledger = tmp_path / "ledger"
    assert said[1] == shlex.join(["mixout", "study", "run", study_file, "--ledger", str(ledger), *words])

    assert study("export", "--output", str(table)) == 0
    assert {run.looks for run in read_scores(table)} == {2}
    scores = ["study", "report", "--scores", str(table), "--output-dir", str(tmp_path / "scores")]
    assert main(scores) == 0
    assert looks_of(tmp_path / "scores") == 2
    table.write_text(table.read_text().replace(",2\n", ",0\n"))
    assert main(scores) == 2
    assert "expected looks >= 1, got 0" in capsys.readouterr().err


def test_the_width_that_earlier_versions_did_not_store_is_left_open(study, tmp_path):
    assert study("run", "--restarts", "1", "--until-width", "2", "--looks", "2") == 0
    for path in (tmp_path / "ledger" / "runs").glob("*/run.json"):
        values = json.loads(path.read_text())
        assert values.pop("until") == {"restarts": 1, "until-width": 2.0}
        path.write_text(json.dumps(values))
    assert {run.looks for run in Ledger(tmp_path / "ledger").runs()} == {2}
    assert study("report", "--output-dir", str(tmp_path / "report")) == 0
    assert "--until-width W --looks 2" in (tmp_path / "report" / "index.html").read_text()
