"""nn.Linear under FSDP2: each rank mixes its rows of the weight, and the all-gather that comes anyway brings Phi.

``Phi[rows] = u[rows] + (M / (1-p)) (w[rows] - u[rows])`` in ``fsdp_pre_all_gather``; the layer is a linear with Phi
whose weight gradient is masked. The anchor is sharded like the weight, and nothing else is sent.

- A forward's all-gather tosses the coins of that pass; the one before its backward takes them again.
- A weight that is still gathered when a forward begins (FSDP2 keeps the root's) shows an old pass: it is gathered anew.
- Only one forward pass may wait for its backward: FSDP2 has one gathered weight for all of them. More are refused.

FSDP2 finds its hooks as attributes of the local tensor; there is no tensor subclass. Reads private names of torch's
FSDP2 (``FSDPParam`` and its groups), as of torch 2.13. Loaded only when a model holds such weights.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.utils.hooks import RemovableHandle

from mixout.errors import MixoutError
from mixout.functional import toss
from mixout.layers.distributed import own_part
from mixout.layers.mixed import Mixed, mixes
from mixout.ops.autocast import autocast_dtype
from mixout.ops.gathered import Draw, gathered_linear
from mixout.ops.mix import interpolate


@dataclass(kw_only=True)
class Gathering:
    """What FSDP2 does with one layer's weight.

    Args:
        owner: the module that ``fully_shard`` was called on, with the layer's weight in its group.
        parameter: FSDP2's record of the weight.
        shown: how the gathered weight was made; None: plain.
        used: a forward pass has computed with it.
    """

    owner: FSDPModule
    parameter: Any
    shown: Draw | None = None
    used: bool = False
    handles: list[RemovableHandle] = field(default_factory=list)

    def check(self, draw: Draw | None) -> None:
        """Refuse to go back through a pass whose weight is not the gathered one any more."""
        if self.shown is not draw:
            raise MixoutError(
                "expected the backward of each forward pass before the next forward of the same layer, got several "
                "forward passes first; FSDP2 keeps one gathered weight for all of them. Call backward after each, "
                "put both inputs into one batch, or use DDP"
            )


class ShardedLinear(Mixed, nn.Linear):
    """A linear whose gathered weight is Phi while training and the weight itself in eval mode."""

    _gathering: Gathering

    # Tells a compiler to leave it alone: how Phi was made is known to Python only.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        gathering = self._gathering
        # In a backward pass this is a recomputation, whatever p is by then.
        if not _in_backward() and _wants_phi(self) != (gathering.shown is not None):
            raise MixoutError(
                "expected a weight gathered for this pass, got one of another; call the module that fully_shard was "
                "called on, not a layer in it"
            )
        if not _in_backward():
            gathering.used = True
        if gathering.shown is not None:
            self.count_pass()
        dtype = autocast_dtype(input) or self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return gathered_linear(input.to(dtype), self.weight, bias, gathering.shown, gathering.check)

    def leave_(self) -> None:
        """Leave FSDP2 as it was; a weight that is gathered as Phi is dropped."""
        gathering = vars(self).get("_gathering")
        if gathering is None:  # apply_ failed before it came here
            return
        for handle in gathering.handles:
            handle.remove()
        gathering.owner.reshard()
        local = self._parameters["weight"]._local_tensor  # type: ignore[union-attr]
        for hook in ("fsdp_pre_all_gather", "fsdp_post_all_gather"):
            if hasattr(local, hook):
                delattr(local, hook)
        del self._gathering


def obstacle(weight: DTensor) -> str | None:
    """Why a weight that FSDP2 shards cannot be mixed before it is gathered, or None."""
    *outer, last = weight.placements
    if last != Shard(0) or any(placement != Replicate() for placement in outer):
        return f"its weight lies as {weight.placements}; under FSDP2 it must be sharded by rows, and nothing else"
    if weight.device.type != weight.device_mesh.device_type:
        return "its weight is kept on the host (CPUOffloadPolicy), where FSDP2 does not let it be mixed"
    return None


def sharded_class(module: nn.Module) -> type[ShardedLinear]:
    """The mixed class for ``module``, which stays an FSDPModule where ``fully_shard`` was called on itself."""
    if isinstance(module, FSDPModule):
        return type("FSDPShardedLinear", (FSDPModule, ShardedLinear), {})
    return ShardedLinear


def attach_(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Hook those of ``layers``, by their names in ``model``, that are sharded into FSDP2's all-gathers.

    Raises:
        MixoutError: if a weight is shared by several layers, managed from outside ``model``, or resharded to fewer
            ranks after the forward.
    """
    managers: dict[int, tuple[FSDPModule, Any, Any]] = {}
    for module in model.modules():
        if isinstance(module, FSDPModule):
            state = module._get_fsdp_state()
            # One group in torch 2.7, which is None where it has no parameters.
            groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
            for group in filter(None, groups):
                # In torch 2.7 this replaces the local tensors of ranks with fewer rows, and would lose their hooks.
                group.lazy_init()
                managers.update({id(p.sharded_param): (module, group, p) for p in group.fsdp_params})
    for name, layer in layers.items():
        if not isinstance(layer, ShardedLinear):
            continue
        found = managers.get(id(layer.weight))
        if found is None:
            raise MixoutError(
                f"expected the model that fully_shard was called on, got a part of it, which holds {name!r} but not "
                "what gathers its weight; apply to the whole"
            )
        owner, group, parameter = found
        if parameter._module_info.shared_modules:
            raise MixoutError(
                f"expected a weight of its own in {name!r}, got one that it shares with another module, which would "
                "see Phi too under FSDP2; leave it out with where="
            )
        if group._use_post_forward_mesh:
            raise MixoutError(
                "expected reshard_after_forward True or False, got a number of ranks, which FSDP2 cannot combine with "
                "a changed all-gather"
            )
        layer._gathering = Gathering(owner=owner, parameter=parameter)
        # Before FSDP2's own hook, which gathers.
        layer._gathering.handles = [
            module.register_forward_pre_hook(functools.partial(_refresh, layer), prepend=True)
            for module in owner._get_fsdp_state()._modules
        ]
        _hook(layer)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _refresh(layer: ShardedLinear, _module: nn.Module, _args: Any) -> None:  # noqa: ANN401
    """At the beginning of a forward: drop a gathered weight that shows another pass, and mind exchanged tensors."""
    gathering = layer._gathering
    if gathering.owner._get_fsdp_state()._training_state.name != "IDLE":
        return  # the second module of a group in the same pass, or a recomputation
    if isinstance(layer.weight, DTensor):
        _hook(layer)
    elif (gathering.shown is not None and gathering.used) or (gathering.shown is not None) != _wants_phi(layer):
        gathering.owner.reshard()


