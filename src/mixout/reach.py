"""What a method reaches in a model, layer by layer, and the warning where that is little."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.parameter import is_lazy

from mixout.errors import LowCoverageWarning, NothingMixedError
from mixout.layers import Mixed, is_linear, lora, mixed_class, obstacle, parameter, weights
from mixout.layers.mixed import REPLACED, is_frozen
from mixout.methods.optimizer_hooks import FIELD as DECAYED
from mixout.record import NEW
from mixout.selection import BODY, Selection, is_trained, parent

Kind = Literal["mixed", "decayed", "plain", "bypassed"]

ENOUGH = 0.5  # share of the body's FLOPs from which on apply_ says nothing
# By name: raw parameters that are looked up, added or scaled with, and no matrices to multiply with.
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
    around = {f"{name}.{path}".lstrip("."): module for name, module in mixed for path in module._mixed.anchors}
    called = {_group(sites, name) for name, module in mixed if module._mixed.called}
    found = []
    for name, module in model.named_modules():
        own = {field: p for field, p in module._parameters.items() if p is not None}
        if not own:
            continue
        holders = {field: around[key] for field in own if (key := f"{name}.{field}".lstrip(".")) in around}
        by = next(iter(holders.values()), None)
        kind, reason = _kind(name, module, by, parent(model, name), sites, text)
        if kind == "mixed" and by is not None and _group(sites, name) in called and not by._mixed.called:
            kind, reason = "bypassed", "never called in training, while other layers were"
        here = [own[field] for field in holders] if kind == "mixed" else []
        row = LayerCoverage(
            name=name,
            type=module._mixed.plain.__name__ if isinstance(module, Mixed) else type(module).__name__,
            kind=kind,
            reason=reason,
            parameters=sum(_size(p) for p in own.values() if id(p) not in seen),
            mixed_parameters=sum(_size(p) for p in here if id(p) not in seen_mixed),
            flops=_flops(name, module),
        )
        seen.update(map(id, own.values()))
        seen_mixed.update(map(id, here))
        found.append(row)
    return tuple(found)


def check_reach(model: nn.Module, selection: Selection) -> None:
    """Warn where less than half of the FLOPs of trained weights is mixed; refuse where by default the last alone is."""
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
    left = max((row for row in counted if row.kind != "mixed"), key=lambda row: row.flops)
    largest = f"{left.name!r} ({left.type}, {left.flops / total:.0%}): {left.reason}"
    alone = [row.name for row in counted if selection.mixes(row.name, modules[row.name])] == [counted[-1].name]
    if selection.preset and alone:
        raise NothingMixedError(
            f"expected at least one layer to mix beside {counted[-1].name!r}, the last of the model, which is usually "
            f"a new head without pretrained weights, got none; the largest other module is {largest}"
        )
    whole = "the pretrained body" if selection.preset else selection.text
    warnings.warn(
        f"apply_ reaches {share:.0%} of the FLOPs of {whole}; the largest module that it does not reach is {largest}. "
        "print(mixout.coverage(model)) lists the others, and why",
        LowCoverageWarning,
        stacklevel=3,  # who called apply_
    )


def _is_trained(module: nn.Module) -> bool:
    return is_trained(module) or any(p is not None and p.requires_grad for p in module._parameters.values())


def _group(sites: dict[str, Any], name: str) -> str:
    """Layers that are trained together: an adapter that is activated after another one has not been called yet."""
    return name.rpartition(".")[2] if lora.is_factor(sites, name) else ""


def _kind(
    name: str, module: nn.Module, by: Mixed | None, holder: nn.Module | None, sites: dict[str, Any], text: str
) -> tuple[Kind, str]:
    """What ``module``, held by ``holder`` and with weights that ``by`` mixes, is, and why."""
    if lora.within(sites, name) is not None:
        return lora.coverage_row(sites, name, module)
    if isinstance(module, Mixed) and any(parameter(module, path) is None for path in module._mixed.anchors):
        return "bypassed", f"its weight {REPLACED}"
    if by is not None:
        return ("plain", "frozen: mixed once its weight requires a gradient") if is_frozen(by) else ("mixed", "")
    if vars(module).get(DECAYED):
        return "decayed", ""
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
    if not is_linear(module):
        kind = next((k.__name__ for k in type(module).__mro__ if k.__module__.startswith("torch.nn")), "nn.Module")
        return f"not a linear layer: left out by default; add it with where=mixout.Where(types=(nn.Linear, nn.{kind}))"
    if text == f"where={BODY!r}":
        return f"left out by default ({text}): an output layer or a new head"
    return f"left out ({text})"


def _size(parameter: nn.Parameter) -> int:
    return 0 if is_lazy(parameter) else parameter.numel()


def _is_matrix(parameter: nn.Parameter) -> bool:
    """A bias or a scale that is stored with dimensions of size 1 is none."""
    return not is_lazy(parameter) and sum(size > 1 for size in parameter.shape) >= 2


def _flops(name: str, module: nn.Module) -> int:
    """Also of the raw parameters of an unknown class, except for what is named like something that is looked up."""
    known = set(weights(module))
    if isinstance(module, nn.Embedding) or (not known and "Embedding" in type(module).__name__):
        return 0
    matrices = {key: p for key, p in module._parameters.items() if p is not None and _is_matrix(p)}
    multiplied = [key for key in matrices if key in known | {"weight"} or not _LOOKED_UP.search(f"{name}.{key}")]
    return sum(matrices[key].numel() for key in multiplied)
