"""Tells a user whose method does nothing, once some steps have shown it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import Optimizer

from mixout.errors import MixoutWarning, outside
from mixout.seeds import count_steps_

STEPS = 20  # steps until the warning: some add a penalty in every k-th step alone


class Watch:
    """Warns once if so many steps of ``modules`` are taken one after another and all are ``idle`` in each of them."""

    def __init__(
        self,
        modules: Iterable[nn.Module] = (),
        idle: Callable[[nn.Module], bool] = bool,
        warning: MixoutWarning | None = None,
    ) -> None:
        self.modules = [weakref.ref(module) for module in modules]
        self.idle, self.warning = idle, warning
        self.steps = 0
        if self.modules:
            count_steps_(self)

    def __reduce__(self) -> tuple[type[Watch], tuple[()]]:
        return Watch, ()  # nobody waits for a copy, as that of an average of weights

    def end(self) -> None:
        """Warn no more."""
        self.modules.clear()

    def count(self, optimizer: Optimizer) -> None:
        """Count a step of ``optimizer``, if a module has one of the parameters that it has stepped."""
        if not self.modules or self._is_busy():
            self.steps = 0
            return
        modules = [module for ref in self.modules if (module := ref()) is not None]
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
        self.steps += any(id(p) in stepped for module in modules for p in module._parameters.values())
        if self.steps == STEPS:
            self._warn()

    def look(self) -> None:
        """Warn before the first step, if all are idle now."""
        if not self._is_busy():
            self._warn()

    def _is_busy(self) -> bool:
        """Whether a module is not idle; the first one is enough, since this is asked in each step."""
        return any((module := ref()) is not None and not self.idle(module) for ref in self.modules)

    def _warn(self) -> None:
        if self.modules and self.warning is not None:
            self.end()
            warnings.warn(self.warning, stacklevel=outside())
