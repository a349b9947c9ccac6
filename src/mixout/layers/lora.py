r"""LoRA layers of peft: the frozen base is the anchor, so that mixout needs no copy of anything.

With W = u + s B A, where u is the frozen base, A is (r, in) and B is (out, r), and one mask entry m per input neuron::

    Phi = u + (m / (1-p)) (W - u) = u + s B A diag(m) / (1-p)

which is A with its columns mixed with 0. Each adapter has its own masks. Other units, other gradients and another
anchor would need B A in each pass, a second mixed factor, or a copy of the base: they are refused.

An adapter of a parameter (``target_parameters``, for stacked experts) has an A for each expert, one below the other.
peft reads its factors and calls neither, so it is the layer around them that is mixed, with a mask for each expert.

It does not import peft: where a model holds its layers, peft is loaded.
"""

# ruff: noqa: ANN401  the layers are classes of peft

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixout.errors import MixoutError
from mixout.layers import entry_of, obstacle
from mixout.layers.mixed import Mixed, is_frozen
from mixout.layers.registry import ADAPTED_PARAMETER, dotted
from mixout.parts import in_parts, loaded

# The classes whose forward calls the factors' modules, each on its own. Others merge them first, or hold no modules.
_CALLS_ITS_FACTORS = frozenset(
    f"peft.tuners.lora.{name}"
    for name in ("layer.Linear", "bnb.Linear8bitLt", "bnb.Linear4bit", "torchao.TorchaoLoraLinear")
)
# Initialisations that change the base: what the model began with is then u + s B A, and no longer u.
_MOVES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

ADAPTED_LATER = "but frozen by an adapter that came later"


def sites(model: nn.Module) -> dict[str, Any]:
    """The adapted layers of ``model`` by name; of nested ones the outermost, which decides what is called."""
    layers: dict[str, nn.Module] = {}
    tuner_class = loaded("peft.tuners.tuners_utils", "BaseTunerLayer")
    for name, module in model.named_modules() if tuner_class else ():
        # Sites of their own lie within others: the adapter of a second parameter of one layer, and what an adapted
        # base holds, as the out_proj of torch.nn.MultiheadAttention.
        outer = within(layers, name)
        if isinstance(module, tuner_class) and (
            outer is None or is_of_a_parameter(module) or name.startswith(f"{outer}.base_layer.")
        ):
            layers[name] = module
    return layers


def is_of_a_parameter(layer: nn.Module) -> bool:
    """Whether an adapted layer adapts one parameter of the layer that it wraps."""
    return any(dotted(base) == ADAPTED_PARAMETER for base in type(layer).__mro__)


def within(sites: dict[str, Any], name: str) -> str | None:
    """Which of ``sites`` the module called ``name`` is a part of, or None; a layer is no part of itself."""
    while name:
        name = name.rpartition(".")[0]
        if name in sites:
            return name
    return None


def merged_around(sites: dict[str, Any], name: str) -> str | None:
    """Why no adapter of the site called ``name`` can be mixed: another site reads it, as attention its out_proj."""
    outer = within(sites, name)
    if outer is None or dotted(type(sites[outer])) != "peft.tuners.lora.layer.MultiheadAttention":
        return None
    return "the adapted attention around it merges its adapter, and calls no factor"


def is_factor(sites: dict[str, Any], name: str) -> bool:
    """Whether the module called ``name`` is an A or a B of one of ``sites``."""
    site_name = within(sites, name)
    return site_name is not None and name[len(site_name) + 1 :].startswith(("lora_A.", "lora_B."))


def problems(sites: dict[str, Any], name: str) -> dict[str, str | None]:
    """Why each adapter of that site cannot be mixed, or None if it can; under the name "" why none can."""
    layer = sites[name]
    whole = merged_around(sites, name) or _layer_obstacle(layer)
    reasons = {key: whole or variant(layer, key) or obstacle(a, None) for key, a in _factors(layer).items()}
    return reasons or {"": whole or "it holds no adapter"}


