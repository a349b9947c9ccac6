"""A run that was killed goes on to the very result of one that was not."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.finetune.conftest import Stopped, interrupted, options, stop

from mixout.cli import main
from mixout.errors import InputError
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")

# Runs in a process of its own, which a signal ends: at the end of a step, in the middle of one, or while a
# checkpoint is being written.
VICTIM = """
import os, signal, sys
from mixout import cli
from mixout.finetune import course, trainer

when, step, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
# A shell that starts the tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

def deadly(kind, name):
    method = getattr(kind, name)
    def wrapped(self, *args, **kwargs):
        state = args[1] if name.startswith("on_") else self.state
        if state.global_step == step:
            os.kill(os.getpid(), number)
        return method(self, *args, **kwargs)
    setattr(kind, name, wrapped)

kind, name = {
    "step ends": (course.Course, "on_step_end"),
    "in a step": (trainer.TextTrainer, "compute_loss"),
    "checkpoint is written": (course.Course, "on_save"),
}[when]
deadly(kind, name)
sys.exit(cli.main(sys.argv[4:]))
"""


@pytest.fixture
def settings(tiny_bert, tiny_task) -> Callable[..., Settings]:
    """Settings of a run of 3 epochs of 6 steps; the last batch has 2 of 8 examples."""

    def build(**changes) -> Settings:
        values = {"model": tiny_bert, "task": tiny_task, "max_length": 32, "learning_rate": 1e-2, "epochs": 3.0}
        return Settings(**(values | {"batch_size": 8, "method": "mixout(0.5)+anchor_decay(0.1)"} | changes))

    return build


def die(
    settings: Settings, place: Path, when: str, step: int, number: int = signal.SIGKILL
) -> subprocess.CompletedProcess:
    script = [sys.executable, "-c", VICTIM, when, str(step), str(int(number)), "finetune"]
    return subprocess.run(
        [*script, *options(settings), "--output-dir", str(place)],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def check_equal(first: Path, second: Path) -> None:
    """Bit for bit the same weights, and the same in everything that a clock does not enter."""
    one, two = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    timed = {"seconds", "evaluation_seconds", "peak_memory", "finished_at"}
    records = [dataclasses.asdict(Record.read(place)) for place in (first, second)]
    for name in records[0].keys() - timed:
        assert records[0][name] == records[1][name], name
    assert (second / "README.md").is_file()
    assert not (second / "checkpoints").exists()


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("changes", "when", "step", "left"),
    [
        # In the second epoch, two steps after a checkpoint in its middle.
        ({"save": 4}, "step ends", 10, ["checkpoint-4", "checkpoint-8"]),
        # The checkpoint of step 12 ends an epoch. It is cut off, so the run goes on from step 9.
        (
            {"save": 3, "optimizer": "bertadam", "accumulation": 1, "layer_decay": 0.9},
            "checkpoint is written",
            12,
            ["checkpoint-12", "checkpoint-9"],
        ),
    ],
)
def test_a_killed_process(settings, tmp_path, changes, when, step, left):
    chosen = settings(**changes)
    died = die(chosen, tmp_path / "killed", when, step)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert sorted(path.name for path in (tmp_path / "killed" / "checkpoints").glob("checkpoint-*")) == left
    assert not (tmp_path / "killed" / "record.json").exists()

    with pytest.raises(InputError, match="--resume"):
        finetune(chosen, tmp_path / "killed")
    lines: list[str] = []
    finetune(chosen, tmp_path / "killed", resume=True, report=lines.append)
    assert any("from step" in line for line in lines)
    finetune(chosen, tmp_path / "whole")
    check_equal(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.sweep
def test_an_interrupt_leaves_the_last_checkpoint_and_says_how_to_go_on(settings, tmp_path):
    chosen = settings(accumulation=2, save=1, epochs=4.0)
    died = die(chosen, tmp_path / "stopped", "in a step", 5, signal.SIGINT)
    assert died.returncode == 130, died.stderr
    assert "--resume" in died.stderr
    assert str(tmp_path / "stopped") in died.stderr
    assert "Traceback" not in died.stderr
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-5" / "complete").is_file()
    finetune(chosen, tmp_path / "stopped", resume=True)
    finetune(chosen, tmp_path / "whole")
    check_equal(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.sweep
def test_a_killed_language_model(causal, tmp_path):
    # Killed in its second epoch: what it knew before training comes from the checkpoint, and is not looked up again.
    chosen = causal(save=3, method="mixout(0.5)+anchor_decay(0.1)", accumulation=2)
    died = die(chosen, tmp_path / "killed", "step ends", 5)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]
    lines: list[str] = []
    finetune(chosen, tmp_path / "killed", resume=True, report=lines.append)
    assert any("from step 3" in line for line in lines)
    finetune(chosen, tmp_path / "whole")
    check_equal(tmp_path / "whole", tmp_path / "killed")
    assert [entry.step for entry in Record.read(tmp_path / "killed").evaluations] == [0, 4, 8]


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, 13),
        pytest.param(
            {"save": 6}, 13, marks=pytest.mark.sweep
        ),  # at the end of an epoch, where the Trainer on its own would lose an evaluation
        ({"save": 5, "epochs": 2.5, "evaluate": "end"}, 12),
        ({"save": 1, "optimizer": "sgd", "learning_rate": 0.1, "method": "dropout(0.3)"}, 17),
        pytest.param({"save": 7, "method": "mixconnect(0.5)", "precision": "bf16"}, 8, marks=pytest.mark.sweep),
        pytest.param({"save": 4, "batching": "bucketed", "reinit_layers": 1}, 9, marks=pytest.mark.sweep),
        pytest.param({"save": 4, "head": "mixout"}, 9, marks=pytest.mark.sweep),
        ({"save": "no"}, 9),
        pytest.param({"save": 16}, 3, marks=pytest.mark.sweep),
        ({"save": 4, "keep_best": True, "epochs": 3.0}, 13),
        ({"save": 4, "patience": 1, "logging_steps": 5}, 6),
    ],
)
def test_going_on_equals_going_through(settings, tmp_path, changes, step):
    chosen = settings(**changes)
    interrupted(chosen, tmp_path / "stopped", step)
    finetune(chosen, tmp_path / "stopped", resume=True)
    finetune(chosen, tmp_path / "whole")
    check_equal(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("kind", ["labels", "tags"])
def test_going_on_with_several_labels_or_tags(settings, moods, names, kind, tmp_path):
    task = {"task": moods} if kind == "labels" else {"task": names, "task_type": "token-classification"}
    chosen = settings(**task, batch_size=24, save=3, epochs=2.0)
    interrupted(chosen, tmp_path / "stopped", 6)
    finetune(chosen, tmp_path / "stopped", resume=True)
    finetune(chosen, tmp_path / "whole")
    check_equal(tmp_path / "whole", tmp_path / "stopped")


def test_going_on_without_a_word_on_the_settings(settings, tmp_path, capsys):
    chosen = settings(save=4, learning_rate=None)
    interrupted(chosen, tmp_path / "stopped", 9)
    assert main(["finetune", "--resume", str(tmp_path / "stopped"), "--seed", "7"]) == 2
    assert "seed (was 0, got 7)" in capsys.readouterr().err
    assert main(["finetune", "--resume", str(tmp_path / "stopped")]) == 0
    finetune(chosen, tmp_path / "whole")
    check_equal(tmp_path / "whole", tmp_path / "stopped")


def test_going_on_twice(settings, tmp_path):
    chosen = settings(save=2)
    interrupted(chosen, tmp_path / "stopped", 5)
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, 11)
        with pytest.raises(Stopped):
            finetune(chosen, tmp_path / "stopped", resume=True)
    finetune(chosen, tmp_path / "stopped", resume=True)
    finetune(chosen, tmp_path / "whole")
    check_equal(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    "changes",
    [{"save": 4}, {"save": 4, "patience": 1, "learning_rate": 1e-30}, {"patience": 1, "learning_rate": 1e-30}],
)
def test_killed_after_training_before_the_record(settings, tmp_path, changes):
    """Also where nothing got better: it ends there again, and does not train on."""
    chosen = settings(**changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "write", lambda *_: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            finetune(chosen, tmp_path / "stopped")
    assert (tmp_path / "stopped" / "model.safetensors").is_file()
    finetune(chosen, tmp_path / "stopped", resume=True)
    finetune(chosen, tmp_path / "whole")
    check_equal(tmp_path / "whole", tmp_path / "stopped")


def test_only_the_last_checkpoints_are_kept(settings, tmp_path):
    interrupted(settings(save=1), tmp_path / "out", 9)
    names = {path.name for path in (tmp_path / "out" / "checkpoints").glob("checkpoint-*")}
    assert names == {"checkpoint-7", "checkpoint-8"}


def test_seconds_go_on_counting(settings, tmp_path):
    chosen = settings(save=4)
    interrupted(chosen, tmp_path / "out", 9)
    state = tmp_path / "out" / "checkpoints" / "checkpoint-8" / "trainer_state.json"
    values = json.loads(state.read_text())
    values["log_history"] = [
        entry | ({"seconds": 1000.0} if "loss" in entry else {}) for entry in values["log_history"]
    ]
    state.write_text(json.dumps(values))
    assert 1000 < finetune(chosen, tmp_path / "out", resume=True).seconds < 1100
