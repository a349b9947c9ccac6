"""What every trainer must show: masks in training, a fresh one in each step. And the examples as modules."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mixout.layers import Mixed

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example() -> Callable[[str], dict[str, Any]]:
    """The names that an example defines."""
    return lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture
def dropped_columns() -> Iterator[Callable[[torch.nn.Module], list[dict[str, tuple[bool, ...]]]]]:
    """Watch a model: at each step of an optimizer, by layer, which columns of the mixed weights got no gradient."""
    handles = []

    def watch(model: torch.nn.Module) -> list[dict[str, tuple[bool, ...]]]:
        steps: list[dict[str, tuple[bool, ...]]] = []
        layers = {name: module for name, module in model.named_modules() if isinstance(module, Mixed)}

        def hook(_optimizer, _args, _kwargs):
            grads = {name: layer.weight.grad for name, layer in layers.items()}
            steps.append({n: tuple((g == 0).all(dim=0).tolist()) for n, g in grads.items() if g is not None})

        handles.append(register_optimizer_step_pre_hook(hook))
        return steps

    yield watch
    for handle in handles:
        handle.remove()
