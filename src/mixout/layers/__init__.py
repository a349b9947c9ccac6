"""Layers that read their weight through :mod:`mixout.functional`, and which module becomes which.

Whatever would silently not be mixed is named with its reason by :func:`obstacle`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from mixout.layers.forwards import Lending, MixedEmbedding, MixedLinear, Recurrent, Transposed
from mixout.layers.mixed import Mixed as Mixed
from mixout.layers.mixed import Mixing as Mixing
from mixout.layers.mixed import Share as Share
from mixout.layers.mixed import mixed_subclass
from mixout.layers.mixed import restore_ as restore_
from mixout.layers.mixed import swap_ as swap_
from mixout.layers.registry import CONV1D, dotted, find, holder_of, keeps_forward
from mixout.layers.registry import Layout as Layout
from mixout.layers.registry import entry_of as entry_of
from mixout.layers.registry import parameter as parameter
from mixout.layers.registry import register as register
from mixout.parts import in_parts, plain_type

# Where a forward of ours spares arithmetic, or the weights are read from a list; all others lend Phi to their own.
_CLASSES: dict[type[nn.Module] | str, type[Mixed]] = {
    nn.Linear: MixedLinear,
    CONV1D: Transposed,
    nn.Embedding: MixedEmbedding,
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), Recurrent),
}


def mixed_class(module: nn.Module) -> type[Mixed] | None:
    """The mixed class for ``module``, one of its own for a subclass that leaves the forward as it is; or None."""
    if in_parts(module._parameters.get("weight")):
        from mixout.layers import sharded  # where a model needs it

        return sharded.mixed_class(module) if plain_type(module) is nn.Linear else None
    kind, found = type(module), find(module)
    if found is None or not keeps_forward(kind, found[0]) or kind is NonDynamicallyQuantizableLinear:
        return None
    base, entry = found
    mixed = Lending if entry.forward else _CLASSES.get(base) or _CLASSES.get(dotted(base), Lending)
    return mixed if issubclass(mixed, kind) else mixed_subclass(mixed, kind)


def attach_(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Hook those of ``layers``, by their names in ``model``, whose weights FSDP2 gathers into its all-gathers."""
    if any(in_parts(layer._parameters.get("weight")) for layer in layers.values()):
        from mixout.layers import sharded

        sharded.attach_(model, layers)


def weights(module: nn.Module) -> list[str]:
    """The names of the weights of ``module`` that are or could be mixed."""
    if isinstance(module, Mixed):
        return list(module._mixed.anchors)
    entry = entry_of(module)
    return [] if entry is None else list(entry.weights(module))


def is_linear(module: nn.Module) -> bool:
    """Whether ``module`` is mixed by default: a linear layer, also one that is mixed already, of any layout."""
    found = find(module)
    return found is not None and found[1].linear


def obstacle(module: nn.Module, parent: nn.Module | None) -> str | None:
    """Why ``module`` cannot be mixed, or None: its forward must be called, and must read plain weights."""
    kind = type(module).__name__
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads this weight without calling the layer: choose the attention module"
    weight: Any = module._parameters.get("weight")
    if in_parts(weight) and "forward" not in vars(module):
        if plain_type(module) is nn.Linear:
            from mixout.layers import sharded

            return sharded.obstacle(module, weight)
        kind = plain_type(module).__name__
        return f"its weight lies in parts on several ranks; there nn.Linear alone can be mixed, not {kind}"
    if isinstance(module, nn.RNNCellBase):  # called by a loop of the user
        return f"{kind} is called once a time step, each with a mask of its own; use a layer such as nn.LSTM"
    if mixed_class(module) is None:
        base = find(module)
        if base is not None:
            return (
                f"{kind}, a subclass of {base[0].__name__}, may use its weight in its own way; if it reads the "
                f"attribute as {base[0].__name__} does, call mixout.register({kind}) first"
            )
        return f"{kind} is not a layer that mixout can mix"
    if "forward" in vars(module):
        return "its forward is replaced on the instance (by hooks of another library)"
    return next(filter(None, (_weight_obstacle(module, path) for path in weights(module))), None)


def _weight_obstacle(module: nn.Module, path: str) -> str | None:
    holder, field = holder_of(module, path)
    weight, name = holder._parameters.get(field), "weight" if path == "weight" else path
    if weight is None and not hasattr(holder, field):
        return f"it has no {name}, with which {type(module).__name__} was registered"
    if weight is None or is_parametrized(holder):
        return f"its {name} is computed by another tool (pruning, weight norm, ...)"
    if is_lazy(weight):
        return f"its {name} has no values yet: run one forward pass"
    if in_parts(weight):
        return f"its {name} lies in parts on several ranks; there nn.Linear alone can be mixed"
    if type(weight.data) is not Tensor:
        return f"its {name} is a {type(weight.data).__name__}, not a plain tensor"
    if not weight.is_floating_point():
        return f"its {name} is {weight.dtype}, not floating point"
    if weight.dim() < 2:
        return f"its {name} has shape {tuple(weight.shape)}, and a matrix is needed"
    return None
