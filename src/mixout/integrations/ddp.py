"""Find ranks of a distributed run that disagree on the method, p, the seed or the masks drawn so far.

DDP needs nothing of this: :func:`mixout.apply_` and ``DistributedDataParallel(model)`` in either order. It needs torch
only.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from mixout.errors import RankMismatchError
from mixout.layers import Mixed
from mixout.record import applied_here, applied_to


def check_ranks(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Compare method, layers, anchors, p, seed and the number of masks drawn on all ranks; every rank must call it.

    Of each anchor a few numbers are compared, not all. With ``Seed(scope="rank")`` seed and numbers of masks may
    differ.

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
    found = applied_to(model)
    facts: dict[str, list[Any]] = {
        "method": [applied.seed.subject for applied in found],
        "scope": [applied.seed.scope for applied in found],
        "p": [None if applied.mixing is None else float(applied.mixing.p) for applied in found],
    }
    if all(applied.seed.scope == "all" for applied in found):
        mixed = [module for module in model.modules() if isinstance(module, Mixed)]
        facts["seed"] = [applied.seed.value for applied in found]
        facts["draws"] = [
            {m._mixed.stream.key: m._mixed.stream.count for m in mixed if applied_here(m) is applied}
            for applied in found
        ]
    return {what: values[0] if len(values) == 1 else values for what, values in facts.items()}
