from __future__ import annotations

import dataclasses
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from mixout.errors import InputError
from mixout.finetune import card
from mixout.finetune.record import Evaluation, Progress, Record, write_atomically
from mixout.finetune.settings import Settings


def a_record(**changes) -> Record:
    settings = Settings(method="mixout(0.7)").resolved()
    values = {
        "status": "finished",
        "settings": settings,
        "digest": settings.digest(),
        "metric": "accuracy",
        "score": 0.75,
        "scores": {"accuracy": 0.75, "f1": 0.5},
        "chance": 0.5,
        "evaluations": (Evaluation(step=2, epoch=1.0, loss=0.6, scores={"accuracy": 0.75, "f1": 0.5}),),
        "training": (Progress(step=2, epoch=1.0, loss=0.7, gradient_norm=None, learning_rate=1e-5),),
        "predictions": (0, 1, 1, 0),
        "labels": ("no", "inf"),
        "train_size": 8,
        "dev_size": 4,
        "steps": 2,
        "parameters": 1000,
        "new_parameters": ("classifier.weight",),
        "distance": 0.25,
        "distance_by_layer": {"bert.pooler.dense.weight": 0.25},
        "coverage": {"layers_mixed": 3, "parameters_mixed": 0.5},
        "gradient": "exact",
        "seconds": 1.5,
        "evaluation_seconds": 0.5,
        "peak_memory": {"host": 1 << 30, "device": None},
        "source": {"model": "tiny on the hub", "data": "Made up."},
        "fingerprints": {"anchor": "a" * 64, "train": "b" * 64, "dev": "c" * 64, "weights": None},
        "versions": {"python": "3.11.0", "mixout": "0.1.0"},
        "hardware": {"processor": "a processor", "cores": 2, "gpu": None},
        "finished_at": "2026-01-01T00:00:00+00:00",
    }
    return Record(**(values | changes))


def test_a_record_goes_both_ways(tmp_path: Path):
    record = a_record()
    record.write(tmp_path)
    assert Record.read(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_numbers_that_are_not_finite_survive_strict_json():
    scores = {"accuracy": math.inf, "f1": -math.inf}
    record = a_record(status="diverged", scores=scores, distance=math.nan)
    json.loads(record.to_json(), parse_constant=pytest.fail)
    read = Record.from_json(record.to_json())
    assert read.scores == scores
    assert math.isnan(read.distance)
    # A class with such a name is still a name.
    assert read.labels == ("no", "inf")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "record.json"
    write_atomically(file, "old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 99}'])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(InputError, match="expected a record"):
        Record.from_json(text)


def test_reading_records_needs_no_transformers():
    script = "import sys, mixout.finetune.record; print('transformers' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=900, check=True)
    assert ended.stdout == "False\n"


def test_every_field_is_documented():
    lines = inspect.getsource(Record).splitlines()
    for item in dataclasses.fields(Record):
        [at] = [at for at, line in enumerate(lines) if line.startswith(f"    {item.name}: ")]
        assert "  # " in lines[at] or lines[at - 1].startswith("    # "), item.name


def test_the_card_says_how_it_was_trained_and_what_it_is_worth():
    text = card.write(a_record())
    for expected in (
        "mixout(0.7)",
        "0.7500",
        "accuracy 0.5000",
        "Made up.",
        "one draw",
        "classifier.weight",
        "`exact`",
    ):
        assert expected in text
    assert "not better" not in text
    assert text.startswith("---\n")


def test_the_card_of_a_failed_run_says_so():
    text = card.write(a_record(score=0.5, status="diverged"))
    assert "**The loss got out of hand: this run diverged.**" in text  # of an earlier version, without a verdict
    text = card.write(a_record(verdict="it has hardly learned: training loss 0.7. Try, in this order: more steps"))
    assert "**This run failed: it has hardly learned: training loss 0.7. Try, in this order: more steps.**" in text
    assert "**This run is not better than that.**" in card.write(a_record(score=0.5))


def test_the_card_does_not_tell_where_files_lay():
    settings = Settings(model="/home/someone/models/m", task="/home/someone/data/t.csv").resolved()
    text = card.write(a_record(settings=settings, source={"model": "the folder m", "data": "A file."}))
    assert "/home/someone" not in text
    assert "# m on t.csv" in text
