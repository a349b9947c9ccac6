"""What is mixed, what is not and why, and what still drops: the answer to "does it do anything here?"."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from mixout import dropouts
from mixout.convert import applied_to
from mixout.dropouts import DropoutSite
from mixout.errors import NothingMixedError
from mixout.layers import Mixed, is_linear, mixed_class, obstacle
from mixout.layers.lora import MixedFactor, adapted_layers, adapter_obstacle, layer_obstacle, within
from mixout.methods import MixingMethod, spell
from mixout.methods.method import parent

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
    """Tell what the method that ``model`` carries reaches.

    Raises:
        NotAppliedError: if the model carries no method.
        NothingMixedError: if its method mixes but no layer is mixed any more.

    Example:
        >>> import mixout
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Dropout(0.1))
        >>> print(coverage(mixout.apply_(model, mixout.Mixout(0.9))))
        mixout(0.9): 1 layers mixed, 57.1% of the parameters, 100.0% of the weights' FLOPs
          mixed       1 x Linear              15  0
          plain       1 x LayerNorm            6  1
                          LayerNorm is not a layer that mixout can mix
    """
    root, applied = applied_to(model)
    seen: set[int] = set()
    mixed: set[int] = set()
    called = {name for name, module in root.named_modules() if isinstance(module, Mixed) and _called(module)}
    layers = []
    adapted = adapted_layers(root)
    for name, module in root.named_modules():
        own = [p for p in module._parameters.values() if p is not None]
        fresh = [p for p in own if id(p) not in seen]
        seen.update(map(id, own))
        if own:
            around = within(adapted, name)
            if around is None:
                kind, reason = _kind(name, module, parent(root, name), trained=bool(called))
                if adapted and reason == "not chosen" and not any(p.requires_grad for p in own):
                    reason = "frozen, and without an adapter"
            else:
                kind, reason = _adapter_kind(name[len(around) + 1 :], module, adapted[around], called)
            layer = _layer(name, module, kind, reason, sum(p.numel() for p in fresh))
            weight = module._parameters.get("weight")
            if layer.kind == "mixed" and weight is not None and id(weight) not in mixed:
                mixed.add(id(weight))
                layer = replace(layer, mixed_parameters=weight.numel())
            layers.append(layer)
    result = Coverage(methods=spell(applied.methods), layers=tuple(layers), dropouts=tuple(dropouts.active(root)))
    if not result.mixed and any(isinstance(m, MixingMethod) for m in applied.methods):
        raise NothingMixedError(f"expected {result.methods} to mix a layer, got none; the layers were replaced since")
    return result


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


def _called(layer: Mixed) -> bool:
    return layer._mixed.called


def _kind(name: str, module: nn.Module, holder: nn.Module | None, *, trained: bool) -> tuple[Kind, str]:
    """What ``module``, held by ``holder``, is; ``trained``: some mixed layer has been called in training."""
    if isinstance(module, Mixed):
        never = trained and not _called(module)
        return ("bypassed", "never called in training, while other layers were") if never else ("mixed", "")
    if isinstance(module, nn.MultiheadAttention):
        return "bypassed", "packed in_proj_weight, read without a layer"
    if mixed_class(module) is None and not is_linear(module):
        raw = [key for key, p in module._parameters.items() if p is not None and p.dim() >= 2 and key != "weight"]
        if raw and not all(_LOOKED_UP.search(f"{name}.{key}") for key in raw):
            return "bypassed", f"raw parameters ({', '.join(raw)}), read without a layer"
        return "plain", f"{type(module).__name__} is not a layer that mixout can mix"
    problem = obstacle(module, holder)
    return ("plain", "not chosen") if problem is None else ("bypassed", problem)


def _adapter_kind(name: str, module: nn.Module, layer: Any, called: set[str]) -> tuple[Kind, str]:  # noqa: ANN401
    """What ``module``, called ``name`` within an adapted layer of peft, is; ``called``: layers called in training."""
    part, _, adapter = name.partition(".")
    if part == "base_layer":
        if isinstance(module, Mixed):
            return "bypassed", "mixed, but frozen by an adapter that came later; remove_, add adapters, then apply_"
        return "plain", "base of an adapter"
    if layer_obstacle(layer) is not None and not isinstance(module, Mixed):
        return "bypassed", str(layer_obstacle(layer))
    if part not in ("lora_A", "lora_B"):
        return "plain", f"{type(module).__name__} is not a layer that mixout can mix"
    if (problem := adapter_obstacle(layer, adapter)) is not None:
        return "bypassed", problem
    other = getattr(layer, "lora_B" if part == "lora_A" else "lora_A")[adapter]
    if isinstance(module, MixedFactor) or (isinstance(other, Mixed) and not isinstance(module, Mixed)):
        return "plain", "the other factor of a mixed adapter"
    if not isinstance(module, Mixed):
        return "plain", "not chosen"
    if adapter not in layer.active_adapters:
        return "plain", "its adapter is not active"
    # An adapter that was activated after another one was trained has not been called anywhere yet.
    trained = any(one.endswith((f"lora_A.{adapter}", f"lora_B.{adapter}")) for one in called)
    return _kind(name, module, None, trained=trained)


def _flops(name: str, module: nn.Module) -> int:
    if isinstance(module, nn.Embedding):
        return 0
    return sum(
        p.numel()
        for key, p in module._parameters.items()
        if p is not None and p.dim() >= 2 and not (key != "weight" and _LOOKED_UP.search(f"{name}.{key}"))
    )


def _names(members: list[LayerCoverage]) -> str:
    first, last = members[0].name or "the model", members[-1].name
    return first if len(members) == 1 else f"{first} ... {last}"
