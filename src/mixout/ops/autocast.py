"""Autocast, done by us: the ops cast what they read and keep autocast from casting Phi a second time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# A compiled graph cannot ask for these, in some versions of torch.
_KINDS = frozenset(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "xpu", "mps", "hpu", "xla")))


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes a linear of ``x`` in, or None; it leaves float64 alone, and does not know every device."""
    kind = x.device.type
    if x.dtype == torch.float64 or not _enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which tensors on ``device`` keep their dtypes."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if _enabled(kind) else nullcontext()


def _enabled(kind: str) -> bool:
    known = kind in _KINDS or torch.amp.is_autocast_available(kind)
    return known and torch.is_autocast_enabled(kind)
