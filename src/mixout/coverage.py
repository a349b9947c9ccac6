"""What is mixed, what is not and why, and what still drops: the answer to "does it do anything here?"."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn
from torch.nn.parameter import is_lazy

from mixout import dropouts
from mixout.dropouts import DropoutSite
from mixout.layers import Mixed, is_linear, lora, mixed_class, obstacle
from mixout.layers.mixed import REPLACED, is_frozen
from mixout.record import applications
from mixout.selection import parent
from mixout.sources import uncompiled

Kind = Literal["mixed", "plain", "bypassed"]

_LOOKED_UP = re.compile(r"emb|position|cls_token|class_token|mask_token", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class LayerCoverage:
    """One module that holds parameters of its own.

    Args:
        name: dotted name.
        type: class name of the plain layer.
        kind: ``mixed``; ``plain``, not mixed and not meant to be; or ``bypassed``, where a method cannot reach the
            weight.
        reason: why it is not mixed, or what is suspicious.
        parameters: number of parameters that the module itself holds, tied ones with the first that holds them.
        mixed_parameters: how many are mixed here, tied ones with the first that mixes them.
        flops: multiply-adds per position (token, pixel) of its weights; 0 for what is looked up or element-wise.
    """

    name: str
    type: str
    kind: Kind
    reason: str
    parameters: int
    mixed_parameters: int
    flops: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Coverage:
    """What a method reaches in a model; prints itself as a table.

    Args:
        methods: the methods, spelled.
        layers: every module that holds parameters of its own.
        dropouts: the model's own dropouts that are still on.
    """

    methods: str
    layers: tuple[LayerCoverage, ...] = field(repr=False)
    dropouts: tuple[DropoutSite, ...] = field(repr=False)

    def _of(self, kind: Kind) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers if layer.kind == kind)

    @property
    def mixed(self) -> tuple[str, ...]:
        """Names of the mixed layers."""
        return self._of("mixed")

    @property
    def plain(self) -> tuple[str, ...]:
        """Names of the layers that are not mixed."""
        return self._of("plain")

    @property
    def bypassed(self) -> tuple[str, ...]:
        """Names of the modules whose weights a method cannot reach."""
        return self._of("bypassed")

    @property
    def parameters_mixed(self) -> float:
        """Share of the model's parameters that are mixed, in [0, 1]; tied parameters count once."""
        total = sum(layer.parameters for layer in self.layers)
        return sum(layer.mixed_parameters for layer in self.layers) / total if total else 0.0

    @property
    def flops_mixed(self) -> float:
        """Share of the multiply-adds with weights, per position, that are done with mixed weights, in [0, 1]."""
        total = sum(layer.flops for layer in self.layers)
        return sum(layer.flops for layer in self.layers if layer.kind == "mixed") / total if total else 0.0

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        groups: dict[tuple[str, str, str], list[LayerCoverage]] = {}
        for layer in self.layers:
            groups.setdefault((layer.kind, layer.type, layer.reason), []).append(layer)
        lines = [
            f"{self.methods}: {len(self.mixed)} layers mixed, "
            f"{self.parameters_mixed:.1%} of the parameters, {self.flops_mixed:.1%} of the weights' FLOPs"
        ]
        width = max((len(type_name) for _, type_name, _ in groups), default=0)
        for (kind, type_name, reason), members in sorted(groups.items()):
            count = sum(member.parameters for member in members)
            lines.append(f"  {kind:<9}{len(members):>4} x {type_name:<{width}}{count:>13,}  {_names(members)}")
            if reason:
                lines.append(f"{'':>18}{reason}")
        lines += [f"  dropout still on: {site}" for site in self.dropouts]
        return "\n".join(lines)


