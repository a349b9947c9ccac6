"""mixout study on a ledger that was made in another folder, or on another machine, or that is not there."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
from pathlib import Path

import pytest

from mixout.cli import main
from mixout.study.analysis.table import read_scores
from mixout.study.ledger import Ledger

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")


def test_commands_and_texts_are_of_where_the_file_finds_them(
    study_file, tiny_bert, tiny_task, tmp_path, monkeypatch, capsys
):
    home, away = tmp_path / "home", tmp_path / "away"
    away.mkdir()
    (home / "data").mkdir(parents=True)
    (home / "model").symlink_to(tiny_bert)
    (home / "data" / "words").symlink_to(tiny_task)
    text = Path(study_file).read_text().replace(tiny_bert, "model").replace(tiny_task, "data/words")
    (home / "own.toml").write_text(text)
    monkeypatch.chdir(home)
    assert main(["study", "run", "own.toml", "--restarts", "1", "--ledger", "ledger"]) == 0
    capsys.readouterr()
    assert main(["study", "status", "own.toml", "--ledger", "ledger"]) == 0
    assert "--model model --task data/words" in capsys.readouterr().out
    monkeypatch.chdir(away)
    words = ["../home/own.toml", "--ledger", "../home/ledger"]
    assert main(["study", "report", *words, "--output-dir", "report"]) == 0
    page = html.unescape(Path("report", "index.html").read_text())
    assert "<q>" in page  # the texts of the dev set
    capsys.readouterr()
    assert main(["study", "status", *words]) == 0
    best, other = (line for line in capsys.readouterr().out.splitlines() if line.startswith("mixout finetune"))
    assert best in page
    assert other in page
    [run, *_] = Ledger("../home/ledger").runs()
    [found] = Path("../home/ledger/runs").glob(f"{run.id[:8]}*/run.json")
    for line in (best, re.sub(r"\S*/ID\*/run.json", str(found), other)):
        assert main(shlex.split(line)[1:]) == 0
    assert json.loads(Path("out/again/record.json").read_text())["score"] == run.score
    # Without the file they are as recorded.
    assert main(["study", "status", "--ledger", "../home/ledger"]) == 0
    assert "--model model --task data/words" in capsys.readouterr().out


def test_the_models_between_are_there_without_the_file(study, study_file, tmp_path, failing, capsys):
    own, table = tmp_path / "own.toml", tmp_path / "runs.csv"
    own.write_text(Path(study_file).read_text().replace("[settings]\n", "[settings]\ninterpolate = [0.5]\n"))
    assert study("run", file=str(own)) == 1
    exported = []
    for file in (str(own), None):
        assert study("export", "--output", str(table), file=file) == 0
        exported.append(sorted(map(str, read_scores(table))))  # as text: nan differs from itself
    assert exported[0] == exported[1]
    assert [run.status for run in read_scores(table) if run.between].count("failed") == 1
    assert study("report", "--output-dir", str(tmp_path / "report"), file=None) == 0
    cells = json.loads((tmp_path / "report" / "summary.json").read_text())["cells"]
    assert [cell["method"] for cell in cells if "at t=0.5" in cell["method"]] == [
        "dropout(0.0) at t=0.5", "mixout(0.5) at t=0.5",
    ]  # fmt: skip
    capsys.readouterr()
    assert study("status", file=None) == 0
    assert "at t=" not in capsys.readouterr().out


def test_a_report_has_the_name_of_the_ledger_also_from_within_it(study, tmp_path, monkeypatch):
    assert study("run", "--restarts", "1") == 0
    monkeypatch.chdir(tmp_path / "ledger")
    assert main(["study", "report", "--ledger", ".", "--output-dir", "../report"]) == 0
    assert "<title>ledger" in (tmp_path / "report" / "index.html").read_text()


def test_a_ledger_that_is_not_there_or_empty_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for step in ("report", "export", "status"):
        status = main(["study", step, "--ledger", "nowhere"])
        printed = capsys.readouterr()
        assert status == (0 if step == "status" else 2)
        assert "no runs in nowhere, which does not exist" in printed.out + printed.err
    os.mkdir("empty")
    assert main(["study", "report", "--ledger", "empty"]) == 2
    assert "no runs in empty; run the study first" in capsys.readouterr().err


def test_a_ledger_that_cannot_be_written_to_is_listed(study, tmp_path, capsys):
    ledger = tmp_path / "ledger"
    assert study("run", "--restarts", "1") == 0
    [first, second] = (ledger / "runs").iterdir()
    (first / "record.json").write_text("{")
    (ledger / "work" / second.name.partition(".")[0]).mkdir(parents=True)
    (ledger / "locks").rmdir()
    for name in ("locks", "trash"):  # root may write anywhere, but make no folder where a file is
        (ledger / name).write_text("")
    capsys.readouterr()
    assert study("prune", file=None) == 0
    assert "2 folders would be moved to the trash" in capsys.readouterr().out
    assert study("prune", "--yes", file=None) == 2
    assert f"expected a ledger that can be written to, got '{ledger}'" in capsys.readouterr().err
    (ledger / "locks").unlink()
    assert study("prune", "--yes", file=None) == 2
    assert f"expected a ledger that can be written to, got '{ledger}'" in capsys.readouterr().err
    (ledger / "trash").unlink()
    assert study("prune", "--yes", file=None) == 0
    assert capsys.readouterr().out.endswith(f"2 folders moved to {ledger / 'trash'}\n")
