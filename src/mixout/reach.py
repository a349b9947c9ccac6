"""What a method reaches in a model, layer by layer, and the warning where that is little."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.parameter import is_lazy

from mixout.errors import FrozenLayersWarning, LowCoverageWarning, NothingMixedError, outside
from mixout.layers import Mixed, is_linear, lora, mixed_class, obstacle, parameter, weights
from mixout.layers.mixed import REPLACED, is_frozen
from mixout.methods.decay import decays as can_decay
from mixout.methods.optimizer_hooks import FIELD as DECAYED
from mixout.methods.output import FIELD as ANSWERS
from mixout.record import NEW
from mixout.selection import BODY, PARTS, Selection, is_trained, parent

Kind = Literal["mixed", "decayed", "plain", "bypassed"]

ENOUGH = 0.5  # share of the body's FLOPs from which on apply_ says nothing
# Names of raw parameters that are looked up, added or used as a scale, but not multiplied with as a matrix.
_LOOKED_UP = re.compile(
    r"emb|position|latent_query|(cls|class|mask|query)_token|(^|[._])(bias(es)?|scale|rel_pos|A_log)(_\w+)?$",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class LayerCoverage:
    """One module that holds parameters of its own.

    Args:
        name: dotted name.
        type: class name of the plain layer.
        kind: ``mixed``; ``decayed``, not mixed, but a weight of it decays; ``plain``, not meant to be reached; or
            ``bypassed``, where a method cannot reach the weight.
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


def rows(model: nn.Module, text: str) -> tuple[LayerCoverage, ...]:
    """Every module of ``model`` that holds parameters of its own; ``text``: which were chosen, "" if nothing was."""
    seen, seen_mixed = set[int](), set[int]()
    sites = lora.sites(model)
    mixed = [(name, module) for name, module in model.named_modules() if isinstance(module, Mixed)]
    mixer_of = {f"{name}.{path}".lstrip("."): module for name, module in mixed for path in module._mixed.anchors}
    called_groups = {_group(sites, name) for name, module in mixed if module._mixed.called}
    layer_rows = []
    decays = any(DECAYED in vars(module) for module in model.modules()) and not mixed
    for name, module in model.named_modules():
        params = {field: p for field, p in module._parameters.items() if p is not None}
        if not params:
            continue
        mixers = {field: mixer_of[key] for field in params if (key := f"{name}.{field}".lstrip(".")) in mixer_of}
        mixer = next(iter(mixers.values()), None)
        kind, reason = _kind(name, module, mixer, parent(model, name), sites, text)
        if kind == "plain" and not mixed and ANSWERS in vars(module):
            reason = "no weight is held: the model's answers are"
        elif kind == "plain" and decays and not any(map(can_decay, params.values())):
            reason = "biases and norms do not decay"
        if kind == "mixed" and mixer is not None and _group(sites, name) in called_groups and not mixer._mixed.called:
            kind, reason = "bypassed", "never called in training, while other layers were"
        mixed_params = [params[field] for field in mixers] if kind == "mixed" else []
        row = LayerCoverage(
            name=name,
            type=module._mixed.plain.__name__ if isinstance(module, Mixed) else type(module).__name__,
            kind=kind,
            reason=reason,
            parameters=sum(_size(p) for p in params.values() if id(p) not in seen),
            mixed_parameters=sum(_size(p) for p in mixed_params if id(p) not in seen_mixed),
            flops=_flops(name, module),
        )
        seen.update(map(id, params.values()))
        seen_mixed.update(map(id, mixed_params))
        layer_rows.append(row)
    return tuple(layer_rows)


def warn_if_adapted_later(model: nn.Module) -> None:
    """Warn if adapters that came after a method have frozen what it mixes or decays."""
    late = next((row for row in rows(model, "") if lora.ADAPTED_LATER in row.reason), None)
    if late is not None:
        warnings.warn(f"{late.name!r}: {late.reason}", FrozenLayersWarning, stacklevel=outside())


