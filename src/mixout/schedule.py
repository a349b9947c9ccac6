"""p over the steps of a run, without recompilation.

A schedule is any function of the step, counted from 0; :class:`PScheduler` follows it as a learning-rate scheduler
follows its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from mixout._names import renamed
from mixout.masks import check_p
from mixout.record import applied_to, follow_

Schedule: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class LinearRamp:
    """``start + (end - start) step / steps``, then ``end``.

    Args:
        start: p at step 0, in [0, 1].
        end: p from step ``steps`` on, in [0, 1].
        steps: length of the warm-up, at least 1.

    Example:
        >>> [LinearRamp(0.0, 0.8, 4)(step) for step in (0, 2, 4, 9)]
        [0.0, 0.4, 0.8, 0.8]
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        check_p(self.start)
        check_p(self.end)
        if isinstance(self.steps, bool) or not isinstance(self.steps, Integral) or self.steps < 1:
            raise ValueError(f"expected steps to be an integer, at least 1, got {self.steps!r}")

    def __call__(self, step: int) -> float:
        """The p at ``step``."""
        return self.start + (self.end - self.start) * self._share(min(max(step, 0) / self.steps, 1.0))

    @staticmethod
    def _share(progress: float) -> float:
        return progress


class CosineRamp(LinearRamp):
    """``start + (end - start) (1 - cos(pi step / steps)) / 2``, then ``end``; arguments as of :class:`LinearRamp`.

    Example:
        >>> [round(CosineRamp(0.0, 0.8, 4)(step), 3) for step in (0, 1, 2, 4, 9)]
        [0.0, 0.117, 0.4, 0.8, 0.8]
    """

    @staticmethod
    def _share(progress: float) -> float:
        return (1 - math.cos(math.pi * progress)) / 2


def last_step_begins(steps: int, batches: int, accumulation: int) -> float:
    """The epoch, in fractions, at which the last of ``steps`` begins; an epoch has so many batches.

    Example:
        >>> last_step_begins(6, batches=5, accumulation=2)  # the last step of an epoch has one batch
        1.8
    """
    epochs, rest = divmod(steps - 1, math.ceil(batches / accumulation))
    return epochs + rest * accumulation / batches


def check_schedule(model: nn.Module, schedule: Schedule) -> None:
    """Refuse, before the first step, a schedule with a p that the method of ``model`` does not have."""
    if isinstance(schedule, type) or not callable(schedule):
        raise TypeError(f"expected a schedule, such as mixout.schedule.LinearRamp(0, 0.7, steps=100), got {schedule!r}")
    for step in (0, getattr(schedule, "steps", 0)):  # a ramp says where it ends
        for applied in applied_to(model):
            if applied.mixing is not None:
                check_p(schedule(step), applied.mixing.noise)


class PScheduler:
    """Keeps p of ``model`` on ``schedule``; call :meth:`step` once after every optimizer step.

    Where layers have ps of their own, the largest is the schedule's and the others keep their proportion to it.

    Args:
        model: a model that carries a mixing method.
        schedule: p as a function of the step, such as ``lambda step: 0.9 if step < 100 else 0.5``. Its p at step 0 is
            checked at once, and that at its ``steps``, if it has such an attribute; others when they are reached.

    Raises:
        NotAppliedError: if ``model`` carries no mixing method.
        TypeError, ValueError: if ``schedule`` is no function, or a p of it is no number in [0, 1], or is 1 where the
            method's noise is Gaussian.

    Example:
        >>> import mixout
        >>> model = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), mixout.Mixout(0.0))
        >>> scheduler = PScheduler(model, LinearRamp(0.0, 0.8, 4))
        >>> scheduler.step()
        >>> scheduler.p
        0.2
    """

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        check_schedule(model, schedule)
        self.model = model
        self.schedule = schedule
        self.steps = 0
        follow_(model, self.p)

    @property
    def p(self) -> float:
        """The p of this step."""
        return self.schedule(self.steps)

    def step(self) -> None:
        """Go one step on."""
        self.steps += 1
        follow_(self.model, self.p)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps taken."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.steps = int(state["steps"])
        follow_(self.model, self.p)


if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, {"Linear": "LinearRamp", "Cosine": "CosineRamp"})
