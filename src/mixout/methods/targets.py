"""Weights that decay: each is a :class:`Target`, which lies on the module that holds it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mixout.anchor import AnchorTensor
from mixout.methods.decay import AnchorDecay, Before
from mixout.parts import laid_out

FIELD = "_mixout_decay"  # the attribute of a module that holds its targets by field
TARGETS: weakref.WeakValueDictionary[int, Target] = weakref.WeakValueDictionary()  # in the order of creation
ON_CHANGE: list[Callable[[], None]] = []  # called where a target has come or gone


class Target:
    """A weight that decays, by its module and field, since tools exchange Parameter objects; a copy decays its own."""

    def __init__(
        self,
        module: nn.Module,
        field: str,
        anchor: AnchorTensor,
        method: AnchorDecay,
        strength: float,
        importance: AnchorTensor | None = None,
    ) -> None:
        self._module = weakref.ref(module)  # so that a model that is deleted is freed at once
        self.field = field
        self.anchor = anchor
        self.method = method
        self.strength = strength  # times the learning rate, or if coupled w - u, or if selective nothing
        self.importance = importance
        self.decayed_at = 0  # on the clock of steps
        self.penalised: tuple[Tensor, int] | None = None  # the gradient that holds the penalty, and its version then
        self.before: Before | None = None  # of the step under way, if selective
        TARGETS[id(self)] = self
        changed()

    def __getstate__(self) -> tuple[Any, ...]:
        return self.module, self.field, self.anchor, self.method, self.strength, self.importance

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        Target.__init__(self, *state)

    @property
    def module(self) -> nn.Module | None:
        """The module that holds the weight; None once that is deleted."""
        return self._module()

    def parameter(self) -> nn.Parameter | None:
        """The current parameter; None if the field holds none: parametrized or pruned since, or deleted."""
        module = self._module()
        return None if module is None else module._parameters.get(self.field)

    def importance_beside(self, weight: Tensor) -> Tensor | None:
        """How much each entry counts, on the device of ``weight``, where it stays; None where all count alike."""
        if self.importance is None or self.importance.tensor is None:
            return None
        self.importance.tensor = self.importance.tensor.to(weight.device)
        return laid_out(self.importance.tensor, weight)


def changed() -> None:
    """Tell who watches that a target has come or gone."""
    for tell in ON_CHANGE:
        tell()


def targets(model: nn.Module) -> dict[str, Target]:
    """What decays in ``model``, which may be a part of another, by parameter name."""
    return {
        f"{name}.{field}" if name else field: target
        for name, module in model.named_modules()
        for field, target in vars(module).get(FIELD, {}).items()
    }
