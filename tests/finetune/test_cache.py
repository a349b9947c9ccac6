"""A run from the cache is the run of a fresh process."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mixout.errors import InputError
from mixout.finetune import cache as caching
from mixout.finetune import models
from mixout.finetune.cache import Cache
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Split
from mixout.finetune.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")
TIMED = {"seconds", "evaluation_seconds", "peak_memory", "finished_at"}

SCRIPT = """
import sys
import torch
from pathlib import Path
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune

torch.set_num_threads(1)
finetune(Settings.from_json(sys.argv[1]), Path(sys.argv[2]))
"""


def fresh_process(settings: Settings, place: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, settings.to_json(), str(place)]
    subprocess.run(command, check=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"})


def check_equal(one: Path, other: Path) -> None:
    """The same files to the byte, but for clocks in the record and the card."""
    names = {file.name for file in one.iterdir()}
    assert names == {file.name for file in other.iterdir()}
    for name in names - {"record.json", "README.md"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = (dataclasses.asdict(Record.read(place)) for place in (one, other))
    for name in first.keys() - TIMED:
        assert first[name] == second[name], name


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a model was loaded and a split encoded."""
    found = {"load": 0, "encode": 0}

    def counting(module, name: str) -> None:
        inner = getattr(module, name)

        def wrapped(*args, **kwargs):
            found[name] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapped)

    counting(models, "load")
    counting(caching, "encode")
    return found


@pytest.mark.sweep
def test_the_second_run_equals_a_fresh_process(settings, tmp_path, counts):
    cache = Cache()
    finetune(settings(epochs=1.0), tmp_path / "before", cache=cache)
    chosen = settings(seed=1, method="mixout(0.7)+anchor_decay(0.01)", reinit_layers=1, batching="bucketed")
    finetune(chosen, tmp_path / "cached", cache=cache)
    assert counts == {"load": 1, "encode": 2}
    fresh_process(chosen, tmp_path / "fresh")
    check_equal(tmp_path / "fresh", tmp_path / "cached")


def test_the_same_run_twice(settings, tmp_path, counts):
    cache = Cache()
    for place in ("a", "b"):
        finetune(settings(), tmp_path / place, cache=cache)
    assert counts == {"load": 1, "encode": 2}
    finetune(settings(), tmp_path / "c")
    assert counts == {"load": 2, "encode": 4}
    check_equal(tmp_path / "a", tmp_path / "b")
    check_equal(tmp_path / "c", tmp_path / "b")


def test_other_lengths_and_subsets_are_encoded_anew(settings, tmp_path, counts):
    cache = Cache()
    finetune(settings(epochs=0.1), tmp_path / "a", cache=cache)
    finetune(settings(epochs=0.1, max_length=8), tmp_path / "b", cache=cache)
    assert counts["encode"] == 4
    finetune(settings(epochs=0.1, train_size=16), tmp_path / "c", cache=cache)
    assert counts == {"load": 1, "encode": 5}
    finetune(settings(epochs=0.1, max_length=8), tmp_path / "d")
    check_equal(tmp_path / "d", tmp_path / "b")


def test_files_that_change_are_read_again(settings, tiny_bert, tiny_task, tmp_path, counts):
    model, task = tmp_path / "model", tmp_path / "task"
    shutil.copytree(tiny_bert, model)
    shutil.copytree(tiny_task, task)
    cache = Cache()
    chosen = settings(model=str(model), task=str(task), epochs=0.1)
    before = finetune(chosen, tmp_path / "before", cache=cache)

    file = task / "train.csv"
    file.write_text(file.read_text().replace("bata", "bavi"))
    other_text = finetune(chosen, tmp_path / "text", cache=cache)
    assert other_text.fingerprints["train"] != before.fingerprints["train"]
    assert counts == {"load": 1, "encode": 3}

    loaded = models.load(tiny_bert, labels=("a", "b"), init_seed=0)
    with torch.no_grad():
        loaded.model.bert.pooler.dense.weight.add_(1.0)
    loaded.model.bert.save_pretrained(model)
    other_weights = finetune(chosen, tmp_path / "weights", cache=cache)
    assert other_weights.fingerprints["anchor"] != before.fingerprints["anchor"]
    finetune(chosen, tmp_path / "alone")
    check_equal(tmp_path / "alone", tmp_path / "weights")


def test_models_and_labels_take_turns(settings, tiny_bert, tmp_path, counts):
    cache, task = Cache(), Cache().task(settings())
    for labels in (("a", "b"), ("a", "b"), None, ("a", "b")):
        loaded, start = cache.model(settings(), replace(task, labels=labels))
        assert loaded.model.config.num_labels == (1 if labels is None else 2)
        assert start.keys() == dict(loaded.model.named_parameters()).keys() - loaded.new
        assert all(start[name].data_ptr() != loaded.model.get_parameter(name).data_ptr() for name in start)
    assert counts["load"] == 3


def test_data_of_the_hub_are_asked_for_once(monkeypatch: pytest.MonkeyPatch):
    asked = []
    split = Split(text=("a", "b"), label=(0, 1))
    task = Settings(task="RTE")

    def from_hub(key, _layout):
        asked.append(key)
        return split, split

    monkeypatch.setattr("mixout.finetune.tasks.glue._from_hub", from_hub)
    cache = Cache()
    assert cache.task(task) == cache.task(Settings(task="RTE", seed=4))
    assert len(cache.task(Settings(task="CoLA")).train) == 2
    assert asked == ["rte", "cola"]


def test_what_one_run_may_not_ask_for_is_refused_after_another_run_too():
    cache, task = Cache(), Settings(task="docstrings")
    cache.task(task)
    with pytest.raises(InputError, match="assistant_only_loss only with conversations"):
        cache.task(replace(task, assistant_only_loss=True))


def test_the_saved_tokenizer_is_the_one_that_was_loaded(settings, tiny_bert, tmp_path):
    finetune(settings(epochs=0.1), tmp_path / "out")
    saved, loaded = (json.loads((Path(at) / "tokenizer.json").read_text()) for at in (tmp_path / "out", tiny_bert))
    assert saved == loaded