def coverage(model: nn.Module) -> Coverage:
    """Tell what the method that ``model`` carries reaches; a report that never raises.

    Args:
        model: a model, or any part of one; without a method everything in it is plain.

    Example:
        >>> import mixout
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Dropout(0.1))
        >>> print(coverage(mixout.apply_(model, mixout.Mixout(0.9))))
        mixout(0.9): 1 layers mixed, 57.1% of the parameters, 100.0% of the weights' FLOPs
          mixed       1 x Linear              15  0
          plain       1 x LayerNorm            6  1
                          LayerNorm is not a layer that mixout can mix
    """
    model = uncompiled(model)
    seen: set[int] = set()
    mixed: set[int] = set()
    layers = []
    sites = lora.sites(model)
    called = {
        _group(sites, name)
        for name, module in model.named_modules()
        if isinstance(module, Mixed) and module._mixed.called
    }
    for name, module in model.named_modules():
        own = [p for p in module._parameters.values() if p is not None]
        if not own:
            continue
        fresh = [p for p in own if id(p) not in seen]
        seen.update(map(id, own))
        kind, reason = _kind(name, module, parent(model, name), sites)
        if kind == "mixed" and isinstance(module, Mixed) and _group(sites, name) in called and not module._mixed.called:
            kind, reason = "bypassed", "never called in training, while other layers were"
        layer = _layer(name, module, kind, reason, sum(map(_size, fresh)))
        weight = module._parameters.get("weight")
        if kind == "mixed" and weight is not None and id(weight) not in mixed:
            mixed.add(id(weight))
            layer = replace(layer, mixed_parameters=weight.numel())
        layers.append(layer)
    methods = ", ".join(map(str, applications(model))) or "no method"
    return Coverage(methods=methods, layers=tuple(layers), dropouts=tuple(dropouts.active(model)))


def _layer(name: str, module: nn.Module, kind: Kind, reason: str, parameters: int) -> LayerCoverage:
    return LayerCoverage(
        name=name,
        type=module._mixed.plain.__name__ if isinstance(module, Mixed) else type(module).__name__,
        kind=kind,
        reason=reason,
        parameters=parameters,
        mixed_parameters=0,
        flops=_flops(name, module),
    )


def _group(sites: dict[str, Any], name: str) -> str:
    """Layers that are trained together: an adapter that is activated after another one has not been called yet."""
    return name.rpartition(".")[2] if lora.is_factor(sites, name) else ""


def _kind(name: str, module: nn.Module, holder: nn.Module | None, sites: dict[str, Any]) -> tuple[Kind, str]:
    """What ``module``, held by ``holder``, is, and why."""
    if lora.within(sites, name) is not None:
        return lora.coverage_row(sites, name, module)
    if isinstance(module, Mixed):
        if module._parameters.get("weight") is None:
            return "bypassed", f"its weight {REPLACED}"
        return ("plain", "frozen: mixed once its weight requires a gradient") if is_frozen(module) else ("mixed", "")
    if isinstance(module, nn.MultiheadAttention):
        return "bypassed", "packed in_proj_weight, read without a layer"
    if mixed_class(module) is None and not is_linear(module):
        raw = [key for key, p in module._parameters.items() if p is not None and key != "weight" and _is_matrix(p)]
        if raw and not all(_LOOKED_UP.search(f"{name}.{key}") for key in raw):
            return "bypassed", f"raw parameters ({', '.join(raw)}), read without a layer"
        return "plain", f"{type(module).__name__} is not a layer that mixout can mix"
    if (problem := obstacle(module, holder)) is not None:
        return "bypassed", problem
    if sites and not any(p.requires_grad for p in module.parameters(recurse=False)):
        return "plain", "frozen, and without an adapter"
    return "plain", "not chosen"


def _size(parameter: nn.Parameter) -> int:
    return 0 if is_lazy(parameter) else parameter.numel()


def _is_matrix(parameter: nn.Parameter) -> bool:
    return not is_lazy(parameter) and parameter.dim() >= 2


def _flops(name: str, module: nn.Module) -> int:
    if isinstance(module, nn.Embedding):
        return 0
    return sum(
        p.numel()
        for key, p in module._parameters.items()
        if p is not None and _is_matrix(p) and not (key != "weight" and _LOOKED_UP.search(f"{name}.{key}"))
    )


def _names(members: list[LayerCoverage]) -> str:
    first, last = members[0].name or "the model", members[-1].name
    return first if len(members) == 1 else f"{first} ... {last}"