def swaps(layer: Any, chosen: Sequence[str]) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """The modules to mix for the adapters ``chosen``: name within ``layer``, module, and weights."""
    if is_of_a_parameter(layer):
        yield "", layer, [f"lora_A.{adapter}.weight" for adapter in chosen]
    else:
        yield from ((f".lora_A.{adapter}", layer.lora_A[adapter], ["weight"]) for adapter in chosen)


def mixed_factors(layer: Any) -> dict[str, Mixed]:
    """The factor A of each adapter of ``layer`` that is mixed, or ``layer`` itself."""
    if isinstance(layer, Mixed):
        return {path.split(".")[1]: layer for path in layer._mixed.anchors}
    return {name: factor for name, factor in _factors(layer).items() if isinstance(factor, Mixed)}


def coverage_row(
    sites: dict[str, Any], name: str, module: nn.Module
) -> tuple[Literal["mixed", "plain", "bypassed"], str]:
    """What the module called ``name``, within one of ``sites``, is for :func:`mixout.coverage`, and why."""
    site_name = within(sites, name) or ""
    layer, (part, _, adapter) = sites[site_name], name[len(site_name) + 1 :].partition(".")
    if part == "base_layer":
        if isinstance(module, Mixed) and not is_frozen(module):
            return "mixed", ""
        if isinstance(module, Mixed):
            return "bypassed", f"mixed, {ADAPTED_LATER}; remove_, add adapters, then apply_"
        return "plain", "base of an adapter"
    problem = _layer_obstacle(layer)
    if not isinstance(module, Mixed) and (around := merged_around(sites, site_name) or problem) is not None:
        return "bypassed", around
    if part not in ("lora_A", "lora_B"):
        return "plain", f"{type(module).__name__} is not a layer that mixout can mix"
    if (problem := problem or variant(layer, adapter)) is not None:
        return "bypassed", problem
    mixed, mixed_anywhere = mixed_factors(layer), {key for site in sites.values() for key in mixed_factors(site)}
    read_mixed = is_of_a_parameter(layer) and part == "lora_A" and adapter in mixed
    if read_mixed or isinstance(module, Mixed):
        return ("mixed", "") if adapter in layer.active_adapters else ("plain", "its adapter is not active")
    if adapter in mixed:
        return "plain", "the other factor of a mixed adapter"
    # An adapter that is mixed elsewhere was there at apply_, and where= left this layer out.
    if mixed or (mixed_anywhere and adapter not in mixed_anywhere):
        return "bypassed", f"adapter {adapter!r} came after apply_: call remove_, then apply_"
    return "plain", "not chosen"


def _factors(layer: Any) -> dict[str, nn.Module]:
    """The factors A by adapter; none where they are no modules."""
    factors = getattr(layer, "lora_A", None)
    return dict(factors.items()) if isinstance(factors, nn.ModuleDict) else {}


def _layer_obstacle(layer: Any) -> str | None:
    """Why no adapter of ``layer`` can be mixed, whatever the adapter, or None."""
    layer_class = type(layer)
    if is_of_a_parameter(layer):
        if not _reads_inputs(layer):
            return f"the A of its adapter does not act on inputs, as far as mixout knows {layer.parameter_name!r}"
    elif dotted(layer_class) not in _CALLS_ITS_FACTORS:
        return f"peft's {dotted(layer_class).removeprefix('peft.tuners.')} is not a LoRA of a linear"
    if layer.merged:
        return "its adapter is merged; unmerge it first"
    if any(p.requires_grad for p in layer.get_base_layer().parameters() if p.dim() >= 2):
        return "its base is trained beside the adapter, and so is no anchor"
    return None


