"""Adapters to trainers: one file each, imported only where it is needed. And what a trainer's logger should see."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType

from torch import nn

from mixout.measure import distance, has_anchors, radius_used
from mixout.record import applied_to


def measures(model: nn.Module) -> dict[str, float]:
    """``mixout_p``, where a method mixes, and ``anchor_distance``, ||w - u||, where there is an anchor.

    With AnchorDecay also ``anchor_radius_used``, the largest |w - u| / r. Where parts of the model have methods of
    their own, the further ps are ``mixout_p_2``, ``mixout_p_3`` and so on.

    Raises:
        NotAppliedError: if ``model`` carries no method.

    Example:
        >>> import mixout
        >>> measures(mixout.apply_(nn.Sequential(nn.Linear(4, 3)), mixout.Mixout(0.9)))
        {'mixout_p': 0.9, 'anchor_distance': 0.0}
    """
    ps = [float(applied.mixing.p) for applied in applied_to(model) if applied.mixing is not None]
    values = {f"mixout_p_{number}" if number > 1 else "mixout_p": p for number, p in enumerate(ps, start=1)}
    values |= {"anchor_distance": distance(model).total} if has_anchors(model) else {}
    used = radius_used(model)
    return values | ({"anchor_radius_used": max(used.values())} if used else {})


def __getattr__(name: str) -> ModuleType:
    """Load an adapter at its first use: ``mixout.integrations.huggingface``."""
    if name.startswith("_") or not name.isidentifier() or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
