"""A cut-off run goes on with what it began with, or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys

import pytest
from tests.finetune.conftest import interrupted

from mixout.cli import main
from mixout.errors import AnchorMismatchError, InputError
from mixout.finetune import folder
from mixout.finetune.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")


def test_other_text_of_the_original_domain_is_refused(causal, tiny_text, tmp_path):
    other = tmp_path / "other.txt"
    shutil.copy(f"{tiny_text}/other.txt", other)
    chosen = causal(save=4, original=other)
    interrupted(chosen, tmp_path / "out", 6)
    other.write_text("bata bavi")
    with pytest.raises(InputError, match="other content for: original"):
        finetune(chosen, tmp_path / "out", resume=True)


def test_other_settings_are_refused_by_name(settings, tmp_path):
    interrupted(settings(save=4), tmp_path / "out", 9)
    with pytest.raises(InputError) as caught:
        finetune(settings(save=4, seed=1, learning_rate=0.5), tmp_path / "out", resume=True)
    for name in ("learning_rate (was 0.01, got 0.5)", "seed", "mask_seed"):
        assert name in str(caught.value)
    assert "batch_size" not in str(caught.value)
    # Another spelling of the same run, and other loggers, are no other settings.
    finetune(settings(save=4, init_seed=0, method="mixout( .50 )"), tmp_path / "out", resume=True)


def test_a_run_begun_before_a_setting_existed_goes_on(settings, tmp_path):
    interrupted(settings(save=4), tmp_path / "out", 9)
    plan = tmp_path / "out" / "checkpoints" / "run.json"
    values = json.loads(plan.read_text())
    for name in ("batching", "reinit_layers", "head"):
        del values["settings"][name]
    plan.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"batching \(was 'random', got 'bucketed'\)"):
        finetune(settings(save=4, batching="bucketed"), tmp_path / "out", resume=True)
    finetune(settings(save=4), tmp_path / "out", resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_which_another_process_trains_is_refused(settings, tmp_path, resume):
    if resume:
        interrupted(settings(save=4), tmp_path / "out", 6)
    program = (
        "import sys, pathlib; from mixout.finetune.folder import alone\n"
        "with alone(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(InputError, match="for this run alone, got another process that trains in it"):
            finetune(settings(save=4), tmp_path / "out", resume=resume)
        other.stdin.close()
    finetune(settings(save=4), tmp_path / "out", resume=resume)


def test_a_folder_that_another_run_takes_while_this_one_loads_is_refused(settings, tmp_path, monkeypatch):
    begin = folder.begin

    def late(*args, **kwargs):
        monkeypatch.setattr(folder, "begin", begin)
        interrupted(settings(save=4, learning_rate=1e-5), tmp_path / "out", 6)
        return begin(*args, **kwargs)

    monkeypatch.setattr(folder, "begin", late)
    monkeypatch.setattr(folder, "alone", lambda _folder: contextlib.nullcontext())  # as on another machine
    with pytest.raises(InputError, match=r"got '.*out', which holds an unfinished run; continue it with --resume, or"):
        finetune(settings(save=4, learning_rate=1e-3), tmp_path / "out")


def test_other_data_are_refused(settings, tiny_task, tmp_path):
    task = tmp_path / "task"
    shutil.copytree(tiny_task, task)
    interrupted(settings(save=4, task=task), tmp_path / "out", 9)
    file = task / "train.csv"
    file.write_text(file.read_text().replace("first", "third"))
    with pytest.raises(InputError, match="train"):
        finetune(settings(save=4, task=task), tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-8").is_dir()


def test_other_pretrained_weights_are_refused(settings, tiny_bert, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    interrupted(settings(save=4, model=model), tmp_path / "out", 9)
    # The trap: the fine-tuned checkpoint in the place of the pretrained model would become the anchor.
    shutil.copy(tmp_path / "out" / "checkpoints" / "checkpoint-8" / "model.safetensors", model)
    with pytest.raises(InputError, match="anchor"):
        finetune(settings(save=4, model=model), tmp_path / "out", resume=True)


def test_the_checkpoints_anchor_is_compared(settings, tmp_path):
    interrupted(settings(save=4), tmp_path / "out", 9)
    state = tmp_path / "out" / "checkpoints" / "checkpoint-8" / "trainer_state.json"
    values = json.loads(state.read_text())
    values["stateful_callbacks"]["MixoutCallback"]["attributes"]["mixout"]["fingerprint"] = "0" * 64
    state.write_text(json.dumps(values))
    with pytest.raises(AnchorMismatchError, match="0000"):
        finetune(settings(save=4), tmp_path / "out", resume=True)


def test_a_run_that_was_cut_off_after_its_record_is_done(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folder, "finish", None)
    with pytest.raises(TypeError):
        finetune(settings(method="anchor_decay(1, fisher=3)"), tmp_path / "out")
    monkeypatch.undo()
    assert (tmp_path / "out/checkpoints").exists()
    assert main(["finetune", "--resume", str(tmp_path / "out")]) == 2
    assert "got a finished one; answers for new rows: mixout predict" in capsys.readouterr().err
    assert not (tmp_path / "out/checkpoints").exists()
    assert (tmp_path / "out/fisher.safetensors").exists()
