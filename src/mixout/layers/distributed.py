"""Weights of which each rank holds a part: which mixed layer takes them, and what cannot be.

FSDP2 (``fully_shard``) gathers such a weight for each pass, tensor parallelism (``parallelize_module``) computes with
the parts. Neither is imported here: a model that holds such weights has loaded them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mixout.errors import MixoutError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from mixout.layers.mixed import Mixed

_ADVICE = "shard it with FSDP2 (torch.distributed.fsdp.fully_shard; accelerate: fsdp_version 2) before apply_"


def in_parts(weight: object) -> bool:
    """Whether ``weight`` is a DTensor."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(weight, kind)


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The class of ``module``, without the part that ``fully_shard`` adds to it."""
    kind = type(module)
    fsdp = _loaded("FSDPModule")
    return kind.__mro__[2] if fsdp is not None and kind.__mro__[1] is fsdp else kind


def still_sharded(module: nn.Module, plain: type[nn.Module]) -> type[nn.Module]:
    """``plain`` with the part that ``fully_shard`` has added to the class of ``module`` since it was mixed, if any."""
    fsdp = _loaded("FSDPModule")
    if fsdp is None or not isinstance(module, fsdp) or issubclass(plain, fsdp):
        return plain
    return type(f"FSDP{plain.__name__}", (fsdp, plain), {})


def distributed_class(module: nn.Module) -> type[Mixed] | None:
    """The mixed layer that stands for ``module``, whose weight lies in parts; None if it is no linear."""
    if plain_type(module) is not nn.Linear:
        return None
    if _gathered_by_fsdp(module):
        from mixout.layers.sharded import sharded_class

        return sharded_class(module)
    from mixout.layers.tensor_parallel import TensorParallelLinear

    return TensorParallelLinear


def distributed_obstacle(module: nn.Module, weight: DTensor) -> str | None:
    """Why a weight that lies in parts cannot be mixed, or None."""
    if plain_type(module) is not nn.Linear:
        return f"its weight lies in parts on several ranks; there nn.Linear alone can be mixed, not {_name(module)}"
    if _gathered_by_fsdp(module):
        from mixout.layers.sharded import obstacle
    else:
        from mixout.layers.tensor_parallel import obstacle
    return obstacle(weight)


def attach_(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Hook those of ``layers``, by their names in ``model``, whose weights FSDP2 gathers into its all-gathers.

    Raises:
        MixoutError: see :func:`mixout.layers.sharded.attach_`.
    """
    if any(_gathered_by_fsdp(layer) and in_parts(layer._parameters["weight"]) for layer in layers.values()):
        from mixout.layers.sharded import attach_ as attach_sharded_

        attach_sharded_(model, layers)


def reshard_(model: nn.Module) -> None:
    """Let FSDP2 show the parts again; it hides those of the root between passes. Nothing is sent."""
    fsdp = _loaded("FSDPModule")
    if fsdp is not None:
        for module in model.modules():
            if isinstance(module, fsdp):
                module.reshard()


def check_sharding(model: nn.Module) -> None:
    """Refuse weights that are sharded in a way that leaves no weight to mix.

    Raises:
        MixoutError: if the model is sharded by FSDP1 or by DeepSpeed's ZeRO-3.
    """
    fsdp1 = _loaded("FullyShardedDataParallel")
    if fsdp1 is not None and any(isinstance(module, fsdp1) for module in model.modules()):
        raise MixoutError(
            f"expected whole weights, or ones sharded by FSDP2, got a model in FullyShardedDataParallel; {_ADVICE}"
        )
    for parameter in model.parameters():
        check_whole(parameter)


def check_whole(weight: torch.Tensor) -> None:
    """Refuse a weight that DeepSpeed's ZeRO-3 has taken apart.

    Raises:
        MixoutError: if it has.
    """
    if hasattr(weight, "ds_id"):
        raise MixoutError(
            f"expected whole weights, or ones sharded by FSDP2, got a model sharded by DeepSpeed's ZeRO-3; {_ADVICE}, "
            "or use ZeRO-1 or ZeRO-2"
        )


def check_scope(layers: Mapping[str, nn.Module], scope: str) -> None:
    """Refuse to toss different coins for the parts of one weight.

    Raises:
        MixoutError: if a layer's weight lies in parts and each rank is to have masks of its own.
    """
    name = next((name for name, layer in layers.items() if in_parts(layer._parameters["weight"])), None)
    if scope == "rank" and name is not None:
        raise MixoutError(
            f"expected scope='all' for {name!r} and other weights that lie in parts on several ranks, which must toss "
            "the same coins, got 'rank'; leave scope out"
        )


def _gathered_by_fsdp(module: nn.Module) -> bool:
    return getattr(module, "_is_fsdp_managed_module", False) is True  # set by fully_shard


def _loaded(name: str) -> Any:  # noqa: ANN401
    return getattr(sys.modules.get("torch.distributed.fsdp"), name, None)


def _name(module: nn.Module) -> str:
    return plain_type(module).__name__


def own_part(mask: torch.Tensor, weight: DTensor) -> torch.Tensor:
    """What belongs to this rank of ``mask``, which is broadcastable to the whole of ``weight``."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sizes, offsets = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    for dim, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
        if mask.shape[dim] > 1:
            mask = mask.narrow(dim, offset, size)
    return mask
