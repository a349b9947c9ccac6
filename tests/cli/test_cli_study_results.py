"""mixout study report and export: all that a ledger holds, and tables."""

from __future__ import annotations

import csv
import errno
import html
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest

from mixout.cli import main
from mixout.study.analysis.table import read_scores
from mixout.study.ledger import Ledger

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")

Study = Callable[..., int]


def test_export_reads_back(study, tmp_path, failing):
    assert study("run") == 1
    assert study("export", "--output", str(tmp_path / "runs.csv")) == 0
    assert study("export", "--output", str(tmp_path / "runs.parquet"), file=None) == 0
    read = read_scores(tmp_path / "runs.csv")
    kept = Ledger(tmp_path / "ledger").runs()
    assert sorted((r.method, r.restart, r.status, r.id, r.distance) for r in read) == sorted(
        (r.method, r.restart, r.status, r.id, r.distance) for r in kept
    )
    with (tmp_path / "runs.csv").open(newline="") as handle:
        names = csv.DictReader(handle).fieldnames
    table = pyarrow.parquet.read_table(tmp_path / "runs.parquet", use_threads=False)
    assert table.column_names == names
    assert table.column("id").to_pylist() == [run.id for run in kept]
    # The exported table is as good as the study.
    words = ["study", "report", "--scores", str(tmp_path / "runs.csv"), "--output-dir", str(tmp_path / "report")]
    assert main(words) == 0
    assert "dropout(0.0)" in (tmp_path / "report" / "index.html").read_text()


def test_an_export_overwrites_what_is_named_alone(study, tmp_path, monkeypatch, capsys):
    assert study("run") == 0
    monkeypatch.chdir(tmp_path)
    assert study("export") == 0
    before = Path("runs.csv").read_bytes()
    assert study("export") == 2
    assert "expected no runs.csv here, got one; name another file, or this one" in capsys.readouterr().err
    assert study("export", "--output", "runs.csv") == 0
    assert Path("runs.csv").read_bytes() == before
    for words in (["--restarts", "1"], ["--set", "epochs=1"], ["--ledger", "there"]):
        assert main(["study", "report", "--scores", "runs.csv", "--output-dir", "report", *words]) == 2
        assert f"expected either --scores or {words[0]}, got both" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_leaves_nothing(study, tmp_path, monkeypatch, capsys):
    assert study("run") == 0

    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "there").mkdir()
    assert study("export", "--output", str(tmp_path / "there" / "runs.csv")) == 1
    assert "could not write to" in capsys.readouterr().err
    assert [*(tmp_path / "there").iterdir()] == []


def test_the_models_between_count_wherever_they_are_asked_for(study, study_file, tmp_path, capsys):
    text, own = Path(study_file).read_text(), tmp_path / "own.toml"
    for table in ("[settings]", "[[task]]", "[[method]]"):
        own.write_text(text.replace(f"{table}\n", f"{table}\ninterpolate = [0.5]\n"))
        assert study("plan", file=str(own)) == 0
        assert "the test of 3 comparisons cannot show a difference" in capsys.readouterr().out


def test_the_models_between_are_exported_too(study, study_file, tmp_path):
    own, output = tmp_path / "own.toml", ["--output", str(tmp_path / "runs.csv")]
    own.write_text(Path(study_file).read_text().replace("[settings]\n", "[settings]\ninterpolate = [0.5]\n"))
    assert study("run", "--restarts", "1", file=str(own)) == 0
    assert study("export", "--restarts", "1", *output, file=str(own)) == 0
    runs = read_scores(tmp_path / "runs.csv")
    assert [run.method.endswith("at t=0.5") for run in runs] == [run.between for run in runs] == [False, True] * 2
    assert study("export", *output, file=None) == 0
    assert read_scores(tmp_path / "runs.csv") == runs
    assert study("export", *output, "--set", "interpolate=[0.7]", file=str(own)) == 0
    assert read_scores(tmp_path / "runs.csv") == [run for run in runs if not run.between]


def test_a_report_covers_all_restarts_that_are_there(study, tmp_path, capsys, numbers):
    assert study("run", "--restarts", "4") == 0
    for words, count in (([], 8), (["--restarts", "2"], 4)):
        assert study("export", "--output", str(tmp_path / "runs.csv"), *words) == 0
        assert len(read_scores(tmp_path / "runs.csv")) == count
    assert study("report", "--output-dir", str(tmp_path / "report")) == 0
    assert "8 runs" in (tmp_path / "report" / "index.html").read_text()
    capsys.readouterr()
    assert study("status") == 0
    assert [numbers(line)[:4] for line in capsys.readouterr().out.splitlines()[1:3]] == [["4", "4", "0", "0"]] * 2


@pytest.mark.sweep
def test_after_repeated_looks_the_report_stays_corrected(study, tmp_path):
    assert study("run", "--set", "epochs=5", "--until-width", "1", "--looks", "2") == 0
    assert study("report", "--set", "epochs=5", "--output-dir", str(tmp_path / "report")) == 0
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["looks"] == 2
    assert [one["n"] for one in summary["comparisons"]] == [4]
    assert {one["confidence"] for one in summary["comparisons"]} == {0.975}


