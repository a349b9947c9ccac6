"""A study of the tiny model on the tiny task, two methods, runs of six steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mixout.study.grid import Axis, Study


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