def _reads_inputs(layer: Any) -> bool:
    """Whether the A of an adapter of a parameter has a column for each input neuron of each matrix."""
    base = layer.get_base_layer()
    entry, stacked = entry_of(base), layer.get_param().dim() == 3
    layout = None if entry is None else entry.weights(base).get(layer.parameter_name)
    # peft takes a stack as (experts, in, out) where its layer says so, and else as (experts, out, in).
    transposed = stacked and getattr(base, "is_transposed", False)
    return layout is not None and layout.transposed == transposed and layout.blocks == 1


def variant(layer: Any, adapter: str) -> str | None:
    """Why W - u is not s B A with this adapter, as with DoRA; or None."""
    if (lora_variant := layer.lora_variant.get(adapter)) is None:
        return None
    return f"{type(lora_variant).__name__.removesuffix('Variant')}: its weight is not u + s B A"


def check_base(model: nn.Module) -> None:
    """Refuse adapters whose initialisation has changed the base."""
    for module in model.modules():
        configs = vars(module).get("peft_config")
        for config in configs.values() if isinstance(configs, dict) else ():
            name = getattr(config, "init_lora_weights", None)
            if isinstance(name, str) and name.lower().startswith(_MOVES_THE_BASE):
                raise ValueError(
                    "expected adapters that leave the base as it was pretrained, got init_lora_weights="
                    f"{name!r}, which takes a part out of it: the frozen base is then no anchor; use the default "
                    "initialisation"
                )


def check_unmerged(layer: Any) -> None:
    """Refuse a layer whose base holds its adapter too."""
    if layer.merged:
        raise MixoutError("expected a base without its adapter, got one with it merged; call unmerge_adapter() first")


def base_weight(layer: Any) -> Tensor:
    """The anchor u of a LoRA layer, for its fingerprint; of a quantised base what it stores, or else its values."""
    check_unmerged(layer)
    base = layer.get_base_layer()
    stored = layer.get_param() if is_of_a_parameter(layer) else getattr(base, "weight", None)
    if stored is None:  # of a torch.nn.MultiheadAttention, or packed
        stored = next(itertools.chain(base.parameters(recurse=False), base.buffers(recurse=False)))
    weight: Tensor = stored.detach()
    # Subclasses that hold several tensors have no bytes of their own; one in parts is gathered when it is read.
    return weight.dequantize() if hasattr(weight, "__tensor_flatten__") and not in_parts(weight) else weight


def base_name(name: str, layer: Any) -> str:
    """The dotted name of the base's weight, where ``layer`` is called ``name``."""
    field = layer.parameter_name if is_of_a_parameter(layer) else "weight"
    while hasattr(layer, "base_layer"):
        name, layer = f"{name}.base_layer", layer.base_layer
    return f"{name}.{field}"


def delta_norm(layer: Any) -> float:
    """||W - u|| of a layer with its active adapters, in float64: ||B A|| = ||R A|| where B = Q R, Q orthonormal."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if not active or layer.disable_adapters:
        return 0.0
    factor, groups = layer.lora_A[active[0]].weight, getattr(layer.get_base_layer(), "groups", 1)
    grouped = isinstance(groups, int) and groups > 1  # a convolution whose outputs read a part of A's rows each
    stacks = groups if grouped else getattr(layer, "num_experts", 1)
    device = factor.device if factor.is_cuda else torch.device("cpu")
    a, b = [], []
    for name in active:
        pair = (factors[name].weight for factors in (layer.lora_A, layer.lora_B))
        wide, tall = (weight.detach().to(device).double().flatten(1) for weight in pair)  # convolutions have more axes
        a.append(wide.reshape(stacks, -1, wide.shape[1]))
        # A group's rows of B lie together; of experts the columns of B alternate.
        stacked = (
            tall.reshape(stacks, -1, tall.shape[1]) if grouped else tall.reshape(len(tall), -1, stacks).permute(2, 0, 1)
        )
        b.append(layer.scaling[name] * stacked)
    return float((torch.linalg.qr(torch.cat(b, dim=2)).R @ torch.cat(a, dim=1)).norm())