def test_a_ledger_is_reported_where_neither_model_nor_data_are(study, tmp_path, capsys):
    assert study("run") == 0
    words = ["--set", "model=./nowhere", "--output-dir", str(tmp_path / "report")]
    assert study("report", *words) == 2
    assert "leave FILE out" in capsys.readouterr().err
    assert study("report", "--output-dir", str(tmp_path / "report"), file=None) == 0
    text = html.unescape((tmp_path / "report" / "index.html").read_text())
    assert "mixout(0.5)" in text
    assert "torch" in text
    assert "Chance, the score of a constant answer" in text
    assert "20 rows tested on (dev set)" in text
    assert "<q>" not in text  # the texts are not at hand
    # The commands that make the best run again, and any run, are complete.
    again = [line.partition("</code>")[0] for line in text.splitlines() if line.startswith("mixout finetune ")]
    runs = Ledger(tmp_path / "ledger").runs()
    for number, (line, run) in enumerate(zip(again, (max(runs, key=lambda run: run.score), runs[0]), strict=True)):
        words = shlex.split(line)
        words[words.index("--output-dir") + 1] = str(tmp_path / str(number))
        if "--config" in words:
            pattern = words[-1].replace("ID", run.id[:6])
            [words[-1]] = map(str, Path("/").glob(pattern.lstrip("/")))
        assert main(words[1:]) == 0
        assert json.loads((tmp_path / str(number) / "record.json").read_text())["score"] == run.score


def test_a_ledger_alone_is_reported_by_the_metric_that_is_asked_for(study, tmp_path, capsys):
    assert study("run") == 0
    words = ["--output-dir", str(tmp_path / "report")]
    assert study("report", "--set", "metric=f1", *words, file=None) == 0
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    expected = {entry.record.scores["f1"] for entry in Ledger(tmp_path / "ledger").read().entries.values()}
    assert {score for cell in summary["cells"] for score in cell["scores"]} == expected
    assert "--set metric=f1" in html.unescape((tmp_path / "report" / "index.html").read_text())
    capsys.readouterr()
    assert study("report", "--set", "metric=pearson", *words, file=None) == 2
    assert "got 'pearson'; they have accuracy" in capsys.readouterr().err
    assert study("report", "--set", "epochs=1.0", *words, file=None) == 2
    assert "takes --set metric=NAME alone" in capsys.readouterr().err


def test_runs_of_other_versions_and_machines_are_named(study, study_file, tmp_path):
    assert study("run") == 0
    [*folders] = (tmp_path / "ledger" / "runs").iterdir()
    record = json.loads((folders[0] / "record.json").read_text())
    record["versions"]["mixout"], record["hardware"]["gpu"] = "0.1.0", "NVIDIA H200"
    (folders[0] / "record.json").write_text(json.dumps(record))
    titled = tmp_path / "titled.toml"
    titled.write_text(Path(study_file).read_text().replace("[study]", '[study]\ntitle = "One title"'))
    assert study("report", "--output-dir", str(tmp_path / "report"), file=str(titled)) == 0
    text = html.unescape((tmp_path / "report" / "index.html").read_text())
    assert "not all of one version and machine" in text
    assert "1 run with mixout 0.1.0 on NVIDIA H200" in text
    assert "<title>One title" in text


def test_two_studies_of_one_ledger_export_and_read_back(study, tmp_path, capsys):
    assert study("run") == 0
    assert study("run", "--set", "learning_rate=0.02") == 0
    assert study("export", "--output", str(tmp_path / "runs.csv"), file=None) == 0
    words = ["study", "report", "--scores", str(tmp_path / "runs.csv"), "--output-dir", str(tmp_path / "report")]
    assert main(words) == 0
    capsys.readouterr()
    assert study("status", file=None) == 0
    assert "mixout(0.5), learning rate 0.02" in capsys.readouterr().out


def test_a_report_replaces_nothing_but_a_report(study, tmp_path, capsys):
    assert study("run") == 0
    table = tmp_path / "mine" / "runs.csv"
    table.parent.mkdir()
    assert study("export", "--output", str(table)) == 0
    before = table.read_text()
    words = ["study", "report", "--scores", str(table), "--output-dir"]
    assert main([*words, str(table.parent)]) == 2
    assert "which holds it" in capsys.readouterr().err
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("my page")
    assert main([*words, str(tmp_path / "site")]) == 2
    assert "which holds 'index.html'" in capsys.readouterr().err
    for _ in range(2):  # its own it replaces
        assert main([*words, str(tmp_path / "report")]) == 0
    assert (table.read_text(), (tmp_path / "site" / "index.html").read_text()) == (before, "my page")


def test_a_report_says_which_column_of_the_table_it_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mixout.study.report.write_report", lambda runs, *args, **options: runs[0].factors)
    (tmp_path / "scores.csv").write_text(",task,method,restart,score\n0,R,plain,0,.5\n1,R,plain,1,.6\n")
    assert main(["study", "report", "--scores", str(tmp_path / "scores.csv"), "--output-dir", str(tmp_path / "r")]) == 0
    printed = capsys.readouterr()
    assert printed.out == "report {}\n"
    assert "the column '' has no name of its own and is left out" in printed.err
