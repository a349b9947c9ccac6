"""The ledger: runs appear whole or not at all, ledgers merge by copying, conflicts are seen."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mixout.errors import InputError
from mixout.finetune.record import Record
from mixout.study.entry import FAILURE_NAME, result_of
from mixout.study.executors import Executor
from mixout.study.ledger import Ledger
from mixout.study.reporting import report_on
from mixout.study.runner import missing


def result(known: Record) -> str:
    return result_of(json.loads(known.to_json()))


def test_a_run_comes_back_as_the_analysis_wants_it(runs, tmp_path, finish):
    ledger = Ledger(tmp_path)
    finish(ledger, runs[1], peak_memory={"host": 5, "device": 7})
    [run] = ledger.runs()
    assert (run.task, run.method, run.restart, run.factors) == ("words", "mixout(0.5)", 0, {})
    assert (run.score, run.metric, run.chance, run.status, run.error) == (0.75, "accuracy", 0.5, "finished", None)
    assert (run.seconds, run.peak_memory, run.distance) == (1.5, 7, 0.25)
    assert (run.evaluations, run.predictions) == (((6, 0.75),), (0, 1, 1, 0))
    assert run.id == runs[1].id
    entry = ledger.read().entries[runs[1].id]
    assert entry.wall == 3.0
    assert not list((tmp_path / "work").iterdir())
    described = json.loads((entry.folder / "run.json").read_text())
    assert described["settings"]["learning_rate"] == 0.01


def test_nothing_shows_before_the_commit(runs, tmp_path, record):
    ledger = Ledger(tmp_path)
    place = ledger.work(runs[0])
    place.mkdir(parents=True)
    record(runs[0]).write(place)
    contents = ledger.read()
    assert (contents.entries, contents.leftovers) == ({}, [place])


def test_a_diverged_run_is_a_result(runs, tmp_path, finish):
    ledger = Ledger(tmp_path)
    finish(ledger, runs[0], math.nan, status="diverged", distance=math.nan)
    [run] = ledger.runs()
    assert (run.status, run.failed) == ("diverged", True)
    assert run.error == "the loss got out of hand"
    assert math.isnan(run.score)


def test_a_failure_and_then_a_success(runs, tmp_path, finish):
    ledger = Ledger(tmp_path)
    ledger.fail(runs[0], 2, "Traceback ...\n  File ...\nMemoryError: 3 GB\n")
    [run] = ledger.runs()
    assert (run.status, run.error, run.metric, run.chance) == ("failed", "MemoryError: 3 GB", "accuracy", 0.5)
    assert math.isnan(run.score)
    entry = ledger.read().entries[runs[0].id]
    assert (entry.record, entry.attempts) == (None, 2)
    assert json.loads((entry.folder / FAILURE_NAME).read_text())["traceback"].startswith("Traceback ...")
    finish(ledger, runs[0])
    assert [run.status for run in ledger.runs()] == ["finished"]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_study_sees_its_runs_under_its_own_names(runs, tmp_path, finish):
    ledger = Ledger(tmp_path)
    finish(ledger, runs[1])
    finish(ledger, runs[2])
    other = replace(runs[1], task="two words", method="mixout, p = 1/2", factors={"epochs": "1"})
    [run] = ledger.read().of([other])
    assert (run.task, run.method, run.factors, run.score) == ("two words", "mixout, p = 1/2", {"epochs": "1"}, 0.75)


def merged(one: Path, other: Path, into: Path) -> Ledger:
    for place in (one, other):
        shutil.copytree(place / "runs", into / "runs", dirs_exist_ok=True)
    return Ledger(into)


def test_ledgers_merge_by_copying(runs, tmp_path, finish):
    one, other = Ledger(tmp_path / "one"), Ledger(tmp_path / "other")
    for run in runs[:3]:
        finish(one, run)
    # On another machine, later and with other paths: the same result.
    moved = replace(runs[2], settings=replace(runs[2].settings, model="elsewhere"))
    finish(other, moved, seconds=9.0, finished_at="2026-02-01T00:00:00+00:00", hardware={"cores": 64})
    finish(other, runs[3])
    contents = merged(one.folder, other.folder, tmp_path / "both").read()
    assert contents.entries.keys() == {run.id for run in runs}
    assert not contents.conflicts
    assert not contents.damaged
    assert len(list((tmp_path / "both" / "runs").iterdir())) == 4


def test_a_conflict_is_seen_and_the_first_counts(runs, tmp_path, finish):
    one, other = Ledger(tmp_path / "one"), Ledger(tmp_path / "other")
    finish(one, runs[0], 0.75, finished_at="2026-03-01T00:00:00+00:00")
    finish(other, runs[0], 0.7, finished_at="2026-02-01T00:00:00+00:00")
    finish(other, runs[1])
    for first, second in (("one", "other"), ("other", "one")):
        contents = merged(tmp_path / first, tmp_path / second, tmp_path / first / "both").read()
        assert contents.conflicts.keys() == {runs[0].id}
        assert [entry.run.score for entry in contents.conflicts[runs[0].id]] == [0.7, 0.75]
        assert contents.entries[runs[0].id].run.score == 0.7
        assert runs[1].id in contents.entries


def test_a_success_elsewhere_beats_a_failure_here(runs, tmp_path, finish):
    one, other = Ledger(tmp_path / "one"), Ledger(tmp_path / "other")
    one.fail(runs[0], 2, "OSError: no\n")
    finish(other, runs[0])
    contents = merged(one.folder, other.folder, tmp_path / "both").read()
    assert contents.entries[runs[0].id].run.status == "finished"
    assert len(contents.leftovers) == 1


def test_a_result_is_what_came_out_not_how(runs, record):
    known = record(runs[0])
    looked_at = {"metric": "f1", "score": 0.5, "evaluations": (), "training": ()}
    for same in ({"seconds": 9.0}, {"hardware": {"gpu": "g"}}, {"finished_at": "2027"}, {"peak_memory": {}}, looked_at):
        assert result(replace(known, **same)) == result(known)
    for other in ({"predictions": (0, 1, 1, 1)}, {"distance": 0.5}, {"scores": {"accuracy": 0.7}}, {"steps": 7}):
        assert result(replace(known, **other)) != result(known)


def test_every_score_of_a_run_can_be_the_one_that_counts(runs, tmp_path, finish):
    finish(Ledger(tmp_path), runs[1], standard_errors={"accuracy": 0.1, "f1": 0.2})
    contents = Ledger(tmp_path).read()
    [run] = contents.of([replace(runs[1], metric="f1", chance=0.4)])
    assert (run.metric, run.score, run.chance, run.evaluations) == ("f1", 0.5, 0.4, ((6, 0.5),))
    assert [run.standard_error, *(one.standard_error for one in contents.of(runs[1:2]))] == [0.2, 0.1]
    with pytest.raises(InputError, match="among accuracy, f1, got 'matthews'"):
        Ledger(tmp_path).read().of([replace(runs[1], metric="matthews")])


def test_how_often_the_study_was_to_be_looked_at_stays_with_the_run(runs, tmp_path, finish):
    finish(Ledger(tmp_path), replace(runs[0], looks=5))
    assert Ledger(tmp_path).read().entries[runs[0].id].run.looks == 5


HOLDER = """
import sys, time
from mixout.study.ledger import Ledger
lock = Ledger(sys.argv[1]).claim(sys.argv[2])
print("locked", flush=True)
time.sleep(60)
"""


@pytest.mark.sweep
def test_each_run_is_made_by_one_process_and_a_killed_one_does_not_count(runs, tmp_path):
    words = [sys.executable, "-c", HOLDER, str(tmp_path), runs[0].id]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        assert Ledger(tmp_path).claim(runs[0].id) is None
        other = Ledger(tmp_path).claim(runs[1].id)
        assert other is not None
        Ledger(tmp_path).release(other)
        holder.kill()
    lock = Ledger(tmp_path).claim(runs[0].id)
    assert lock is not None
    Ledger(tmp_path).release(lock)


def test_a_ledger_is_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the file"):
        Ledger(tmp_path / "file")
    with pytest.raises(InputError, match="can be written to"):
        Ledger(tmp_path / "file" / "inner").claim("a")
    assert Ledger(tmp_path / "nothing").runs() == []


@pytest.mark.usefixtures("undrawn")
def test_models_between_start_and_end_are_methods_that_nobody_trains(declare, tmp_path, finish):
    planned = declare(restarts=4).runs()
    asked = declare(restarts=4, settings={"interpolate": [0.5, 1]}).runs()
    assert [run.id for run in asked] == [run.id for run in planned]
    ledger, scores, points = Ledger(tmp_path), np.random.default_rng(0).uniform(0.6, 0.9, 8), np.linspace(0.7, 0.9, 8)
    for run, score, point in zip(planned, scores, points, strict=True):
        between = [{"t": t, "accuracy": t * score, "original_similarity": 0.9} for t in (0.25, 1.0)]
        between += [{"t": 0.5, "accuracy": point, "original_similarity": 0.8}] if run.restart else []
        finish(ledger, run, score, interpolated=tuple(between))
    contents = ledger.read()
    assert missing(asked, contents) == []
    page = report_on(asked, contents, tmp_path / "report", title="t", commands=[], baseline="dropout(0.0)")
    compared = {row["method"]: row for row in rows(page.with_name("comparisons.csv"))}
    assert set(compared) == {"mixout(0.5)", "dropout(0.0) at t=0.5", "mixout(0.5) at t=0.5"}
    for method, own in (("dropout(0.0)", points[0::2]), ("mixout(0.5)", points[1::2])):
        found = compared[f"{method} at t=0.5"]
        differences = own[1:] - scores[0::2][1:]  # restart 0 holds no such score
        interval = stats.ttest_1samp(differences, 0.0).confidence_interval()
        numbers = [float(found[name]) for name in ("n", "difference", "low", "high")]
        assert numbers == pytest.approx([3, differences.mean(), interval.low, interval.high])
    cells = {row["method"]: row for row in rows(page.with_name("cells.csv"))}
    kept = [float(cells["mixout(0.5) at t=0.5"][name]) for name in ("distance", "original")]
    assert kept == pytest.approx([0.125, 0.8])
    assert "2 runs without scores for some t of interpolate" in page.read_text(encoding="utf-8")
    # Without the setting, and as a table of runs, it is the study of before.
    assert [run.method for run in contents.of(planned)] == [run.method for run in planned]
    assert len(contents.runs()) == 8


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_failed_run_and_models_between_have_the_chance_of_the_score_that_counts(runs, tmp_path, finish):
    asked = [
        replace(one, metric="f1", chance=0.0, settings=replace(one.settings, interpolate=(0.5,))) for one in runs[:2]
    ]
    Ledger(tmp_path).fail(runs[0], 1, "E: no")
    finish(Ledger(tmp_path), runs[1], interpolated=({"t": 0.5, "accuracy": 0.6, "f1": 0.3},))
    found = Ledger(tmp_path).read().of(asked)
    assert [(run.method, run.metric, run.chance, run.failed) for run in found] == [
        (f"{one.method}{between}", "f1", 0.0, one is asked[0]) for one in asked for between in ("", " at t=0.5")
    ]


def test_the_best_model_is_kept_by_the_score_that_counts_now(declare, tmp_path, record):
    """The first was kept by its accuracy; by f1 the second is better, or worse."""
    from mixout.study.executors import Outcome
    from mixout.study.runner import run

    first, second = (one for one in declare(restarts=2).runs() if one.method == "mixout(0.5)")
    for better in (True, False):
        ledger = Ledger(tmp_path / str(better))
        of = {first.id: (0.6, 0.8 if not better else 0.2), second.id: (0.75, 0.5)}

        class Instant(Executor):
            def start(self, job):
                self.job = job
                accuracy, f1 = of[job.id]  # noqa: B023
                job.folder.mkdir(parents=True)
                (job.folder / "config.json").write_text("{}")
                planned = first if job.id == first.id else second
                record(planned, accuracy, scores={"accuracy": accuracy, "f1": f1}).write(job.folder)

            def wait(self, tell):
                return Outcome(job=self.job, seconds=1.0)

        run([first], ledger, Instant(), report=lambda _: None, keep="best")
        later = [replace(one, metric="f1", chance=0.0) for one in (first, second)]
        run(later, ledger, Instant(), report=lambda _: None, keep="best")
        kept = [entry.run.restart for entry in ledger.read().entries.values() if entry.has_model]
        assert kept == [1 if better else 0]


def test_a_record_that_was_cut_off_is_made_again(declare, tmp_path, execute):
    ledger, [one, *_] = Ledger(tmp_path), declare(restarts=1).runs()
    ledger.work(one).mkdir(parents=True)
    (ledger.work(one) / "record.json").write_text('{"format": 1, "sta')
    assert execute([one], ledger).ran == 1
    assert [run.status for run in ledger.runs()] == ["finished"]
