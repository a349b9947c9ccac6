"""Autocast, done by us: the ops cast what they read and keep autocast from casting Phi a second time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Asked for once: a compiled graph cannot, in some versions of torch.
_KINDS = frozenset(
    kind
    for kind in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla", torch._C._get_privateuse1_backend_name())
    if torch.amp.is_autocast_available(kind)
)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes a linear of ``x`` in, or None; it leaves float64 alone, and does not know every device."""
    kind = x.device.type
    if x.dtype == torch.float64 or kind not in _KINDS or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which tensors on ``device`` keep their dtypes."""
    kind = device.type
    if kind not in _KINDS or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
