"""Weights of which each rank holds a part: which mixed layer takes them, and what cannot be.

FSDP2 (``fully_shard``) gathers such a weight for each pass, tensor parallelism (``parallelize_module``) computes with
the parts. Their layers are imported only where a model holds such weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from mixout._torch import managed_by_fsdp
from mixout.errors import MixoutError
from mixout.layers.mixed import Mixed
from mixout.parts import ADVICE, check_whole, fsdp, plain_type
from mixout.parts import in_parts as in_parts

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def distributed_class(module: nn.Module) -> type[Mixed] | None:
    """The mixed layer that stands for ``module``, whose weight lies in parts; None if it is no linear."""
    if plain_type(module) is not nn.Linear:
        return None
    if managed_by_fsdp(module):
        from mixout.layers.sharded import sharded_class

        return sharded_class(module)
    from mixout.layers.tensor_parallel import TensorParallelLinear

    return TensorParallelLinear


def distributed_obstacle(module: nn.Module, weight: DTensor) -> str | None:
    """Why a weight that lies in parts cannot be mixed, or None."""
    kind = plain_type(module)
    if kind is not nn.Linear:
        return f"its weight lies in parts on several ranks; there nn.Linear alone can be mixed, not {kind.__name__}"
    if managed_by_fsdp(module):
        from mixout.layers.sharded import obstacle
    else:
        from mixout.layers.tensor_parallel import obstacle
    return obstacle(weight)


def attach_(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Hook those of ``layers``, by their names in ``model``, whose weights FSDP2 gathers into its all-gathers.

    Raises:
        MixoutError: see :func:`mixout.layers.sharded.attach_`.
    """
    if any(managed_by_fsdp(layer) and in_parts(layer._parameters.get("weight")) for layer in layers.values()):
        from mixout.layers.sharded import attach_ as attach_sharded_

        attach_sharded_(model, layers)


def reshard_(model: nn.Module) -> None:
    """Let FSDP2 show the parts again; it hides those of the root between passes. Nothing is sent."""
    sharded = fsdp("FSDPModule")
    if sharded is not None:
        for module in model.modules():
            if isinstance(module, sharded):
                module.reshard()


def check_sharding(model: nn.Module) -> None:
    """Refuse weights that are sharded in a way that leaves no weight to mix.

    Raises:
        MixoutError: if the model is sharded by FSDP1 or by DeepSpeed's ZeRO-3.
    """
    fsdp1 = fsdp("FullyShardedDataParallel")
    if fsdp1 is not None and any(isinstance(module, fsdp1) for module in model.modules()):
        raise MixoutError(
            f"expected whole weights, or ones sharded by FSDP2, got a model in FullyShardedDataParallel; {ADVICE}"
        )
    for parameter in model.parameters():
        check_whole(parameter)


def check_scope(layers: Mapping[str, nn.Module], scope: str) -> None:
    """Refuse masks of each rank's own for the parts of one weight.

    Raises:
        MixoutError: if a layer's weight lies in parts and each rank is to have masks of its own.
    """
    name = next((name for name, layer in layers.items() if in_parts(layer._parameters.get("weight"))), None)
    if scope == "rank" and name is not None:
        raise MixoutError(
            f"expected scope='all' for {name!r} and other weights that lie in parts on several ranks, which need the "
            "same mask, got 'rank'; leave scope out"
        )
