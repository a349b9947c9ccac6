"""A run's identity: written out by hand once, then what must and must not change it."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import mixout
from mixout.errors import InputError
from mixout.finetune.settings import Settings
from mixout.study.identity import Inputs


@pytest.fixture
def settings(tiny_bert, tiny_task) -> Settings:
    return Settings(
        model=tiny_bert, task=tiny_task, max_length=32, seed=4, train_size=16, save="no", method="mixout(0.9)"
    )


def identity(settings: Settings) -> str:
    return Inputs().identity(settings)


def test_it_is_this_hash(tmp_path):
    """Written out, since a change here means that every run ever made is to be repeated."""
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_text(name)
    (tmp_path / "model" / "README.md").write_text("counts for nothing")
    (tmp_path / "task").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "task" / f"{name}.csv").write_text("text,label\nx,no\ny,yes\n")
    # The rate and the batch size that were the defaults once are left out, as they were then.
    chosen = {"method": "mixout(0.9)", "learning_rate": 2e-5, "batch_size": 32, "epochs": 2}
    settings = Settings(model=tmp_path / "model", task=tmp_path / "task", seed=4, **chosen)

    def sha256(content: object) -> str:
        return hashlib.sha256((content if isinstance(content, str) else json.dumps(content)).encode()).hexdigest()

    split = sha256([["x", "y"], None, [0, 1]])
    values = {
        "data": sha256([split, split, ["no", "yes"]]),
        "data_seed": 4,
        "epochs": 2.0,
        "gradient": "exact",
        "init_seed": 4,
        "mask_seed": 4,
        "method": "mixout(0.9)",
        "mixout": ".".join(mixout.__version__.split(".")[:2]),
        "subset_seed": 0,
        "weights": sha256("\n".join(f"{name} {sha256(name)}" for name in ("config.json", "model.safetensors"))),
    }
    assert identity(settings) == sha256(json.dumps(values, sort_keys=True))


def test_what_is_left_open_is_chosen_by_the_rule(settings):
    named = replace(settings, learning_rate=5e-4, batch_size=8, epochs=30.0)
    assert identity(settings) == identity(named)
    assert identity(replace(settings, learning_rate=4e-4)) != identity(settings)


def test_where_files_lie_does_not_count(settings, tmp_path, monkeypatch):
    for path in (settings.model, settings.task):
        shutil.copytree(path, tmp_path / "elsewhere" / Path(path).name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    moved = replace(settings, model="./tiny-bert", task="./words")
    assert moved.digest() != settings.digest()
    assert identity(moved) == identity(settings)


@pytest.mark.parametrize(
    "same",
    [
        {"report_to": ("tensorboard",), "logging_steps": 3},
        {"seed": 0, "init_seed": 4, "data_seed": 4, "mask_seed": 4},
        {"subset_seed": 0},
        {"metric": "accuracy"},
        {"metric": "f1"},
        {"evaluate": "end"},
        {"save": "epoch"},
        {"save": 5},
        {"method": "mixout(.90, gradient=exact)"},
        {"text_column": "text", "pair_column": None},
    ],
)
def test_what_does_not_make_another_run(settings, same):
    assert identity(replace(settings, **same)) == identity(settings)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 5},
        {"mask_seed": 5},
        {"subset_seed": 5},
        {"method": "mixout(0.9, gradient=paper)"},
        {"where": "paper"},
        {"train_size": 17},
        {"train_size": None},
        {"precision": "bf16"},
        {"learning_rate": 1e-5},
    ],
)
def test_what_makes_another_run(settings, other):
    assert identity(replace(settings, **other)) != identity(settings)


def test_the_score_counts_where_it_decides_what_a_run_ends_with(settings):
    for deciding in ({"patience": 2}, {"keep_best": True}):
        one, other = (replace(settings, **deciding, metric=metric) for metric in ("accuracy", "f1"))
        assert identity(one) != identity(other)
        assert identity(one) != identity(settings)


@pytest.mark.parametrize("file", ["task/dev.csv", "task/train.csv", "model/config.json", "model/model.safetensors"])
def test_other_content_is_another_run(settings, tmp_path, file):
    shutil.copytree(settings.model, tmp_path / "model")
    shutil.copytree(settings.task, tmp_path / "task")
    here = replace(settings, model=str(tmp_path / "model"), task=str(tmp_path / "task"))
    before = identity(here)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content.replace(b"sata", b"savi") if file.endswith("csv") else content + b" ")
    assert identity(here) != before


def test_another_minor_version_before_1_0_is_another_run(settings, monkeypatch):
    known = Inputs()
    before = known.identity(settings)
    monkeypatch.setattr(mixout, "__version__", "0.2.99")
    assert known.identity(settings) == before
    monkeypatch.setattr(mixout, "__version__", "0.3.0")
    assert known.identity(settings) != before


def test_what_is_missing_is_said(settings):
    with pytest.raises(InputError, match="training subset"):
        identity(replace(settings, train_size=1000))
    with pytest.raises(InputError, match="no such folder"):
        identity(replace(settings, model="./nowhere"))


def test_a_language_models_data_count_by_content(tiny_llama, tiny_text, tmp_path):
    settings = Settings(task_type="causal-lm", model=tiny_llama, task=tiny_text, original=f"{tiny_text}/other.txt")
    first = identity(settings)
    assert Inputs().goal(settings) == ("log_likelihood", None)
    shutil.copytree(tiny_text, tmp_path / "elsewhere")
    moved = replace(settings, task=str(tmp_path / "elsewhere"), original=str(tmp_path / "elsewhere" / "other.txt"))
    assert identity(moved) == first
    assert identity(replace(settings, original=None)) != first
    assert identity(replace(settings, metric="original_log_likelihood")) == first
    Path(moved.original or "").write_text("bata bavi")
    assert identity(moved) != first
    with pytest.raises(InputError, match="1 to 30 documents"):
        identity(replace(settings, train_size=31))
