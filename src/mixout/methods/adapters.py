"""A mixing method on the LoRA layers of a model: which adapters are chosen, and the swap of their factors.

See :mod:`mixout.layers.lora` for the equation. What LoRA cannot do is refused: a coin for each element needs the
product B A in each pass, and another anchor than the frozen base needs a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from mixout.anchor import Anchor, digest
from mixout.layers import Mixing, Share, mixed_class, obstacle, swap_
from mixout.layers.lora import (
    Factors,
    MixedFactor,
    adapted_layers,
    adapter_obstacle,
    base_weight,
    factors,
    layer_obstacle,
    moved_base,
)
from mixout.masks import Unit
from mixout.selection import Selection
from mixout.streams import Stream

if TYPE_CHECKING:
    from mixout.methods.method import MixingMethod, Site


def selected_adapters(model: nn.Module, selection: Selection) -> dict[str, Any]:
    """The adapted layers that ``selection`` takes, by the name and the base of each."""
    return {
        name: layer
        for name, layer in adapted_layers(model).items()
        if selection.mixes(name, layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer)
    }


def mixable_factors(layer: Any, unit: Unit) -> Iterator[Factors]:  # noqa: ANN401  a class of peft
    """The adapters of ``layer`` that nothing keeps from being mixed."""
    if layer_obstacle(layer) is None:
        for one in factors(layer, unit):
            if adapter_obstacle(layer, one.adapter) is None and obstacle(one.masked, None) is None:
                yield one


def why_not(layer: Any) -> str | None:  # noqa: ANN401
    """Why no adapter of ``layer`` can be mixed, or None."""
    reasons = [layer_obstacle(layer)]
    if reasons == [None]:
        reasons = [
            adapter_obstacle(layer, one.adapter) or obstacle(one.masked, None) for one in factors(layer, "input")
        ]
    return None if None in reasons else next(iter(reasons), "it holds no adapter")


def install_adapters_(site: Site, method: MixingMethod, mixing: Mixing) -> None:
    """Swap the masked factor of every chosen adapter for a mixed layer with anchor 0.

    Raises:
        ValueError: if the method, the anchor or the adapters' initialisation does not fit LoRA.
    """
    chosen = {
        name: found
        for name, layer in selected_adapters(site.model, site.selection).items()
        if (found := list(mixable_factors(layer, method.unit)))
    }
    if not chosen:
        return
    _check_fits(site, method)
    for name, found in chosen.items():
        for one in found:
            masked = mixed_class(one.masked)
            if masked is not None:
                _swap_(one.masked, f"{name}.{one.masked_name}", masked, site, mixing)
            if method.gradient == "paper":
                _swap_(one.other, f"{name}.{one.other_name}", MixedFactor, site, mixing)
        site.applied.adapted[name] = digest(base_weight(site.model.get_submodule(name)))


def _check_fits(site: Site, method: MixingMethod) -> None:
    if not method.takes_anchor or method.unit == "element" or method.gradient == "dense":
        raise ValueError(
            f"expected mixout with unit 'input' or 'output' and gradient 'exact' or 'paper' on LoRA layers, got "
            f"{method!r}: it needs W or B A itself, which a LoRA layer never makes; merge the adapter, or choose such"
        )
    if not site.anchors.of_this_moment:
        raise ValueError(
            "expected no anchor for LoRA layers, whose anchor is their frozen base, got one; leave anchor= out"
        )
    if (name := moved_base(site.model)) is not None:
        raise ValueError(
            f"expected adapters that leave the base as it was pretrained, got init_lora_weights={name!r}, which takes "
            "a part out of it: the frozen base is then no anchor; use the default initialisation"
        )


def _swap_(module: nn.Module, name: str, mixed: Any, site: Site, mixing: Mixing) -> None:  # noqa: ANN401
    stream = Stream(site.applied.seed, name)
    swap_(module, mixed, Share(mixing=mixing, anchor=Anchor(), plain=type(module), stream=stream))
