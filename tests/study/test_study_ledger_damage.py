"""What a ledger holds that is no run of this version: damage, records of newer and older ones, folders of others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from mixout.errors import InputError
from mixout.finetune.models import revision
from mixout.study.executors import LocalExecutor
from mixout.study.identity import Inputs, Planned
from mixout.study.ledger import Ledger
from mixout.study.runner import missing
from mixout.study.runner import run as execute


@pytest.mark.parametrize(
    ("file", "text"),
    [("record.json", '{\n"format": 1,\n"stat'), ("record.json", None), ("run.json", "{}"), ("run.json", None)],
)
def test_what_is_damaged_is_listed_and_is_run_again(runs, tmp_path, file, text, finish):
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


def test_a_record_that_somebody_changed_does_not_count(runs, tmp_path, finish):
    ledger = Ledger(tmp_path)
    finish(ledger, runs[0])
    place = ledger.read().entries[runs[0].id].folder
    text = (place / "record.json").read_text()
    (place / "record.json").write_text(text.replace('"accuracy": 0.75', '"accuracy": 0.95'))
    assert "the record was changed" in ledger.read().damaged[place]


@pytest.fixture
def changed(runs, tmp_path, finish) -> Callable[[Callable[[dict], None]], Path]:
    """The folder of a run whose record was written as a function of its values makes it."""

    def build(edit: Callable[[dict], None]) -> Path:
        ledger = Ledger(tmp_path)
        finish(ledger, runs[0])
        folder = ledger.read().entries[runs[0].id].folder
        values = json.loads((folder / "record.json").read_text())
        edit(values)
        (folder / "record.json").write_text(json.dumps(values))
        return folder

    return build


@pytest.mark.parametrize(
    "edit",
    [
        lambda values: values["settings"].update(rotation=True),
        lambda values: values.update(carbon=1.5),
        lambda values: values.update(format=2),
    ],
    ids=["a new setting", "a new field", "a new format"],
)
def test_what_a_newer_version_wrote_is_not_damaged_and_not_run_again(runs, tmp_path, edit, changed):
    folder = changed(edit)
    before = (folder / "record.json").read_text()
    contents = Ledger(tmp_path).read()
    assert (list(contents.newer), contents.damaged, contents.entries) == ([folder], {}, {})
    assert "newer mixout" in contents.remarks()[0]
    with pytest.raises(InputError, match="one of a newer version"):
        execute(runs, Ledger(tmp_path), LocalExecutor(), report=lambda _: None)
    assert (folder / "record.json").read_text() == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda values: values.update(peak_memory=[]),
        lambda values: values.update(distance="far"),
        lambda values: values.update(seconds=None),
    ],
)
def test_a_value_that_cannot_be_is_damage_and_no_traceback(tmp_path, edit, changed):
    folder = changed(edit)
    assert list(Ledger(tmp_path).read().damaged) == [folder]


def test_what_is_removed_lies_in_the_trash(runs, tmp_path, finish, changed):
    folder = changed(lambda values: values.pop("status"))
    finish(Ledger(tmp_path), runs[0])
    assert len(Ledger(tmp_path).runs()) == 1
    [kept] = (tmp_path / "trash").glob(f"*/{folder.name}/record.json")
    assert "status" not in json.loads(kept.read_text())


def test_folders_of_others_are_left_alone(runs, tmp_path, finish):
    finish(Ledger(tmp_path), runs[0])
    (tmp_path / "runs" / "my notes").mkdir()
    contents = Ledger(tmp_path).read()
    assert contents.foreign == [tmp_path / "runs" / "my notes"]
    assert (contents.leftovers, contents.damaged, len(contents.entries)) == ([], {}, 1)


def written_by_0_1(record, run: Planned, folder: Path, *, metric: str, save: str, evaluate: str) -> str:
    """A run as 0.1 wrote it, by its own rules written out; returns the identity that it gave."""
    scores = {"accuracy": 0.75, "f1": 0.5}
    known = record(run, metric=metric, score=scores[metric], scores=scores)
    settings = replace(run.settings.resolved(), metric=metric, save=save, evaluate=evaluate)
    inputs = Inputs()
    values = {
        item.name: getattr(settings, item.name)
        for item in fields(settings)
        if getattr(settings, item.name) != item.default
        and item.name not in ("model", "task", "data_dir", "metric", "seed", "report_to", "method")
    }
    _, data, _ = inputs._data(run.settings)
    values |= {"method": settings.method, "metric": metric, "data": data, "mixout": "0.1"}
    values |= {"gradient": "exact" if "mixout" in settings.method else None, "weights": revision(settings.model)}
    id = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    read = json.loads(known.to_json())
    names = ("status", "metric", "score", "scores", "evaluations", "training", "predictions", "steps", "distance")
    result = hashlib.sha256(json.dumps([read[name] for name in names]).encode()).hexdigest()[:12]
    place = folder / "runs" / f"{id}.{result}"
    place.mkdir(parents=True)
    known.write(place)
    described = {"id": id, "task": run.task, "method": run.method, "restart": run.restart, "factors": {}}
    described |= {"metric": metric, "chance": 0.5, "settings": asdict(settings), "wall": 3.0}
    (place / "run.json").write_text(json.dumps(described))
    return id


@pytest.mark.parametrize("watched", [("accuracy", "no", "epoch"), ("f1", "epoch", "end"), ("accuracy", "epoch", "end")])
def test_runs_of_0_1_count(declare, tmp_path, watched, record):
    metric, save, evaluate = watched
    planned = declare(restarts=1, settings={"save": "no"}).runs()
    ids = [written_by_0_1(record, run, tmp_path, metric=metric, save=save, evaluate=evaluate) for run in planned]
    contents = Ledger(tmp_path).read()
    assert not contents.damaged
    assert not set(ids) & {run.id for run in planned}
    assert missing(planned, contents) == []
    assert [run.score for run in contents.of(planned)] == [0.75, 0.75]  # by the score that counts now
    assert [Ledger(tmp_path).find(run) is not None for run in planned] == [True, True]
    # A run on other data, or of another seed, is another run.
    assert missing(declare(restarts=2).runs(), contents) == declare(restarts=2).runs()[2:]
    assert len(missing(declare(restarts=1, settings={"learning_rate": 0.5}).runs(), contents)) == 2
