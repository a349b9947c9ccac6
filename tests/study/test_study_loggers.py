"""What W&B, MLflow and TensorBoard call the runs of a study: their own views compare methods then."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import pytest

from mixout.study import executors
from mixout.study.executors import LocalExecutor
from mixout.study.ledger import Ledger
from mixout.study.runner import run

NAMES = ("WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_PROJECT", "MLFLOW_TAGS", "TENSORBOARD_LOGGING_DIR")


class Wandb(SimpleNamespace):
    """A stand-in for wandb, which is not installed. Like 0.31 it reads names once, until it is torn down."""

    finished = 0
    name = None

    def open(self) -> None:
        self.name = self.name or os.environ.get("WANDB_NAME")
        self.run = self.run or SimpleNamespace(name=self.name)

    def finish(self) -> None:
        self.run, self.finished = None, self.finished + 1

    def teardown(self) -> None:
        self.name = None


@pytest.fixture
def seen(monkeypatch) -> list[dict[str, str]]:
    """The environment in which each run is trained; no run ends."""
    found: list[dict[str, str]] = []

    def finetune(*_args, **_options):
        found.append({name: os.environ[name] for name in NAMES if name in os.environ})
        if (wandb := sys.modules.get("wandb")) is not None:
            wandb.open()  # as transformers: an open run is used
            found[-1]["run"] = wandb.run.name
        raise RuntimeError("enough seen")

    monkeypatch.setattr(executors, "finetune", finetune)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return found


def test_loggers_know_task_method_and_restart(seen, declare, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    wandb = Wandb(run=None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    planned = declare(restarts=1, settings={"report_to": ["wandb"]}, factors={"epochs": [1, 2]}).runs()
    run(planned, Ledger(tmp_path), LocalExecutor(), report=lambda _: None, retries=0)
    assert [each.pop("run") for each in seen] == [each["WANDB_NAME"] for each in seen]
    one = seen[0]
    assert one.pop("MLFLOW_TAGS") == json.dumps(
        {
            "epochs": "1", "mlflow.runName": "words, dropout(0.0), epochs 1, restart 0", "task": "words",
            "method": "dropout(0.0)", "restart": "0",
        }
    )  # fmt: skip
    assert one == {
        "WANDB_NAME": "words, dropout(0.0), epochs 1, restart 0",
        "WANDB_RUN_GROUP": "dropout(0.0), epochs 1",
        "WANDB_JOB_TYPE": "words",
        "WANDB_PROJECT": "mine",
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "logs" / "words" / "dropout(0.0), epochs 1" / "restart 0"),
    }
    assert len({each["WANDB_NAME"] for each in seen}) == 4
    # A run that is left open would take in the next one.
    assert wandb.finished == 4
    assert {name for name in NAMES if name in os.environ} == {"WANDB_PROJECT"}


def test_a_run_of_the_callers_own_stays_open(seen, declare, tmp_path, monkeypatch):
    wandb = Wandb(run=SimpleNamespace(name="own"))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run(declare(restarts=1).runs(), Ledger(tmp_path), LocalExecutor(), report=lambda _: None, retries=0)
    assert seen
    assert (wandb.finished, wandb.run is None) == (0, False)


def test_without_loggers_nothing_is_set(seen, declare, tmp_path):
    run(declare(restarts=1).runs()[:1], Ledger(tmp_path), LocalExecutor(), report=lambda _: None, retries=0)
    assert seen == [{}]


def test_tensorboard_shows_a_line_a_run(declare, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    planned = declare(restarts=1, settings={"report_to": ["tensorboard"]}).runs()
    ledger = Ledger(tmp_path)
    run(planned, ledger, LocalExecutor(), report=lambda _: None)
    for one in planned:
        events = event_accumulator.EventAccumulator(str(tmp_path / "logs" / "words" / one.method / "restart 0"))
        events.Reload()
        record = ledger.read().entries[one.id].record
        assert [scalar.value for scalar in events.Scalars("eval/accuracy")] == pytest.approx(
            [evaluation.scores["accuracy"] for evaluation in record.evaluations], abs=1e-6
        )
