"""Tensors in the host's memory, copied to a device one use ahead: the copy runs beside the work before it.

For anchors that do not fit on the device. Forward reads them layer after layer, backward reads them again the other way
round; which one comes next is what came next the last time. Two buffers, as large as the largest anchor, take turns:
one is read while the other is filled. A wrong guess costs a copy and nothing else.

One thread at a time uses a device's buffers: forward and backward of one model do, and of several in turn.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor

from mixout._torch import in_backward


class Lanes(Protocol):
    """What is needed of a device: a lane that computes, one that copies, and marks that one of them waits for."""

    def lane(self) -> Any:
        """The lane that computes now."""

    def mark(self, lane: Any) -> Any:
        """A mark that is reached when ``lane`` has done all that it was given so far."""

    def wait(self, lane: Any, mark: Any) -> None:
        """Let ``lane`` go on only when ``mark`` is reached."""

    def copy(self, source: Tensor, target: Tensor, after: Any) -> Any:
        """Copy beside the computing once ``after`` is reached (None: at once); the mark of its end."""

    def buffer(self, nbytes: int) -> Tensor:
        """Bytes on the device."""


class _Cuda:
    """Lanes of a GPU: its current stream and one for copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def lane(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device)

    def mark(self, lane: torch.cuda.Stream) -> torch.cuda.Event:
        mark: torch.cuda.Event = lane.record_event()
        return mark

    def wait(self, lane: torch.cuda.Stream, mark: torch.cuda.Event) -> None:
        lane.wait_event(mark)

    def copy(self, source: Tensor, target: Tensor, after: torch.cuda.Event | None) -> torch.cuda.Event:
        if after is not None:
            self._copies.wait_event(after)
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)
        return self.mark(self._copies)

    def buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)


class _Slot:
    """A buffer, what it holds or will hold, and the marks of its last copy and of its last reading."""

    def __init__(self) -> None:
        self.bytes: Tensor | None = None
        self.holds: weakref.ref[Tensor] | None = None
        self.lane: Any = None
        self.filled: Any = None
        self.read: Any = None

    def has(self, tensor: Tensor) -> bool:
        return self.holds is not None and self.holds() is tensor

    def view(self, tensor: Tensor) -> Tensor:
        if self.bytes is None:
            raise RuntimeError("expected a filled buffer, got none")
        return self.bytes[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)


class Ahead:
    """Copies on one device.

    Args:
        lanes: of that device.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._current, self._other = _Slot(), _Slot()
        self._last: tuple[bool, weakref.ref[Tensor]] | None = None
        self._next: dict[tuple[bool, int], weakref.ref[Tensor]] = {}

    def fetch(self, tensor: Tensor, *, backward: bool) -> Tensor:
        """``tensor`` on the device, good until the next call; and begin to copy what comes after it.

        Args:
            tensor: contiguous and pinned.
            backward: in which direction the model is passed; each has an order of its own.
        """
        lane = self._lanes.lane()
        if not self._current.has(tensor):
            if not self._other.has(tensor):
                self._fill(self._other, tensor)
            # All that reads the current one has been given to its lane by now.
            if self._current.lane is not None:
                self._current.read = self._lanes.mark(self._current.lane)
            self._current, self._other = self._other, self._current
        self._lanes.wait(lane, self._current.filled)
        self._current.lane = lane
        following = self._guess(tensor, backward)
        if following is not None and following is not tensor and not self._other.has(following):
            self._fill(self._other, following)
        return self._current.view(tensor)

    def _guess(self, tensor: Tensor, backward: bool) -> Tensor | None:
        if self._last is not None and self._last[0] == backward and (last := self._last[1]()) is not None:
            self._next[backward, id(last)] = weakref.ref(tensor)
        self._last = backward, weakref.ref(tensor)
        found = self._next.get((backward, id(tensor)))
        return None if found is None else found()

    def _fill(self, slot: _Slot, tensor: Tensor) -> None:
        if slot.bytes is None or slot.bytes.numel() < tensor.nbytes:
            if slot.filled is not None:  # its memory goes to others, who compute in this lane
                self._lanes.wait(self._lanes.lane(), slot.filled)
            slot.bytes = self._lanes.buffer(tensor.nbytes)
            # Memory that was in use before: not to be written to until those who used it are done.
            slot.read = self._lanes.mark(self._lanes.lane())
        slot.holds = weakref.ref(tensor)
        slot.filled = self._lanes.copy(tensor, slot.view(tensor), slot.read)


_DEVICES: dict[torch.device, Ahead] = {}


def fetch(tensor: Tensor, device: torch.device) -> Tensor:
    """A pinned ``tensor`` on ``device``, a GPU, good until the next call."""
    if device not in _DEVICES:
        _DEVICES[device] = Ahead(_Cuda(device))
    return _DEVICES[device].fetch(tensor, backward=in_backward())
