"""What a trainer's logger should see of mixout: p, and how far the model has gone from its anchor."""

from __future__ import annotations

from torch import nn

from mixout.convert import applied_to, distance


def measures(model: nn.Module) -> dict[str, float]:
    """``mixout_p``, where the method mixes, and ``anchor_distance``, ||w - u||, where it holds an anchor.

    Raises:
        NotAppliedError: if ``model`` carries no method.

    Example:
        >>> import mixout
        >>> measures(mixout.apply_(nn.Sequential(nn.Linear(4, 3)), mixout.Mixout(0.9)))
        {'mixout_p': 0.9, 'anchor_distance': 0.0}
    """
    _, applied = applied_to(model)
    found = {} if applied.mixing is None else {"mixout_p": float(applied.mixing.p)}
    return found | ({"anchor_distance": distance(model).total} if applied.anchored else {})
