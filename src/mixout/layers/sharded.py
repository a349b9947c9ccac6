"""nn.Linear whose weight lies in parts on several ranks. Imported only when a model holds such weights.

FSDP2: each rank mixes its rows in ``fsdp_pre_all_gather``, and FSDP2's own all-gather brings Phi. The layer is a linear
with Phi whose weight gradient is masked. docs/design.md, "Several devices", says why, and what is refused. A weight
that is still gathered when a forward begins (FSDP2 keeps the root's) is of an earlier pass: it is gathered again.

Tensor parallelism: each rank mixes its part of the weight, with its part of one mask for the whole weight, and computes
with it. All of the weight's gradient is computed.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.utils.hooks import RemovableHandle

from mixout._torch import in_backward, local_tensor, look_for_hooks, managed_by_fsdp
from mixout.errors import MixoutError
from mixout.layers.mixed import Mixed, mixes
from mixout.masks import scale_of
from mixout.ops.mix import as_function_of_weight, interpolate, mix
from mixout.ops.reference import slope_of
from mixout.parts import own_part, still_sharded
from mixout.passes import draw_mask

_HOOKS = ("fsdp_pre_all_gather", "fsdp_post_all_gather")


class Draw(NamedTuple):
    """How Phi is or was made."""

    mask: Tensor  # M, broadcastable to the whole weight
    scale: float  # 1 / mu, or 0 where mu is 0
    slope: float | None  # what M is multiplied by in the gradient; None where the gradient is not masked


@dataclass(kw_only=True)
class Gathering:
    """What FSDP2 does with one layer's weight."""

    owner: FSDPModule  # the innermost module around the layer that fully_shard was called on: it gathers the weight
    mesh: DeviceMesh  # the ranks that share the weight
    rows: Tensor | None = None  # the parameter that holds this rank's part, which an optimizer steps
    shown: Draw | None = None  # how the gathered weight was mixed; None: it is the plain weight
    used: bool = False  # a forward pass has computed with it
    handles: list[RemovableHandle] = field(default_factory=list)  # of the hooks on the outermost such module

    def check(self, draw: Draw | None) -> None:
        """Refuse the backward of a pass whose weight is not the gathered one any more."""
        if self.shown is not draw:
            raise MixoutError(
                "expected the backward of each forward pass before the next forward of the same layer, got several "
                "forward passes first; FSDP2 keeps one gathered weight for all of them. Call backward after each, "
                "put both inputs into one batch, or use DDP"
            )


class ShardedLinear(Mixed, nn.Linear):
    """A linear whose gathered weight is Phi while training and the weight itself in eval mode."""

    _gathering: Gathering

    # Not compiled: how Phi was made is known to Python only.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        gathering = self._gathering
        # Within a backward pass this is a recomputation, for which p may have changed.
        if not in_backward():
            if _wants_phi(self) != (gathering.shown is not None):
                raise MixoutError(
                    "expected a weight gathered for this pass, got one of another; call the module that fully_shard "
                    "was called on, the outermost one, not a layer in it"
                )
            if gathering.used and gathering.shown is not None:
                raise MixoutError(
                    "expected one call of each mixed layer in a forward pass, got a second one; under FSDP2 both would "
                    "see one mask, where one process draws two. Leave such layers out with where=, or use DDP"
                )
            gathering.used = True
        if gathering.shown is not None:
            self.count_pass()
        draw, weight = gathering.shown, self.weight
        if draw is not None and draw.slope is not None:
            weight = as_function_of_weight(weight, draw.mask, draw.slope)
        y = nn.functional.linear(input, weight, self.bias)
        if y.requires_grad:
            y.register_hook(lambda _: gathering.check(draw))  # type: ignore[no-untyped-call]
        return y

    def stepped(self, path: str) -> Tensor | None:  # noqa: ARG002  it has one weight
        """The parameter that an optimizer steps."""
        return self._gathering.rows

    def leave_(self) -> None:
        """Leave FSDP2 as it was; a weight that is gathered as Phi is dropped."""
        gathering = vars(self).get("_gathering")
        if gathering is None:  # apply_ failed before attach_
            return
        for handle in gathering.handles:
            handle.remove()
        gathering.owner.reshard()
        local = local_tensor(self._parameters["weight"])  # type: ignore[arg-type]
        for hook in _HOOKS:
            vars(local).pop(hook, None)
        del self._gathering


class TensorParallelLinear(Mixed, nn.Linear):
    """A linear that reads Phi, in parts, while training and its weight in eval mode."""

    weight: DTensor

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if not mixes(self):
            return nn.Linear.forward(self, input)
        self.count_pass()
        draw = _draw(self, self.weight.shape)
        if draw is None:
            return nn.Linear.forward(self, input)
        weight, anchor, mask = _own(self, self.weight, draw)
        part, whole = mix(weight, anchor, mask, draw.scale, gradient=self._mixed.mixing.gradient), self.weight
        phi = DTensor.from_local(
            part, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
        )
        return nn.functional.linear(input, phi, self.bias)


def _own(layer: Mixed, weight: DTensor, draw: Draw) -> tuple[Tensor, Tensor | None, Tensor]:
    """This rank's parts of weight, anchor and mask."""
    anchor: Any = layer._mixed.anchor.beside(weight)
    return weight.to_local(), None if anchor is None else anchor.to_local(), own_part(draw.mask, weight)


