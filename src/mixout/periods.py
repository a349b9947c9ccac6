"""Masks that are kept for several optimizer steps: which period a model is in.

With a period of k steps the masks of step n are those of period n // k. A step is counted when an optimizer has stepped
a weight that was mixed in a training pass since the last count: so the micro-batches of one step share a mask, several
optimizers of one model count once, and one of another model does not count.

Anchors that move (:class:`mixout.anchor.MovingAnchor`) do so when a period ends, each right after the step of the
optimizer that steps its weight, and after the decay of that step.
"""

from __future__ import annotations

import math
import weakref
from typing import Any, Literal, TypeAlias

from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from mixout.parts import check_stepped, stepped_by_zero

Every: TypeAlias = int | Literal["run"]


def check_every(every: object) -> Every:
    """Return ``every``, whole floats as integers, or say what is wrong with it."""
    if every == "run":
        return "run"
    if isinstance(every, (int, float)) and not isinstance(every, bool) and 1 <= every < math.inf and every % 1 == 0:
        return int(every)
    raise ValueError(f"expected every as a number of optimizer steps, at least 1, or 'run', got {every!r}")


class Period:
    """How many optimizer steps a mask is kept, and which step this is; shared by the layers of one ``apply_``."""

    def __init__(self, every: Every) -> None:
        self.every = every
        self.steps = 0
        self._enlist()

    def __getstate__(self) -> dict[str, Any]:
        return {"every": self.every, "steps": self.steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._enlist()

    @property
    def index(self) -> int:
        """The number of this period."""
        return 0 if self.every == "run" else self.steps // self.every

    def note(self, layer: str, weight: Tensor | None) -> None:
        """A training pass has mixed ``weight`` of ``layer``; None in a compiled graph, where any optimizer counts."""
        self._mixed[layer] = weight

    def count(self, optimizer: Optimizer) -> None:
        """Count a step of ``optimizer``, if it is one of these weights."""
        moving = [pair for layer in list(self.followers) for pair in layer.moving_anchors()]
        if not self._mixed and all(anchor.moved_in == self.index for anchor, _ in moving):
            return
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if any(w is None or id(w) in stepped or stepped_by_zero(w) for w in self._mixed.values()):
            self.steps += 1
            self._mixed.clear()
        for anchor, weight in moving:
            check_stepped(weight, "anchor_ema")
            if anchor.moved_in != self.index and id(weight) in stepped:
                anchor.move_(weight, self.index)

    def _enlist(self) -> None:
        self._mixed: dict[str, Tensor | None] = {}
        self.followers: weakref.WeakSet[Any] = weakref.WeakSet()  # the layers whose anchors move
        if not _HANDLES:
            _HANDLES.append(register_optimizer_step_post_hook(_after_step))
        _PERIODS.add(self)


def come_last_() -> None:
    """Count steps after what other hooks of this library do with the weights."""
    if _HANDLES:
        _HANDLES.pop().remove()
        _HANDLES.append(register_optimizer_step_post_hook(_after_step))


_PERIODS: weakref.WeakSet[Period] = weakref.WeakSet()
# Once there, the hook stays: torch does not allow a hook to remove itself. Without periods it does nothing.
_HANDLES: list[Any] = []


def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:  # noqa: ANN401
    for period in list(_PERIODS):
        period.count(optimizer)
