"""A study of the tiny model on the tiny task, two methods, runs of six steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mixout.finetune.record import Evaluation, Record
from mixout.finetune.settings import Settings
from mixout.study import executors
from mixout.study.executors import LocalExecutor
from mixout.study.grid import Axis, Study
from mixout.study.identity import Planned
from mixout.study.ledger import Ledger
from mixout.study.runner import Tally, run


@pytest.fixture
def declare(tiny_bert: str, tiny_task: str) -> Callable[..., Study]:
    """Declare the study with other settings or other fields."""

    def build(*, restarts: int = 2, settings: dict[str, Any] | None = None, **fields: Any) -> Study:
        values = {
            "name": "tiny",
            "tasks": [Axis(label="words", settings={"task": tiny_task})],
            "methods": [
                Axis(label="dropout(0.0)", settings={"method": "dropout(0.0)"}),
                Axis(label="mixout(0.5)", settings={"method": "mixout(0.5)"}),
            ],
        }
        shared = {"model": tiny_bert, "max_length": 32, "epochs": 1, "batch_size": 8, "learning_rate": 1e-2}
        return Study(**(values | fields), restarts=restarts, settings=shared | {"save": "no"} | (settings or {}))

    return build


@pytest.fixture
def runs(declare: Callable[..., Study]) -> list[Planned]:
    return declare(restarts=2).runs()


@pytest.fixture
def record() -> Callable[..., Record]:
    """The record of a run, with other values."""

    def build(run: Planned, score: float = 0.75, **changes: object) -> Record:
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

    return build


@pytest.fixture
def finish(record: Callable[..., Record]) -> Callable[..., None]:
    """Leave what an executor leaves of a run, and commit it."""

    def build(ledger: Ledger, run: Planned, score: float = 0.75, wall: float | None = 3.0, **changes: object) -> None:
        place = ledger.work(run)
        place.mkdir(parents=True)
        record(run, score, **changes).write(place)
        ledger.commit(run, wall)

    return build


@pytest.fixture
def outcomes() -> Callable[[Ledger], list[tuple[Any, ...]]]:
    """Everything that came out, without what a clock or the machine has a part in."""
    return lambda ledger: [
        (r.task, r.method, r.restart, r.score, r.distance, r.predictions, r.status) for r in ledger.runs()
    ]


@pytest.fixture
def execute() -> Callable[..., Tally]:
    """Run what is missing, in this process; lines of progress go into a list."""
    return lambda planned, ledger, lines=None, **options: run(
        planned, ledger, LocalExecutor(), report=(lambda _: None) if lines is None else lines.append, **options
    )


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Settings], None]], list[Settings]]:
    """Let a function see, and perhaps end, each run before it begins; returns the settings of each."""

    def build(hook: Callable[[Settings], None], patch: pytest.MonkeyPatch = monkeypatch) -> list[Settings]:
        calls: list[Settings] = []
        original = executors.finetune

        def watched(settings: Settings, *args: object, **options: object) -> Record:
            calls.append(settings)
            hook(settings)
            return original(settings, *args, **options)

        patch.setattr(executors, "finetune", watched)
        return calls

    return build


@pytest.fixture
def ran(hooked: Callable[[Callable[[Settings], None]], list[Settings]]) -> list[Settings]:
    """The settings of each call of finetune."""
    return hooked(lambda _: None)
