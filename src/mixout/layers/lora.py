r"""LoRA layers of peft: the frozen base is the anchor, so that mixout needs no copy of anything.

A LoRA layer computes with W = u + s B A, where u is the frozen base, A (r, in) and B (out, r) are trained and s is
alpha / r. So W - u = s B A, and with one coin m per input neuron::

    Phi = u + (m / (1-p)) (W - u) = u + s B A diag(m) / (1-p)

which is A with its columns mixed with 0. Where outputs share a coin, the rows of B are. Gradients, with G = dL/dPhi:

- ``exact``: dL/dA = s B^T G diag(m) / (1-p) and dL/dB = s G diag(m) A^T / (1-p), what autograd derives from Phi;
- ``paper``: dPhi/dW = m instead of m / (1-p), and then the chain rule: both are smaller by the factor 1-p.

It does not import peft: where a model holds its layers, peft is loaded. Each adapter is a delta of its own and tosses
its own coins.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixout.errors import MixoutError
from mixout.layers.mixed import Mixed, mixes
from mixout.masks import Unit

# The classes whose forward calls the factors' modules, each on its own. Others merge them first, or hold no modules.
_CALLS_ITS_FACTORS = frozenset(
    f"peft.tuners.lora.{name}"
    for name in ("layer.Linear", "bnb.Linear8bitLt", "bnb.Linear4bit", "torchao.TorchaoLoraLinear")
)
# Initialisations that change the base: what the model began with is then u + s B A, and no longer u.
_MOVES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class MixedFactor(Mixed, nn.Linear):
    """The factor that is not masked, in the paper's convention: its gradient too is smaller by 1-p."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if not mixes(self):
            return nn.Linear.forward(self, input)
        self.count_pass()
        still = self.weight.detach()
        slope = 1 - self._mixed.mixing.probability()
        return nn.functional.linear(input, still + slope * (self.weight - still), self.bias)


@dataclass(frozen=True, kw_only=True)
class Factors:
    """One adapter of a LoRA layer: the factor that is masked, the other one, and their names within the layer."""

    adapter: str
    masked: nn.Module
    other: nn.Module
    masked_name: str
    other_name: str


def is_adapted(module: nn.Module) -> bool:
    """Whether ``module`` is a layer of peft around another one, of whatever kind of adapter."""
    kind = getattr(sys.modules.get("peft.tuners.tuners_utils"), "BaseTunerLayer", None)
    return kind is not None and isinstance(module, kind)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The adapted layers of ``model`` by name; of nested ones the outermost, which decides what is called."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if is_adapted(module) and within(found, name) is None:
            found[name] = module
    return found


def within(layers: dict[str, Any], name: str) -> str | None:
    """Which of ``layers`` the module called ``name`` is a part of, or None; a layer is no part of itself."""
    place = name
    while place:
        place = place.rpartition(".")[0]
        if place in layers:
            return place
    return None


def factors(layer: Any, unit: Unit) -> Iterator[Factors]:  # noqa: ANN401  a class of peft
    """The adapters of a LoRA layer whose factors are modules, for coins of ``unit``."""
    if not isinstance(getattr(layer, "lora_A", None), nn.ModuleDict):
        return
    masked, other = ("lora_A", "lora_B") if unit == "input" else ("lora_B", "lora_A")
    for adapter in layer.lora_A:
        yield Factors(
            adapter=adapter,
            masked=getattr(layer, masked)[adapter],
            other=getattr(layer, other)[adapter],
            masked_name=f"{masked}.{adapter}",
            other_name=f"{other}.{adapter}",
        )


def layer_obstacle(layer: Any) -> str | None:  # noqa: ANN401
    """Why no adapter of ``layer`` can be mixed, or None."""
    kind = type(layer)
    if f"{kind.__module__}.{kind.__qualname__}" not in _CALLS_ITS_FACTORS:
        return f"peft's {kind.__module__.removeprefix('peft.tuners.')}.{kind.__qualname__} is not a LoRA of a linear"
    if layer.merged:
        return "its adapter is merged; unmerge it first"
    if any(p.requires_grad for p in layer.get_base_layer().parameters() if p.dim() >= 2):
        return "its base is trained beside the adapter, and so is no anchor"
    return None


def adapter_obstacle(layer: Any, adapter: str) -> str | None:  # noqa: ANN401
    """Why this adapter of ``layer`` cannot be mixed, or None."""
    variant = layer.lora_variant.get(adapter)
    if variant is None:
        return layer_obstacle(layer)
    kind = variant if isinstance(variant, type) else type(variant)
    return f"{kind.__name__.removesuffix('Variant')}: its weight is not u + s B A"


def moved_base(model: nn.Module) -> str | None:
    """The initialisation of an adapter that changed the base, by name, or None."""
    for module in model.modules():
        configs = vars(module).get("peft_config")
        for config in configs.values() if isinstance(configs, dict) else ():
            chosen = getattr(config, "init_lora_weights", None)
            if isinstance(chosen, str) and chosen.lower().startswith(_MOVES_THE_BASE):
                return chosen
    return None


def base_weight(layer: Any) -> Tensor:  # noqa: ANN401
    """The anchor u of a LoRA layer, for its fingerprint; of a quantised base what it stores, or else its values.

    Raises:
        MixoutError: if an adapter is merged into it.
    """
    if layer.merged:
        raise MixoutError("expected a base without its adapter, got one with it merged; call unmerge_adapter() first")
    weight: Tensor = layer.get_base_layer().weight.detach()
    # Subclasses that hold several tensors have no bytes of their own.
    return weight.dequantize() if hasattr(weight, "__tensor_flatten__") else weight


def delta_norm(layer: Any) -> float:  # noqa: ANN401
    """||W - u|| of a LoRA layer with its active adapters, in float64, without making W - u.

    With B = Q R, Q orthonormal, ||B A|| = ||R A||.
    """
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if not active or layer.disable_adapters:
        return 0.0
    weights = [(layer.lora_A[name].weight, layer.lora_B[name].weight * layer.scaling[name]) for name in active]
    device = weights[0][0].device if weights[0][0].device.type == "cuda" else torch.device("cpu")
    a = torch.cat([one.detach().to(device).double() for one, _ in weights])
    b = torch.cat([one.detach().to(device).double() for _, one in weights], dim=1)
    return float(torch.linalg.matrix_norm(torch.linalg.qr(b).R @ a))
