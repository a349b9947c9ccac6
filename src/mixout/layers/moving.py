r"""The anchor of GMixout: a moving average of the weight that it is mixed with.

.. math:: A_0 = u, \qquad A \leftarrow b A + (1 - b) w \ \text{ after the last optimizer step of each period}

Kept in float32 or wider, whatever the weight's dtype: in 16 bits steps of 1 - b would be rounded away. It belongs to
one weight alone, so nothing is shared: a copy of the model has its own, and the pretrained weights u, which copies and
other methods share, stay as they are beside it.

Source: arXiv 2510.06982 (GMixout). The order of the update is ours, since the paper's text was not to be had.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixout.anchor import Anchor
from mixout.layers.mixed import Mixed
from mixout.layers.registry import parameter
from mixout.parts import laid_out
from mixout.periods import Period


class MovingAnchor(Anchor):
    """A, which begins at ``start`` and follows the ``weight`` of ``layer`` called ``path``, with b = ``rate``."""

    tensor: Tensor

    def __init__(self, layer: Any, path: str, start: Anchor, weight: Tensor, rate: float, period: Period) -> None:  # noqa: ANN401
        near = start.beside(weight)
        wide = torch.promote_types(weight.dtype, torch.float32)
        began = torch.zeros_like(weight) if near is None else near
        super().__init__(began.detach().to(wide, copy=True), start.digest)
        self._start, self._path, self._rate, self._period = start, path, rate, period
        self.moved_in = 0  # the period that it is the anchor of
        self._enlist(layer)

    @property
    def start(self) -> Anchor:
        """The pretrained weight's."""
        return self._start

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_layer": self._layer()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._enlist(state["_layer"])

    def __deepcopy__(self, memo: dict[int, Any]) -> MovingAnchor:
        memo[id(self)] = twin = object.__new__(MovingAnchor)
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the weight to another device, and to a wider dtype."""
        self._start.apply_(fn)
        example = fn(torch.empty((), dtype=self.tensor.dtype, device=self.tensor.device))
        if not example.is_meta:
            self.tensor = self.tensor.to(example.device, torch.promote_types(self.tensor.dtype, example.dtype))

    def beside(self, weight: Tensor) -> Tensor:
        """The tensor, which a pass casts."""
        if weight.device != self.tensor.device and not weight.is_meta:
            self.tensor = self.tensor.to(weight.device)
        return self.tensor

    def weight(self) -> Tensor | None:
        """The parameter that an optimizer steps now."""
        layer = self._layer()
        return layer.stepped(self._path) if isinstance(layer, Mixed) else None

    @torch.no_grad()
    def move_(self, period: int) -> None:
        """A <- b A + (1-b) w, in place, so that compiled graphs see it."""
        self.moved_in = period
        if (weight := self.weight()) is not None:
            held = self.beside(weight)
            held.lerp_(weight.detach().to(held.dtype), 1 - self._rate)

    @torch.no_grad()
    def restore_(self, saved: Tensor, period: int) -> None:
        """Be ``saved``, whole, the anchor of that period."""
        self.moved_in = period
        self.tensor.copy_(laid_out(saved.to(self.tensor.device, self.tensor.dtype), self.tensor))

    def _enlist(self, layer: Any) -> None:  # noqa: ANN401
        self._layer = weakref.ref(layer)  # so that a model that is deleted is freed at once
        self._period.followers.add(self)


def move_anchors_(layer: Any, rate: float) -> None:  # noqa: ANN401  a mixed layer
    """Let the anchors of ``layer`` follow its weights from now on."""
    share = layer._mixed
    for path, start in share.anchors.items():
        share.anchors[path] = MovingAnchor(layer, path, start, parameter(layer, path), rate, share.mixing.period)  # type: ignore[arg-type]
    share.anchor = next(iter(share.anchors.values()))
