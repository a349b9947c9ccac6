"""Layers that read their weight through :mod:`mixout.functional`, and which module becomes which.

A subclass with a forward of its own may do anything with its weight, and is left alone. Whatever would silently not be
mixed is named with its reason by :func:`obstacle`.
"""

from __future__ import annotations

import sys

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import is_parametrized

from mixout.layers.conv import MixedConv1d, MixedConv2d, MixedConv3d
from mixout.layers.distributed import attach_ as attach_
from mixout.layers.distributed import check_scope as check_scope
from mixout.layers.distributed import check_sharding as check_sharding
from mixout.layers.distributed import distributed_class, distributed_obstacle, in_parts
from mixout.layers.distributed import reshard_ as reshard_
from mixout.layers.embedding import MixedEmbedding
from mixout.layers.linear import MixedLinear
from mixout.layers.mixed import Mixed as Mixed
from mixout.layers.mixed import Mixing as Mixing
from mixout.layers.mixed import Share as Share
from mixout.layers.mixed import mixed_subclass
from mixout.layers.mixed import restore_ as restore_
from mixout.layers.mixed import swap_ as swap_

_MIXED: dict[type[nn.Module], type[Mixed]] = {
    nn.Linear: MixedLinear,
    nn.Embedding: MixedEmbedding,
    nn.Conv1d: MixedConv1d,
    nn.Conv2d: MixedConv2d,
    nn.Conv3d: MixedConv3d,
}
_FORWARDS = ("forward", "_conv_forward", "__call__")


def mixed_class(module: nn.Module) -> type[Mixed] | None:
    """The mixed layer that stands for ``module``, or None.

    A subclass that leaves the forward as it is counts as its base, with a mixed class of its own.
    """
    if in_parts(module._parameters.get("weight")):
        return distributed_class(module)
    kind = type(module)
    plain = next((base for base in _plain_classes() if issubclass(kind, base)), None)
    if plain is None or kind is NonDynamicallyQuantizableLinear:
        return None
    if any(getattr(kind, name, None) is not getattr(plain, name, None) for name in _FORWARDS):
        return None
    mixed = _MIXED[plain] if plain in _MIXED else _mixed_conv1d()
    return mixed if kind is plain else mixed_subclass(mixed, kind)


def _mixed_conv1d() -> type[Mixed]:
    from mixout.layers.conv1d import MixedConv1D  # transformers is loaded: the model holds its layer

    return MixedConv1D


def _plain_classes() -> list[type[nn.Module]]:
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return [*_MIXED, *([] if conv1d is None else [conv1d])]


def is_linear(module: nn.Module) -> bool:
    """Whether ``module`` is a linear layer, also one that is mixed already, of either layout."""
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", nn.Linear)
    return isinstance(module, (nn.Linear, conv1d))


def obstacle(module: nn.Module, parent: nn.Module | None) -> str | None:
    """Why ``module`` cannot be mixed, or None: its forward must be called, and must read a plain weight."""
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads this weight without calling the layer"
    weight = module._parameters.get("weight")
    if in_parts(weight) and "forward" not in vars(module):
        return distributed_obstacle(module, weight)  # type: ignore[arg-type]
    if mixed_class(module) is None:
        supported = next((k.__name__ for k in _plain_classes() if isinstance(module, k)), None)
        if supported is not None:
            return f"{type(module).__name__}, a subclass of {supported}, may use its weight in its own way"
        return f"{type(module).__name__} is not a layer that mixout can mix"
    if "forward" in vars(module):
        return "its forward is replaced on the instance (by hooks of another library)"
    if weight is None or is_parametrized(module):
        return "its weight is computed by another tool (pruning, weight norm, ...)"
    if type(weight.data) is not Tensor:
        return f"its weight is a {type(weight.data).__name__}, not a plain tensor"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not floating point"
    return None
