"""What apply_ does to a model, method by method, and how it is undone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from mixout import dropouts
from mixout._torch import managed_by_fsdp
from mixout.anchor import ZERO, AnchorStore, AnchorTensor, ImportanceStore, MovingAnchor, digest
from mixout.errors import EvalModeWarning, MixoutError, NothingMixedError
from mixout.layers import Mixed, Mixing, Share, attach_, lora, mixed_class, parameter, restore_, swap_, weights
from mixout.layers.mixed import in_eval_mode
from mixout.methods import AnchorDecay, Dropout, Method, MixingMethod, OutputAnchor, optimizer_hooks, output
from mixout.methods.decay import decays
from mixout.parts import in_parts
from mixout.passes import Form
from mixout.record import FIELD, NEW, Applied, applied_here, guard_, subject, unguard_
from mixout.seeds import Period, Seed, SharedSeed
from mixout.selection import ALL, BODY, PARTS, Selection, blocks, chosen, resolve
from mixout.sources import WeightMissingError
from mixout.streams import Stream
from mixout.watch import Watch

# Methods by regular expression on layer names. The first expression that matches a layer decides; "" matches all.
Rules: TypeAlias = Mapping[str, tuple[Method, ...]]


def rule_of(rules: Rules, name: str) -> str | None:
    """Which of ``rules`` counts for the layer called ``name``."""
    return next((pattern for pattern in rules if re.search(pattern, name)), None)


def region_of(rules: Rules, selection: Selection) -> str:
    """Which layers are chosen, in words."""
    return selection.text if "" in rules else f"{selection.text}, {PARTS} {', '.join(map(repr, rules))}"


def install_(
    model: nn.Module,
    rules: Rules,
    selection: Selection,
    anchors: AnchorStore,
    seed: Seed = Seed(),  # noqa: B008  a frozen value
    form: Form = "auto",
    *,
    keep_dropout: bool = False,
) -> dict[str, nn.Module]:
    """Let the methods of each rule act on its layers; return the mixed ones by name. :func:`undo_` undoes it."""
    _set_dropouts_(model, [method for methods in rules.values() for method in methods], keep=keep_dropout)
    layers: dict[str, nn.Module] = {}
    single_rule, region = len(rules) == 1, region_of(rules, selection)
    for pattern, methods in rules.items():
        applied = Applied(methods=methods, seed=SharedSeed(seed.value, seed.scope), where=region)
        text = f", in the part {pattern!r}" if pattern else ""

        def is_others(name: str, _module: nn.Module, pattern: str = pattern) -> bool:
            return rule_of(rules, name) != pattern

        rule_selection = selection.but(is_others, text, elsewhere=True)
        # Mixing first: mixed weights then have their anchor.
        for method in sorted(methods, key=lambda method: not isinstance(method, MixingMethod)):
            if isinstance(method, MixingMethod):
                layers |= _mix_(model, method, rule_selection, anchors, applied, form)
            if isinstance(method, AnchorDecay):
                _decay_(model, method, rule_selection, anchors)
            if isinstance(method, OutputAnchor):
                if not single_rule:
                    raise ValueError("expected output_anchor for the whole model, got it for some of its layers alone")
                _anchor_outputs_(model, method, anchors)
        # What decayed weights, anchored outputs and changed dropouts leave on their module.
        traces = {optimizer_hooks.FIELD, *((output.FIELD, dropouts.FIELD) if single_rule else ())}
        changed = [m for m in model.modules() if isinstance(m, Mixed) or traces & vars(m).keys()]
        for module in [m for m in changed if applied_here(m) is None] or [model]:
            vars(module)[FIELD] = applied
    return layers


def _mix_(
    model: nn.Module, method: MixingMethod, selection: Selection, anchors: AnchorStore, applied: Applied, form: Form
) -> dict[str, nn.Module]:
    """Swap the chosen layers, and the factors of the chosen adapters, for mixed ones."""
    layers, adapted = chosen(model, selection)
    dry_run, period = anchors.own, None if method.every == 1 else Period(method.every)
    p = torch.tensor(method.p, dtype=torch.float64, device="cpu")
    applied.mixing = mixing = Mixing(
        p=p, unit=method.unit, noise=method.noise, gradient=method.gradient, form=form, period=period
    )
    parted = next((name for name, layer in layers.items() if in_parts(layer._parameters.get("weight"))), None)
    if applied.seed.scope == "rank" and parted is not None:
        raise MixoutError(
            f"expected scope='all' for {parted!r} and other weights that lie in parts on several ranks, which need the "
            "same mask, got 'rank'; leave scope out"
        )
    if adapted:
        if (method.anchor, method.unit, method.gradient, method.anchor_ema) != ("given", "input", "exact", None):
            raise ValueError(
                "expected mixout with unit='input' and gradient='exact', and without anchor_ema, on LoRA layers, whose "
                f"anchor is their frozen base, got {method}; choose these, leave adapted layers out with where=, or "
                "merge the adapters first"
            )
        if not anchors.of_this_moment:
            raise ValueError(
                "expected no anchor for LoRA layers, whose anchor is their frozen base, got one; leave anchor= out"
            )
        lora.check_base(model)
    stores = {"zero": AnchorStore(model, 0), "own": AnchorStore(model, own=True)}
    anchor_of = stores.get(method.anchor, anchors).anchor
    # All anchors first: one that is missing must leave the model as it was.
    modules = {name: (layer, weights(layer)) for name, layer in layers.items()}
    by_layer = _anchored(anchor_of, modules, may_lack=selection.may_lack)
    if method.anchor_ema is not None and not dry_run:
        for name, by_path in by_layer.items():
            for path, start in by_path.items():
                by_path[path] = MovingAnchor(start, parameter(layers[name], path), method.anchor_ema)  # type: ignore[arg-type]
    applied.seed.subject = subject(str(applied), by_layer)
    swaps = [(name, layers[name], by_path) for name, by_path in by_layer.items()]
    for name, (site, adapters) in adapted.items():
        for suffix, module, paths in lora.swaps(site, adapters):
            swaps.append((f"{name}{suffix}", module, {path: _of_base(site, anchors) for path in paths}))
    block_names = [name for name, _ in blocks(model)] if method.unit == "layer" else []
    for name, module, by_path in swaps:
        block = next((block_name for block_name in block_names if f"{name}.".startswith(f"{block_name}.")), name)
        stream = Stream(applied.seed, name, period, block if method.unit == "layer" else None)
        share = Share(mixing=mixing, anchors=by_path, plain=type(module), stream=stream)
        swap_(module, mixed_class(module), share)  # type: ignore[arg-type]  # each chosen one has a class
    mixed = {name: layers[name] for name in by_layer}
    if not dry_run:
        warning = EvalModeWarning(
            f"{method} does nothing: all of its layers are in eval mode, in which from_pretrained and an evaluation "
            "leave a model; call model.train() before you train, and after you evaluate"
        )
        mixing.watch = Watch([module for _, module, _ in swaps], in_eval_mode, warning)
        attach_(model, mixed)
        guard_(model)
    return mixed


def _anchored(
    anchor_of: Callable[[str, Tensor], AnchorTensor],
    modules: Mapping[str, tuple[nn.Module, Iterable[str]]],
    *,
    may_lack: bool,
) -> dict[str, dict[str, AnchorTensor]]:
    """The anchors of each module's weights; ``may_lack``: leave out layers that the source lacks, if they are few."""
    anchors, missing, sizes = {}, {}, {}
    for name, (module, paths) in modules.items():
        by_path: dict[str, Any] = {path: parameter(module, path) for path in paths}
        sizes[name] = sum(weight.numel() for weight in by_path.values())
        try:
            anchors[name] = {path: anchor_of(f"{name}.{path}".lstrip("."), weight) for path, weight in by_path.items()}
        except WeightMissingError as error:
            missing[name] = error
    if missing and (not may_lack or sum(sizes[n] for n in missing) >= sum(sizes[n] for n in anchors)):
        raise next(iter(missing.values()))
    for name in missing:
        vars(modules[name][0])[NEW] = True
    return anchors


