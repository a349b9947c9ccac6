"""How far LoRA layers of peft have gone: their anchor is the frozen base u, and W - u = s B A is never made."""

# ruff: noqa: ANN401  the layers are classes of peft

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixout.errors import MixoutError
from mixout.layers.lora import is_of_a_parameter, mixed_adapters, mixed_factors


def base_weight(layer: Any) -> Tensor:
    """The anchor u of a LoRA layer, for its fingerprint; of a quantised base what it stores, or else its values.

    Raises:
        MixoutError: if an adapter is merged into it.
    """
    if layer.merged:
        raise MixoutError("expected a base without its adapter, got one with it merged; call unmerge_adapter() first")
    weight: Tensor = (layer.get_param() if is_of_a_parameter(layer) else layer.get_base_layer().weight).detach()
    # Subclasses that hold several tensors have no bytes of their own.
    return weight.dequantize() if hasattr(weight, "__tensor_flatten__") else weight


def base_name(name: str, layer: Any) -> str:
    """The dotted name of that weight, where ``layer`` is called ``name``."""
    field = layer.parameter_name if is_of_a_parameter(layer) else "weight"
    while hasattr(layer, "base_layer"):
        name, layer = f"{name}.base_layer", layer.base_layer
    return f"{name}.{field}"


def base_digest(layer: Any) -> str:
    """The digest of the base, taken by ``apply_``, which every mixed factor of ``layer`` holds with its anchor."""
    return mixed_factors(layer)[0]._mixed.anchor.digest


def delta_norm(layer: Any) -> float:
    """||W - u|| of a LoRA layer with its active adapters, in float64, without making W - u.

    With B = Q R, Q orthonormal, ||B A|| = ||R A||. Of experts each has its A and its B.
    """
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if not active or layer.disable_adapters:
        return 0.0
    stacks, device = getattr(layer, "num_experts", 1), layer.lora_A[active[0]].weight.device
    device = device if device.type == "cuda" else torch.device("cpu")
    a, b = [], []
    for name in active:
        wide, tall = (factors[name].weight.detach().to(device).double() for factors in (layer.lora_A, layer.lora_B))
        a.append(wide.reshape(stacks, -1, wide.shape[1]))
        b.append(layer.scaling[name] * tall.reshape(len(tall), -1, stacks).permute(2, 0, 1))
    return float((torch.linalg.qr(torch.cat(b, dim=2)).R @ torch.cat(a, dim=1)).norm())


def delta_weights(layer: Any) -> list[nn.Parameter]:
    """Parameters of which W - u is a multiple: those of B, its bias included, of every adapter that is mixed."""
    return [weight for name in mixed_adapters(layer) for weight in layer.lora_B[name].parameters()]
