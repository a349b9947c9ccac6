"""What is wrong is refused before anything is written, so that the corrected run may begin."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import mixout
from mixout.errors import InputError, MissingExtraError
from mixout.finetune import cache, course, folder
from mixout.finetune.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_length": 65}, "max_length <= 64"),
        ({"train_size": 43}, "got 43"),
        ({"precision": "fp16"}, "CUDA"),
        ({"report_to": ("tensorbord",)}, "'tensorboard'"),
        ({"task": "rtee"}, "RTE"),
        ({"text_column": "sentence"}, "'sentence'"),
        ({"metric": "accurracy"}, "accuracy"),
        ({"model": "./nowhere"}, "no such folder"),
        ({"where": "no such layer"}, "got 'no such layer'"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(settings, tmp_path, changes, said):
    if "precision" in changes and torch.cuda.is_available():
        pytest.skip("a CUDA device takes fp16")
    with pytest.raises((InputError, mixout.NothingMixedError)) as caught:
        finetune(settings(**changes), tmp_path / "out")
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_the_model_or_transformers_refuses_begins_no_run(settings, tmp_path, monkeypatch: pytest.MonkeyPatch):
    chosen = settings(layer_decay=0.9, save=4)
    with pytest.raises(InputError, match="reinit_layers <= 2"):
        finetune(settings(reinit_layers=3), tmp_path / "out")
    with monkeypatch.context() as patch:

        def refuse(*_, **__):
            raise ValueError("Your setup doesn't support bf16/gpu.")

        patch.setattr(course, "TrainingArguments", refuse)
        with pytest.raises(InputError, match="bf16/gpu"):
            finetune(chosen, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(cache, "encode", refuse)
        with pytest.raises(ValueError, match="bf16/gpu"):
            finetune(chosen, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    # The corrected command is a new run, not the continuation of one that never began.
    assert finetune(settings(epochs=0.1), tmp_path / "out").steps == 1


def test_a_logger_that_is_not_installed_names_the_pip_command(settings, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mixout.finetune.train.get_available_reporting_integrations", lambda: [])
    with pytest.raises(MissingExtraError, match="pip install wandb"):
        finetune(settings(report_to=("wandb",)), tmp_path / "out")


def test_folders_that_are_taken(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        finetune(settings(), tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="other files"):
        finetune(settings(), tmp_path / "other")
    finetune(settings(epochs=0.1), tmp_path / "done")
    before = (tmp_path / "done" / "record.json").read_bytes()
    for resume in (False, True):
        with pytest.raises(InputError, match="finished"):
            finetune(settings(epochs=0.1), tmp_path / "done", resume=resume)
    assert (tmp_path / "done" / "record.json").read_bytes() == before
    with pytest.raises(InputError, match="leave out --resume"):
        finetune(settings(), tmp_path / "new", resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done", "file", "other"]


def test_an_empty_folder_is_welcome(settings, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".run.json.123.tmp").write_text("{")
    finetune(settings(epochs=0.1), tmp_path)
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())


def test_a_folder_that_cannot_be_written_to(settings, tmp_path, monkeypatch: pytest.MonkeyPatch):
    # A file system that refuses, to everybody: the tests may run as root.
    if Path("/proc/self").is_dir():
        with pytest.raises(InputError, match="can be written to"):
            finetune(settings(), Path("/proc/self/out"))
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InputError, match="no permission"):
        finetune(settings(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small(settings, tmp_path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _path: usage._replace(free=1 << 20))
    with pytest.raises(InputError, match=r"1 MB.*--save no"):
        finetune(settings(save="epoch"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_written_needs_no_room(settings, tmp_path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)
    # As much as is asked for beside the weights.
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _path: usage._replace(free=16 << 20))
    finetune(settings(epochs=0.1), tmp_path / "record", keep_model=False)
    with pytest.raises(InputError, match=r"make room, or choose another --output-dir \(in a study --ledger\)$"):
        finetune(settings(epochs=0.1), tmp_path / "model")