def _decay_(model: nn.Module, method: AnchorDecay, selection: Selection, anchors: AnchorStore) -> None:
    """Let every weight of the chosen region decay towards its anchor."""
    modules: dict[str, tuple[nn.Module, list[str]]] = {}
    factors: list[tuple[nn.Module, AnchorTensor]] = []
    sites = lora.sites(model)
    for name, module in model.named_modules():
        if not selection.covers(name, module):
            continue
        if (site := lora.within(sites, name)) is not None:
            if method.selective:
                factors += [(module, _of_base(sites[site], anchors))] if lora.is_factor(sites, name) else []
                continue
            raise ValueError(
                f"expected weights that are decayed as they are, got the adapter of {name!r}: to decay what an adapter "
                "trains, as A and B of LoRA, is not a decay of W - u; leave adapted layers out with where=, "
                "and give the adapters the optimizer's own weight_decay"
            )
        # In a model with adapters, frozen weights stay at their anchor anyway.
        parameters = module.named_parameters(recurse=False)
        fields = [field for field, p in parameters if decays(p) and (p.requires_grad or not sites)]
        if fields:
            modules[name] = module, fields
    if not modules and not factors:
        raise NothingMixedError("expected a weight of at least two dimensions to decay, got none; check where=")
    # All anchors first: one that is missing must leave the model as it was.
    store = None if method.weights is None or anchors.own else ImportanceStore(model, method.weights)
    by_layer = _anchored(anchors.anchor, modules, may_lack=selection.may_lack)
    anchored = {name: modules[name] for name in by_layer}
    importance = {} if store is None else _anchored(store.anchor, anchored, may_lack=False)
    for name, by_field in by_layer.items():
        for field, anchor in by_field.items():
            optimizer_hooks.attach_(modules[name][0], field, anchor, method, importance.get(name, {}).get(field))
    for factor, zero in factors:
        optimizer_hooks.attach_(factor, "weight", zero, method)


