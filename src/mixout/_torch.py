"""Private names of torch: every one that the library reads, each behind one function.

torch offers no public way to what is asked here. Tested on torch 2.13; tests/test_private_names.py fails, name by name,
where a version of torch has changed one, and keeps other files free of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def in_backward() -> bool:
    """Whether autograd runs a backward pass now, so that a forward is a recomputation of an earlier one."""
    return torch._C._current_graph_task_id() != -1


def in_functional_transform() -> bool:
    """Whether a transform of ``torch.func`` (grad, vmap, jvp) is active."""
    return bool(torch._C._are_functorch_transforms_active())


def is_batched(tensor: Tensor) -> bool:
    """Whether ``torch.vmap`` holds one of these for each example."""
    while torch._C._functorch.is_gradtrackingtensor(tensor):  # of torch.func.grad within
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return bool(torch._C._functorch.is_batchedtensor(tensor))


def is_observed() -> bool:
    """Whether a mode sees every operation (selective checkpointing does), or a transform of ``torch.func`` is active.

    The former refuses a result that is changed in place, the latter warns.
    """
    return bool(torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active())


def exporting() -> bool:
    """Whether ``torch.export`` traces; ``torch.compile`` of torch 2.7 takes the public ``is_exporting`` for true."""
    return torch.compiler._is_exporting_flag


def key_value_store() -> Any:  # noqa: ANN401  torch.distributed.Store, which is absent from builds without distributed
    """The store through which the ranks of the default process group have met. Public: only the one a user made."""
    return torch.distributed.distributed_c10d._get_default_store()


def local_tensor(weight: DTensor) -> Tensor:
    """The very tensor in which a rank keeps its part of ``weight``, which FSDP2's hooks are attributes of.

    Public: ``DTensor.to_local``, which gives a view of a parameter's part, not the tensor itself.
    """
    return weight._local_tensor


def managed_by_fsdp(module: nn.Module) -> bool:
    """Whether FSDP2 gathers the parameters of ``module``, also where ``fully_shard`` was called around it."""
    return getattr(module, "_is_fsdp_managed_module", False) is True


def look_for_hooks(owner: FSDPModule, weight: DTensor) -> bool:
    """Let FSDP2 find new hooks of the local tensor of ``weight``; return whether ``owner`` gathers that weight.

    FSDP2 looks for them in ``fully_shard`` and once more before the first forward of ``owner``, but not later.
    """
    state = owner._get_fsdp_state()
    # One group in older versions of torch.
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    for group in groups:
        for parameter in group.fsdp_params:
            if parameter.sharded_param is weight:
                parameter._init_extensions()
                return True
    return False
