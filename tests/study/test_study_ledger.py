"""The ledger: runs appear whole or not at all, ledgers merge by copying, conflicts and damage are seen."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mixout.errors import InputError
from mixout.finetune.record import Evaluation, Record
from mixout.study.entry import result_of
from mixout.study.grid import Planned
from mixout.study.ledger import Ledger


@pytest.fixture
def runs(declare) -> list[Planned]:
    return declare(restarts=2).runs()


def record(run: Planned, score: float = 0.75, **changes: object) -> Record:
    values = {
        "status": "finished",
        "settings": run.settings.resolved(),
        "digest": run.settings.digest(),
        "metric": "accuracy",
        "score": score,
        "scores": {"accuracy": score, "f1": 0.5},
        "chance": 0.5,
        "evaluations": (Evaluation(step=6, epoch=1.0, loss=0.6, scores={"accuracy": score, "f1": 0.5}),),
        "training": (),
        "predictions": (0, 1, 1, 0),
        "labels": ("first", "second"),
        "train_size": 42,
        "dev_size": 20,
        "steps": 6,
        "parameters": 1000,
        "new_parameters": (),
        "distance": 0.25,
        "distance_by_layer": {"bert.pooler.dense": 0.25},
        "coverage": {},
        "gradient": None,
        "seconds": 1.5,
        "evaluation_seconds": 0.5,
        "peak_memory": {"host": 1 << 30, "device": None},
        "source": {},
        "fingerprints": {},
        "versions": {},
        "hardware": {},
        "finished_at": "2026-01-01T00:00:00+00:00",
    }
    return Record(**(values | changes))


def finish(ledger: Ledger, run: Planned, score: float = 0.75, wall: float | None = 3.0, **changes: object) -> None:
    """What an executor leaves, and then the commit."""
    place = ledger.work(run)
    place.mkdir(parents=True)
    record(run, score, **changes).write(place)
    ledger.commit(run, wall)


def test_a_run_comes_back_as_the_analysis_wants_it(runs, tmp_path):
    ledger = Ledger(tmp_path)
    finish(ledger, runs[1], peak_memory={"host": 5, "device": 7})
    [run] = ledger.runs()
    assert (run.task, run.method, run.restart, run.factors) == ("words", "mixout(0.5)", 0, {})
    assert (run.score, run.metric, run.chance, run.status, run.error) == (0.75, "accuracy", 0.5, "finished", None)
    assert (run.seconds, run.peak_memory, run.distance) == (1.5, 7, 0.25)
    assert (run.evaluations, run.predictions) == (((6, 0.75),), (0, 1, 1, 0))
    assert (run.distance_by_layer, run.id) == ({"bert.pooler.dense": 0.25}, runs[1].id)
    entry = ledger.read().entries[runs[1].id]
    assert entry.wall == 3.0
    assert not list((tmp_path / "work").iterdir())
    described = json.loads((entry.folder / "run.json").read_text())
    assert described["settings"]["learning_rate"] == 0.01


def test_nothing_shows_before_the_commit(runs, tmp_path):
    ledger = Ledger(tmp_path)
    place = ledger.work(runs[0])
    place.mkdir(parents=True)
    record(runs[0]).write(place)
    contents = ledger.read()
    assert (contents.entries, contents.leftovers) == ({}, [place])


def test_a_diverged_run_is_a_result(runs, tmp_path):
    ledger = Ledger(tmp_path)
    finish(ledger, runs[0], math.nan, status="diverged", distance=math.nan)
    [run] = ledger.runs()
    assert (run.status, run.failed) == ("diverged", True)
    assert run.error == "a loss was not finite"
    assert math.isnan(run.score)


def test_a_failure_and_then_a_success(runs, tmp_path):
    ledger = Ledger(tmp_path)
    ledger.fail(runs[0], 2, "Traceback ...\n  File ...\nMemoryError: 3 GB\n")
    [run] = ledger.runs()
    assert (run.status, run.error, run.metric, run.chance) == ("failed", "MemoryError: 3 GB", "accuracy", 0.5)
    assert math.isnan(run.score)
    entry = ledger.read().entries[runs[0].id]
    assert (entry.record, entry.attempts, entry.traceback) == (
        None,
        2,
        "Traceback ...\n  File ...\nMemoryError: 3 GB\n",
    )
    finish(ledger, runs[0])
    assert [run.status for run in ledger.runs()] == ["finished"]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_study_sees_its_runs_under_its_own_names(runs, tmp_path):
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


def test_ledgers_merge_by_copying(runs, tmp_path):
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


def test_a_conflict_is_seen_and_the_first_counts(runs, tmp_path):
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


def test_a_success_elsewhere_beats_a_failure_here(runs, tmp_path):
    one, other = Ledger(tmp_path / "one"), Ledger(tmp_path / "other")
    one.fail(runs[0], 2, "OSError: no\n")
    finish(other, runs[0])
    contents = merged(one.folder, other.folder, tmp_path / "both").read()
    assert contents.entries[runs[0].id].run.status == "finished"
    assert len(contents.leftovers) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [("record.json", '{\n"format": 1,\n"stat'), ("record.json", None), ("run.json", "{}"), ("run.json", None)],
)
def test_what_is_damaged_is_listed_and_is_run_again(runs, tmp_path, file, text):
    ledger = Ledger(tmp_path)
    finish(ledger, runs[0])
    finish(ledger, runs[1])
    place = ledger.read().entries[runs[0].id].folder
    if text is None:
        (place / file).unlink()
    else:
        (place / file).write_text(text)
    contents = ledger.read()
    assert contents.entries.keys() == {runs[1].id}
    assert list(contents.damaged) == [place]
    finish(ledger, runs[0])
    assert ledger.read().entries.keys() == {runs[0].id, runs[1].id}
    assert not ledger.read().damaged


def test_a_record_that_somebody_changed_does_not_count(runs, tmp_path):
    ledger = Ledger(tmp_path)
    finish(ledger, runs[0])
    place = ledger.read().entries[runs[0].id].folder
    text = (place / "record.json").read_text()
    (place / "record.json").write_text(text.replace('"accuracy": 0.75', '"accuracy": 0.95'))
    assert "the record was changed" in ledger.read().damaged[place]


def test_a_result_is_what_came_out_not_how(runs):
    known = record(runs[0])
    for same in ({"seconds": 9.0}, {"hardware": {"gpu": "g"}}, {"finished_at": "2027"}, {"peak_memory": {}}):
        assert result_of(replace(known, **same)) == result_of(known)
    for other in ({"predictions": (0, 1, 1, 1)}, {"distance": 0.5}, {"scores": {"accuracy": 0.7}}, {"steps": 7}):
        assert result_of(replace(known, **other)) != result_of(known)


HOLDER = """
import sys, time
from mixout.study.ledger import Ledger
with Ledger(sys.argv[1]).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_and_a_killed_one_does_not_count(tmp_path):
    pytest.importorskip("fcntl")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match="another process"), Ledger(tmp_path).locked():
            pass
        holder.kill()
    with Ledger(tmp_path).locked():
        pass


def test_a_ledger_is_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the file"):
        Ledger(tmp_path / "file")
    with pytest.raises(InputError, match="can be written to"), Ledger(tmp_path / "file" / "inner").locked():
        pass
    assert Ledger(tmp_path / "nothing").runs() == []
