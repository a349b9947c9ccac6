"""Layers that read their weight through :mod:`mixout.functional`, and which module becomes which.

:func:`obstacle` says why a module cannot be mixed, so that none is passed over in silence.
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

# Layers with a forward of ours, which saves arithmetic, or with weights in a list. All others become Lending.
_CLASSES: dict[type[nn.Module] | str, type[Mixed]] = {
    nn.Linear: MixedLinear,
    CONV1D: Transposed,
    nn.Embedding: MixedEmbedding,
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), Recurrent),
}


def mixed_class(module: nn.Module) -> type[Mixed] | None:
    """The mixed class for ``module``, or None. A subclass that keeps the forward gets a mixed class of its own."""
    if in_parts(module._parameters.get("weight")):
        from mixout.layers import sharded  # only where a model needs it

        return sharded.mixed_class(module) if plain_type(module) is nn.Linear else None
    plain, registered = type(module), find(module)
    if registered is None or not keeps_forward(plain, registered[0]) or plain is NonDynamicallyQuantizableLinear:
        return None
    base, entry = registered
    mixed = Lending if entry.forward else _CLASSES.get(base) or _CLASSES.get(dotted(base), Lending)
    return mixed if issubclass(mixed, plain) else mixed_subclass(mixed, plain)


def attach_(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Hook into FSDP2's all-gathers those of ``layers``, by their names in ``model``, whose weights it gathers."""
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
    """Whether ``module`` is a linear layer of any layout, mixed already or not: these are mixed by default."""
    registered = find(module)
    return registered is not None and registered[1].linear


def obstacle(module: nn.Module, parent: nn.Module | None) -> str | None:
    """Why ``module`` cannot be mixed, or None: its forward must be called, and must read plain weights."""
    class_name = type(module).__name__
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads this weight without calling the layer: choose the attention module"
    weight: Any = module._parameters.get("weight")
    if in_parts(weight) and "forward" not in vars(module):
        if plain_type(module) is nn.Linear:
            from mixout.layers import sharded

            return sharded.obstacle(module, weight)
        class_name = plain_type(module).__name__
        return f"its weight lies in parts on several ranks; there nn.Linear alone can be mixed, not {class_name}"
    if isinstance(module, nn.RNNCellBase):  # called by a loop of the user
        return f"{class_name} is called once a time step, each with a mask of its own; use a layer such as nn.LSTM"
    if mixed_class(module) is None:
        registered = find(module)
        if registered is not None:
            return (
                f"{class_name}, a subclass of {registered[0].__name__}, may use its weight in its own way; if it reads "
                f"the attribute as {registered[0].__name__} does, call mixout.register({class_name}) first"
            )
        return f"{class_name} is not a layer that mixout can mix"
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
