"""Find ranks of a distributed run that disagree on the method, p, the seed or the masks drawn so far.

DDP works without this: :func:`mixout.apply_` and ``DistributedDataParallel(model)`` in either order. It needs torch
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
    facts_by_rank: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(facts_by_rank, _facts(model), group=group)
    for rank, facts in enumerate(facts_by_rank):
        for name, first in facts_by_rank[0].items():
            if facts.get(name) != first:
                raise RankMismatchError(
                    f"expected the same {name} on every rank, got {first} on rank 0 and {facts.get(name)} on rank "
                    f"{rank}; apply the same method with the same seed to the same weights, set p from the step, and "
                    "call every mixed layer equally often on every rank, or give each rank its own masks with "
                    'seed=mixout.Seed(scope="rank")'
                )


def _facts(model: nn.Module) -> dict[str, Any]:
    state = save_state(model, tensors=False)
    parts = [state, *state["also"]]
    own_masks = any(part["scope"] == "rank" for part in parts)
    left_out = {"also", *(("seed", "agreed_seed", "draws") if own_masks else ())}
    return {
        name: value if len(parts) == 1 else [part.get(name) for part in parts]
        for name, value in state.items()
        if name not in left_out
    }