def obstacle(layer: nn.Module, weight: DTensor) -> str | None:
    """Why a weight in parts cannot be mixed, under FSDP2 before it is gathered, or None."""
    if not managed_by_fsdp(layer):
        if not any(placement.is_partial() for placement in weight.placements):
            return None
        return f"its weight is kept in parts that are added up ({weight.placements}); gather it, or shard it with FSDP2"
    *outer, last = weight.placements
    if last != Shard(0) or any(placement != Replicate() for placement in outer):
        return f"its weight lies as {weight.placements}; under FSDP2 it must be sharded by rows, and nothing else"
    if weight.device.type != weight.device_mesh.device_type:
        return "its weight is kept on the host (CPUOffloadPolicy), where FSDP2 does not let it be mixed"
    return None


def mixed_class(module: nn.Module) -> type[Mixed]:
    """The mixed class for ``module``, which stays an FSDPModule where ``fully_shard`` was called on itself."""
    return still_sharded(module, ShardedLinear) if managed_by_fsdp(module) else TensorParallelLinear


def attach_(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Hook into FSDP2's all-gathers those of ``layers``, by their names in ``model``, that are sharded."""
    holders = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for name, layer in layers.items():
        if not isinstance(layer, ShardedLinear):
            continue
        if holders[id(layer.weight)] > 1:
            raise MixoutError(
                f"expected a weight of its own in {name!r}, got one that it shares with another module, which would "
                "see Phi too under FSDP2; leave it out with where="
            )
        parts = name.split(".") if name else []
        paths = [".".join(parts[:depth]) for depth in range(len(parts) + 1)]  # of what is around the layer, and its own
        fsdp_modules = [module for path in paths if isinstance(module := model.get_submodule(path), FSDPModule)]
        if fsdp_modules:
            outermost: nn.Module = fsdp_modules[0]
            layer._gathering = Gathering(owner=fsdp_modules[-1], mesh=layer.weight.device_mesh)  # type: ignore[attr-defined]
            layer._gathering.handles = [
                # Before FSDP2's own hook, which gathers, and after the one that reshards.
                outermost.register_forward_pre_hook(functools.partial(_before_forward, layer), prepend=True),
                outermost.register_forward_hook(functools.partial(_after_forward, layer)),
            ]
        if not (fsdp_modules and _hook(layer)):
            raise MixoutError(
                f"expected the model that fully_shard was called on, got a part of it, which holds {name!r} but not "
                "what gathers its weight; apply to the whole"
            )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _before_forward(layer: ShardedLinear, _module: nn.Module, _args: Any) -> None:  # noqa: ANN401
    """Drop a gathered weight that an earlier pass has used, or that is mixed for another mode; hook new tensors."""
    if in_backward():  # a recomputation, which needs the weight of its own forward
        return
    gathering, wants_phi = layer._gathering, _wants_phi(layer)
    if isinstance(layer.weight, DTensor):
        _hook(layer)
    elif (wants_phi and gathering.used) or wants_phi != (gathering.shown is not None):
        gathering.owner.reshard()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _after_forward(layer: ShardedLinear, _module: nn.Module, _args: Any, _output: Any) -> None:  # noqa: ANN401
    weight = layer.weight
    if isinstance(weight, DTensor) and weight.device_mesh != layer._gathering.mesh:
        raise MixoutError(
            "expected fully_shard(..., reshard_after_forward=True) or False, got a number of ranks, which FSDP2 cannot "
            "combine with a changed all-gather"
        )


def _hook(layer: ShardedLinear) -> bool:
    """Set FSDP2's hooks on the tensor that holds this rank's rows; return whether FSDP2 gathers it."""
    weight: DTensor = layer.weight  # type: ignore[assignment]
    local = local_tensor(weight)
    if hasattr(local, _HOOKS[0]):
        return True
    for name, hook in zip(_HOOKS, (_before_gathering, _after_gathering), strict=True):
        setattr(local, name, hook)
    return look_for_hooks(layer._gathering.owner, weight)


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
    if not in_backward():
        if layer._mixed.mixing.period is not None:
            layer._mixed.mixing.period.begin_pass()
        # The default generators stay as they were: a checkpoint around the whole module recomputes without a draw.
        device = layer.weight.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            gathering.shown = _draw(layer, outer_size) if _wants_phi(layer) else None
        gathering.used = False
    weight: DTensor = layer._parameters["weight"]  # type: ignore[assignment]
    gathering.rows = weight
    draw = gathering.shown
    rows = weight.to_local() if draw is None else interpolate(*_own(layer, weight, draw), draw.scale)
    rows = rows.to(mp_policy.param_dtype or rows.dtype)
    missing_rows = -(-outer_size[0] // mesh.size()) - rows.shape[0]
    return ((torch.cat([rows, rows.new_zeros(missing_rows, outer_size[1])]) if missing_rows else rows,), None)


def _after_gathering(
    gathered: tuple[Tensor, ...],
    metadata: None,  # noqa: ARG001
    param_dtype: torch.dtype,  # noqa: ARG001
    *,
    out: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """The weight to compute with is what was gathered; from the second time on FSDP2 has written it in place."""
    return None if out is not None else (gathered[0], gathered)


def _draw(layer: Mixed, shape: torch.Size) -> Draw | None:
    """A new draw for the whole weight, of that shape; None at p = 0."""
    options = layer.mix_options()
    if options.p == 0:
        return None
    scale = scale_of(float(options.p))
    return Draw(draw_mask(tuple(shape), layer.weight.device, options), scale, slope_of(options.gradient, scale))


def _wants_phi(layer: ShardedLinear) -> bool:
    return mixes(layer) and float(layer._mixed.mixing.p) > 0