def _hook(layer: ShardedLinear) -> None:
    local = layer.weight._local_tensor  # type: ignore[attr-defined]
    if not hasattr(local, "fsdp_pre_all_gather"):
        local.fsdp_pre_all_gather = _before_gathering
        local.fsdp_post_all_gather = _after_gathering
        # FSDP2 looks for hooks before its first forward only.
        layer._gathering.parameter._init_extensions()


@torch.no_grad()
def _before_gathering(
    mesh: DeviceMesh,
    outer_size: torch.Size,
    outer_stride: tuple[int, ...],  # noqa: ARG001
    module: nn.Module,
    mp_policy: MixedPrecisionPolicy,
) -> tuple[tuple[Tensor], None]:
    """What this rank sends: its rows of Phi, or of the weight, in the dtype to compute in, padded as FSDP2 pads."""
    layer: ShardedLinear = module  # type: ignore[assignment]
    gathering = layer._gathering
    if not _in_backward():
        gathering.shown = _toss(layer, outer_size) if _wants_phi(layer) else None
        gathering.used = False
    weight: DTensor = layer._parameters["weight"]  # type: ignore[assignment]
    rows = weight._local_tensor if gathering.shown is None else _mixed_rows(layer, weight, gathering.shown)
    rows = rows.to(mp_policy.param_dtype or rows.dtype)
    missing = -(-outer_size[0] // mesh.size()) - rows.shape[0]
    return ((torch.cat([rows, rows.new_zeros(missing, outer_size[1])]) if missing else rows,), None)


def _after_gathering(
    gathered: tuple[Tensor, ...],
    metadata: None,  # noqa: ARG001
    param_dtype: torch.dtype,  # noqa: ARG001
    *,
    out: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """The weight to compute with is what was gathered; from the second time on FSDP2 has written it in place."""
    return None if out is not None else (gathered[0], gathered)


def _toss(layer: ShardedLinear, shape: torch.Size) -> Draw | None:
    # No trace in the default generator: a checkpoint around the whole module recomputes without coming here.
    with torch.random.fork_rng(devices=()):
        return toss(tuple(shape), layer._gathering.parameter.device, **layer.mix_options())


def _mixed_rows(layer: ShardedLinear, weight: DTensor, draw: Draw) -> Tensor:
    anchor = layer._mixed.anchor.beside(weight)
    local = None if anchor is None else anchor._local_tensor  # type: ignore[attr-defined]
    return interpolate(weight._local_tensor, local, own_part(draw.mask(), weight), draw.scale)


def _wants_phi(layer: ShardedLinear) -> bool:
    return mixes(layer) and float(layer._mixed.mixing.p) > 0


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
