"""Settings of a short run on the tiny model and task."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mixout.finetune.settings import Settings


@pytest.fixture
def settings(tiny_bert, tiny_task) -> Callable[..., Settings]:
    """Settings of a run of 2 epochs of 6 steps; the last batch has 2 of 8 examples."""

    def build(**changes) -> Settings:
        values = {"model": tiny_bert, "task": tiny_task, "max_length": 32, "learning_rate": 1e-2, "epochs": 2.0}
        return Settings(**(values | {"batch_size": 8, "method": "mixout(0.5)", "save": "no"} | changes))

    return build
