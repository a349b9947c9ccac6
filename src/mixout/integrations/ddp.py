"""Find ranks of a distributed run that disagree on the method, p, the seed or the masks drawn so far.

DDP needs nothing of this: :func:`mixout.apply_` and ``DistributedDataParallel(model)`` in either order. It needs torch
only.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from mixout.errors import RankMismatchError
from mixout.saving import save_state


def check_ranks(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Compare what :func:`mixout.save_state` gives on all ranks: methods, anchors, p, seed, number of masks drawn.

    Every rank must call it. With ``Seed(scope="rank")`` seed and numbers of masks may differ.

    Args:
        model: a model that carries a method, in DDP or not.
        group: the ranks to compare; None for all.

    Raises:
        RankMismatchError: on every rank, if one differs from the first; the message says in what.
        NotAppliedError: if the model carries no method.
    """
    own = _facts(model)
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, own, group=group)
    for rank, facts in enumerate(every):
        for what, first in every[0].items():
            if facts.get(what) != first:
                raise RankMismatchError(
                    f"expected the same {what} on every rank, got {first} on rank 0 and {facts.get(what)} on rank "
                    f"{rank}; {_REMEDIES.get(what, _APPLY_ALIKE)}, or give each rank its own masks with "
                    'seed=mixout.Seed(scope="rank")'
                )


_APPLY_ALIKE = "apply the same method with the same seed to the same weights on every rank"
_REMEDIES = {
    "p": "set p from the step, which all ranks share",
    "draws": "call every mixed layer equally often on every rank while the model is in training mode",
}


def _facts(model: nn.Module) -> dict[str, Any]:
    first = save_state(model, tensors=False)
    parts = [first, *first["also"]]
    own_masks = any(part["scope"] == "rank" for part in parts)
    apart = {"also", *(("seed", "agreed_seed", "draws") if own_masks else ())}
    return {
        what: value if len(parts) == 1 else [part.get(what) for part in parts]
        for what, value in first.items()
        if what not in apart
    }