def _of_base(layer: nn.Module, anchors: AnchorStore) -> AnchorTensor:
    """The anchor 0 of a factor of a LoRA layer; its digest is that of the base, near which W is kept."""
    if not anchors.own and layer not in anchors.bases:
        anchors.bases[layer] = digest(lora.base_weight(layer))
    return AnchorTensor(None, anchors.bases.get(layer, ZERO))


def _anchor_outputs_(model: nn.Module, method: OutputAnchor, anchors: AnchorStore) -> None:
    """Anchor every trained parameter, to compute the start's answers; for hidden states without those of the head."""
    trained, sites = dict[nn.Module, dict[str, AnchorTensor]](), lora.sites(model)
    frozen: dict[nn.Module, list[str]] = {}
    selection = resolve(BODY if method.on == "hidden" else ALL, model)
    lora.check_base(model)
    for key, module, p in selection.parameters(model):
        name, _, field = key.rpartition(".")
        if not p.requires_grad:
            frozen.setdefault(module, []).append(field)
            continue
        if in_parts(p):
            _check_gathered(model, name, module)
        site = lora.within(sites, name)
        if site is None or not lora.is_factor(sites, name):
            trained.setdefault(module, {})[field] = anchors.anchor(key, p)
        elif ".lora_B." in f".{name}." or not _other_factor(model, key).requires_grad:
            # At B = 0 an adapted layer is its base, whatever A is; where B is frozen, at A = 0.
            trained.setdefault(module, {})[field] = _of_base(sites[site], anchors)
    if not trained:
        raise NothingMixedError("expected a parameter that requires a gradient for output_anchor, got none")
    watch = output.watch_(trained if method.beta and not anchors.own else ())  # no step follows a dry run
    for module in dict.fromkeys([*trained, *frozen]):
        fields = trained.get(module, {}), tuple(frozen.get(module, ()))
        vars(module)[output.FIELD] = output.Held(method, *fields, watch)


def _other_factor(model: nn.Module, key: str) -> Tensor:
    """B of the factor A called ``key``."""
    return model.get_parameter(re.sub(r"\blora_A\b", "lora_B", key))


def _check_gathered(model: nn.Module, name: str, module: nn.Module) -> None:
    """Refuse weights in parts that a pass of the anchors cannot gather, or would take from a waiting pass."""
    if not managed_by_fsdp(module):
        raise MixoutError(
            f"expected whole weights for output_anchor, or ones that FSDP2 gathers, got {name!r} in parts; use DDP"
        )
    if any(isinstance(layer, Mixed) for layer in model.modules()):
        raise MixoutError(
            "expected output_anchor alone or beside a decay under FSDP2, got it beside a method that mixes: FSDP2 has "
            "one gathered weight, and the pass of the anchors would take Phi's place; use DDP"
        )


def _set_dropouts_(model: nn.Module, methods: Sequence[Method], *, keep: bool) -> None:
    """Mixing switches the model's own dropouts off; a Dropout beside it, or alone, sets them."""
    p = next((method.p for method in methods if isinstance(method, Dropout)), None)
    if p is None and (keep or not any(isinstance(method, MixingMethod) for method in methods)):
        return
    if not dropouts.set_(model, p or 0.0) and p:
        raise NothingMixedError(f"expected a model with dropouts to set to {p}, got none in it")


def undo_(model: nn.Module) -> None:
    """Take everything that was installed from ``model``."""
    for module in model.modules():
        if isinstance(module, Mixed):
            restore_(module)
        optimizer_hooks.detach_(module)
        unguard_(module)
        for field in (output.FIELD, FIELD, NEW):
            vars(module).pop(field, None)
    dropouts.restore_(model)