def check_reach(model: nn.Module, selection: Selection) -> None:
    """Warn if less than half of the trained weights' FLOPs are mixed; refuse if by default only the last layer is."""
    inside = selection.covers if selection.preset else selection.mixes
    modules, sites = dict(model.named_modules()), lora.sites(model)
    counted = [
        row
        for row in rows(model, selection.text)
        if row.flops and inside(row.name, modules[row.name]) and _is_trained(modules[row.name])
        if lora.within(sites, row.name) is None
    ]
    total, reached = sum(row.flops for row in counted), [row for row in counted if row.kind == "mixed"]
    share = sum(row.flops for row in reached) / total if total else 1.0
    if share >= ENOUGH:
        return
    missed = max((row for row in counted if row.kind != "mixed"), key=lambda row: row.flops)
    largest = f"{missed.name!r} ({missed.type}, {missed.flops / total:.0%}): {missed.reason}"
    only_last = [row.name for row in counted if selection.mixes(row.name, modules[row.name])] == [counted[-1].name]
    if selection.preset and only_last:
        raise NothingMixedError(
            f"expected at least one layer to mix beside {counted[-1].name!r}, the last of the model, which is usually "
            f"a new head without pretrained weights, got none; the largest other module is {largest}"
        )
    region = "the pretrained body" if selection.preset else selection.text
    warnings.warn(
        f"apply_ reaches {share:.0%} of the FLOPs of {region}; the largest module that it does not reach is {largest}. "
        "print(mixout.coverage(model)) lists the others, and why",
        LowCoverageWarning,
        stacklevel=outside(),
    )


def _is_trained(module: nn.Module) -> bool:
    return is_trained(module) or any(p is not None and p.requires_grad for p in module._parameters.values())


def _group(sites: dict[str, Any], name: str) -> str:
    """The adapter of a LoRA factor, else "": an adapter may not have been active, and so not called, yet."""
    return name.rpartition(".")[2] if lora.is_factor(sites, name) else ""


def _kind(
    name: str, module: nn.Module, mixer: Mixed | None, holder: nn.Module | None, sites: dict[str, Any], text: str
) -> tuple[Kind, str]:
    """The kind of ``module``, which lies in ``holder`` and whose weights ``mixer`` mixes, and the reason."""
    decaying = [p for target in vars(module).get(DECAYED, {}).values() if (p := target.parameter()) is not None]
    frozen = not any(p.requires_grad for p in decaying)
    if lora.within(sites, name) is not None:
        if decaying and frozen:
            return "bypassed", f"decays, {lora.ADAPTED_LATER}; remove_, and give A and B weight_decay"
        return lora.coverage_row(sites, name, module)
    if isinstance(module, Mixed) and any(parameter(module, path) is None for path in module._mixed.anchors):
        return "bypassed", f"its weight {REPLACED}"
    if mixer is not None:
        return ("plain", "frozen: mixed once its weight requires a gradient") if is_frozen(mixer) else ("mixed", "")
    if decaying:
        return ("plain", "frozen: decays once its weight requires a gradient") if frozen else ("decayed", "")
    if NEW in vars(module):
        return "plain", "a new layer: the anchor has no weight of this name"
    problem = obstacle(module, holder)
    if problem is None:
        return "plain", _not_chosen(module, text, sites)
    if mixed_class(module) is None and not is_linear(module) and not isinstance(module, nn.RNNCellBase):
        raw = [key for key, p in module._parameters.items() if p is not None and key != "weight" and _is_matrix(p)]
        if raw and not all(_LOOKED_UP.search(f"{name}.{key}") for key in raw):
            return "bypassed", f"raw parameters ({', '.join(raw)}): mixout.register({type(module).__name__}, ...)"
        return "plain", problem
    return "bypassed", problem


def _not_chosen(module: nn.Module, text: str, sites: dict[str, Any]) -> str:
    if not text:
        return "no method is applied"
    if sites and not is_trained(module):
        return "frozen, and without an adapter"
    if not is_linear(module) and PARTS not in text:
        name = next((k.__name__ for k in type(module).__mro__ if k.__module__.startswith("torch.nn")), "nn.Module")
        return f"not a linear layer: left out by default; add it with where=mixout.Where(types=(nn.Linear, nn.{name}))"
    if text == f"where={BODY!r}":
        return f"left out by default ({text}): an output layer or a new head"
    return f"left out ({text})"


def _size(parameter: nn.Parameter) -> int:
    return 0 if is_lazy(parameter) else parameter.numel()


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Whether at least two dimensions exceed 1: a bias or a scale may be stored with dimensions of size 1."""
    return not is_lazy(parameter) and sum(size > 1 for size in parameter.shape) >= 2


def _flops(name: str, module: nn.Module) -> int:
    """Raw parameters of an unknown class count too, unless their names say that they are looked up."""
    mixable = set(weights(module))
    if isinstance(module, nn.Embedding) or (not mixable and "Embedding" in type(module).__name__):
        return 0
    matrices = {key: p for key, p in module._parameters.items() if p is not None and _is_matrix(p)}
    multiplied = [key for key in matrices if key in mixable | {"weight"} or not _LOOKED_UP.search(f"{name}.{key}")]
    return sum(matrices[key].numel() for key in multiplied)
