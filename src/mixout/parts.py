"""Weights of which each rank holds a part (DTensors): what belongs to this rank, and the whole again.

Knows tensors, and the classes that ``fully_shard`` makes. ``torch.distributed`` is not imported here: a model that
holds such weights has loaded it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from mixout.errors import MixoutError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Plain = TypeVar("Plain", bound=nn.Module)

FSDP = "torch.distributed.fsdp"
ADVICE = "shard it with FSDP2 (torch.distributed.fsdp.fully_shard; accelerate: fsdp_version 2) before apply_"


def loaded(module: str, name: str) -> Any:  # noqa: ANN401
    """The class ``name`` of ``module``, or where that is not loaded (), of which nothing is an instance."""
    return getattr(sys.modules.get(module), name, ())


def in_parts(weight: object) -> bool:
    """Whether ``weight`` is a DTensor."""
    return isinstance(weight, loaded("torch.distributed.tensor", "DTensor"))


def own_part(tensor: Tensor, weight: DTensor) -> Tensor:
    """This rank's part, as a view, of a mask that is broadcastable to the weight; the last ranks may have none."""
    mesh = weight.device_mesh
    for mesh_dim, placement in enumerate(weight.placements):
        if not placement.is_shard():
            continue
        dim: int = placement.dim  # type: ignore[attr-defined]
        if tensor.shape[dim] != weight.shape[dim]:  # broadcast along it
            continue
        rank, pieces = mesh.get_local_rank(mesh_dim), tensor.chunk(mesh.size(mesh_dim), dim)
        tensor = pieces[rank] if rank < len(pieces) else tensor.narrow(dim, 0, 0)
    return tensor


def local(tensor: Any) -> Tensor:  # noqa: ANN401
    """This rank's part of ``tensor``; ``tensor`` itself where it is whole."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "placements") else tensor
    return part


def laid_out(tensor: Tensor, weight: Tensor) -> Tensor:
    """``tensor``, or a copy of this rank's part of it, as a DTensor, where ``weight`` is one; nothing is sent."""
    if not hasattr(weight, "placements") or hasattr(tensor, "placements"):  # also asked in compiled graphs
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
    # A copy: a view of the part would keep the whole.
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None).clone()


def whole(tensor: Tensor) -> Tensor:
    """``tensor``, gathered from all ranks where it lies in parts: then every rank must call this."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    # With CPU offload the parts lie on the host, where a GPU's collectives do not reach.
    gathered: Tensor = tensor.to(tensor.device_mesh.device_type).full_tensor()  # type: ignore[attr-defined]
    return gathered


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The class of ``module``, without the part that ``fully_shard`` adds to it."""
    module_type = type(module)
    return module_type.__mro__[2] if module_type.__mro__[1] is loaded(FSDP, "FSDPModule") else module_type


def still_sharded(module: nn.Module, plain: type[Plain]) -> type[Plain]:
    """``plain`` with the part that ``fully_shard`` has added to the class of ``module``, if any."""
    fsdp_class = loaded(FSDP, "FSDPModule")
    if not isinstance(module, fsdp_class) or issubclass(plain, fsdp_class):
        return plain
    return type(f"FSDP{plain.__name__}", (fsdp_class, plain), {})


def check_whole(weight: Tensor) -> None:
    """Refuse a weight that DeepSpeed's ZeRO-3 has taken apart."""
    if hasattr(weight, "ds_id"):
        raise MixoutError(
            f"expected whole weights, or ones sharded by FSDP2, got a model sharded by DeepSpeed's ZeRO-3; {ADVICE}, "
            "or use ZeRO-1 or ZeRO-2"
        )


def stepped_by_zero(weight: object) -> bool:
    """Whether DeepSpeed's ZeRO steps flat copies of ``weight``, by the marks of stages 1 and 2, or of stage 3."""
    return hasattr(weight, "_hp_mapping") or hasattr(weight, "ds_id")


def check_stepped(weight: object, method: str) -> None:
    """Refuse a weight that ZeRO steps, which ``method`` would not reach."""
    if stepped_by_zero(weight):
        raise MixoutError(
            "expected an optimizer that steps the model's weights, got DeepSpeed's ZeRO, which steps flat copies that "
            f"{method} does not reach; {method} needs DDP, FSDP2 or stage 0: use one of these, or leave {method} out"
        )


def check_sharding(model: nn.Module) -> None:
    """Refuse a model that FSDP1 or DeepSpeed's ZeRO-3 shards: that leaves no weight to mix."""
    fsdp1 = loaded(FSDP, "FullyShardedDataParallel")
    if any(isinstance(module, fsdp1) for module in model.modules()):
        raise MixoutError(
            f"expected whole weights, or ones sharded by FSDP2, got a model in FullyShardedDataParallel; {ADVICE}"
        )
    for parameter in model.parameters():
        check_whole(parameter)


def reshard_(model: nn.Module) -> None:
    """Let FSDP2 show the parts again; it hides those of the root between passes. Nothing is sent."""
    sharded = loaded(FSDP, "FSDPModule")
    for module in model.modules() if sharded else ():
        if isinstance(module, sharded):
            module.reshard()
