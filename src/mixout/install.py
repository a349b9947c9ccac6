"""What apply_ does to a model, method by method, and how it is undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mixout import disabling, dropouts
from mixout._torch import managed_by_fsdp
from mixout.anchor import ZERO, Anchor, AnchorStore, ImportanceStore, OwnWeight, digest
from mixout.body import blocks
from mixout.errors import MixoutError, NothingMixedError
from mixout.layers import (
    Mixed,
    Mixing,
    Share,
    attach_,
    check_scope,
    lora,
    lora_delta,
    mixed_class,
    move_anchors_,
    parameter,
    restore_,
    swap_,
    weights,
)
from mixout.methods import AnchorDecay, Dropout, Method, MixingMethod, OutputAnchor, optimizer_hooks, output
from mixout.methods.decay import decayed_fields
from mixout.parts import in_parts
from mixout.passes import Form
from mixout.periods import Period
from mixout.record import Applied, applied_here, mark_, mark_new_, subject, unmark_
from mixout.selection import Selection, body, chosen
from mixout.sources import WeightMissingError
from mixout.streams import Stream

Weight = tuple[str, Tensor]


class Anchors(Protocol):
    """Where the anchors of a model come from."""

    of_this_moment: bool

    def anchor(self, name: str, parameter: Tensor) -> Anchor:
        """The anchor of the parameter of that dotted name."""


class Unread:
    """Anchors for a dry run: nothing is read or copied."""

    of_this_moment = True

    def anchor(self, name: str, parameter: Tensor) -> Anchor:  # noqa: ARG002
        """The weight itself."""
        return OwnWeight()


def install_(
    model: nn.Module, applied: Applied, selection: Selection, anchors: Anchors, form: Form, *, alone: bool
) -> dict[str, nn.Module]:
    """Let methods act on what ``selection`` takes of ``model``; :func:`undo_` undoes it, also half done.

    Args:
        model: the model.
        applied: the methods, and what their layers share.
        selection: where they act.
        anchors: where the anchors come from.
        form: see :func:`mixout.apply_`.
        alone: these are all the methods of ``model``, so that the changed dropouts belong to them.

    Returns:
        The layers that are mixed, by name.

    Raises:
        NothingMixedError, AnchorMismatchError, MixoutError, ValueError: see :func:`mixout.apply_`.
    """
    layers: dict[str, nn.Module] = {}
    for method in applied.methods:
        if isinstance(method, MixingMethod):
            layers = _mix_(model, method, selection, anchors, applied, form)
    for method in applied.methods:
        if isinstance(method, AnchorDecay):
            _decay_(model, method, selection, anchors)
        if isinstance(method, OutputAnchor):
            if not alone:
                raise ValueError("expected output_anchor for the whole model, got it for some of its layers alone")
            _anchor_outputs_(model, method, anchors)
    # What decayed weights, anchored outputs and changed dropouts leave on their module.
    traces = {"_mixout_decay", "_mixout_output", "_mixout_dropouts"} if alone else {"_mixout_decay"}
    changed = [m for m in model.modules() if isinstance(m, Mixed) or traces & vars(m).keys()]
    mark_([m for m in changed if applied_here(m) is None] or [model], applied)
    return layers


def _mix_(
    model: nn.Module, method: MixingMethod, selection: Selection, anchors: Anchors, applied: Applied, form: Form
) -> dict[str, nn.Module]:
    """Swap the chosen layers, and the factors of the chosen adapters, for mixed ones."""
    layers, adapted = chosen(model, selection, method.unit)
    p = torch.tensor(method.p, dtype=torch.float64, device="cpu")
    period = None if method.every == 1 else Period(method.every)
    applied.mixing = mixing = Mixing(
        p=p, unit=method.unit, noise=method.noise, gradient=method.gradient, form=form, period=period
    )
    check_scope(layers, applied.seed.scope)
    if adapted:
        if method.anchor_ema is not None:
            raise ValueError(
                "expected no anchor_ema on LoRA layers, whose anchor is their frozen base, got "
                f"{method.anchor_ema}; leave it out, or leave adapted layers out with where="
            )
        chosen_sites = [site for site, _ in adapted.values()]
        lora.check_fits(
            model, chosen_sites, mixing, takes_anchor=method.anchor == "given", of_this_moment=anchors.of_this_moment
        )
    source = {"given": anchors.anchor, "own": Unread().anchor, "zero": AnchorStore(model, 0).anchor}[method.anchor]
    # All anchors first: one that is missing must leave the model as it was.
    wanted = {
        name: [(f"{name}.{path}".lstrip("."), _weight(m, path)) for path in weights(m)] for name, m in layers.items()
    }
    found = _anchored(source, wanted, selection, model)
    shares = {
        name: Share(
            mixing=mixing,
            anchors=dict(zip(weights(layers[name]), held, strict=True)),
            plain=type(layers[name]),
            stream=Stream(applied.seed, name, period, _block(model, name) if method.unit == "layer" else None),
        )
        for name, held in found.items()
    }
    applied.seed.subject = subject(str(applied), shares)
    for name, share in shares.items():
        kind = mixed_class(layers[name])
        if kind is not None:
            swap_(layers[name], kind, share)
            if method.anchor_ema is not None and not isinstance(anchors, Unread):
                move_anchors_(layers[name], method.anchor_ema)
    for name, (site, adapters) in adapted.items():
        base = ZERO if isinstance(anchors, Unread) else digest(lora_delta.base_weight(site))
        for part, module, paths, kind in lora.swaps(site, adapters, mixing):
            if kind is not None:
                stream = Stream(applied.seed, f"{name}{part}", period)
                held = {path: Anchor(None, base) for path in paths}
                swap_(module, kind, Share(mixing=mixing, anchors=held, plain=type(module), stream=stream))
    mixed = {name: layers[name] for name in shares}
    if not isinstance(anchors, Unread):
        attach_(model, mixed)
        disabling.guard_(model)
    return mixed


def _block(model: nn.Module, name: str) -> str:
    """The block of ``model`` around the layer called ``name``, or the layer itself."""
    return next((block for block, _ in blocks(model) if f"{name}.".startswith(f"{block}.")), name)


def _anchored(
    anchor: Callable[[str, Tensor], Anchor],
    wanted: Mapping[str, Sequence[Weight]],
    selection: Selection,
    model: nn.Module,
) -> dict[str, list[Anchor]]:
    """The anchors of the weights of each module; without new layers, where the model does not tell them itself.

    Raises:
        AnchorMismatchError: if the source lacks a weight of a layer that was asked for, or most of them.
    """
    found, missing = {}, {}
    for name, held in wanted.items():
        try:
            found[name] = [anchor(path, weight) for path, weight in held]
        except WeightMissingError as error:
            missing[name] = error
    sizes = {name: sum(weight.numel() for _, weight in held) for name, held in wanted.items()}
    if missing and (not selection.may_lack or sum(sizes[n] for n in missing) >= sum(sizes[n] for n in found)):
        raise next(iter(missing.values()))
    for name in missing:
        mark_new_(model.get_submodule(name))
    return found


def _decay_(model: nn.Module, method: AnchorDecay, selection: Selection, anchors: Anchors) -> None:
    """Let every weight of the chosen region decay towards its anchor."""
    wanted, sites = {}, lora.sites(model)
    weigh = None if method.weights is None or isinstance(anchors, Unread) else ImportanceStore(model, method.weights)
    factors: list[nn.Module] = []
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not selection.covers(name, module):
            continue
        if lora.within(sites, name) is not None:
            if method.selective:
                factors += [module] if lora.is_factor(sites, name) else []
                continue
            raise ValueError(
                f"expected weights that are decayed as they are, got the adapter of {name!r}: decaying the factors "
                "A and B is not a decay of W - u = s B A; leave adapted layers out with where=, and give A and B "
                "the optimizer's own weight_decay"
            )
        # Beside adapters, what is frozen stays at its anchor.
        fields = [f for f in decayed_fields(module) if not sites or _weight(module, f).requires_grad]
        if fields:
            wanted[name] = [(f"{name}.{field}".lstrip("."), _weight(module, field)) for field in fields]
    if not wanted and not factors:
        raise NothingMixedError("expected a weight of at least two dimensions to decay, got none; check where=")
    # All anchors first: one that is missing must leave the model as it was.
    found = _anchored(anchors.anchor, wanted, selection, model)
    importance = {path: weigh.anchor(path, weight) for name in found for path, weight in wanted[name]} if weigh else {}
    for name, held in found.items():
        for (path, _), anchor in zip(wanted[name], held, strict=True):
            field = path.rpartition(".")[2]
            optimizer_hooks.attach_(modules[name], field, anchor, method, importance.get(path))
    for factor in factors:
        optimizer_hooks.attach_(factor, "weight", Anchor(), method)


def _anchor_outputs_(model: nn.Module, method: OutputAnchor, anchors: Anchors) -> None:
    """Anchor everything that is trained: the start's answers are computed with it. A head has no hidden states."""
    chosen, sites = [], lora.sites(model)
    covers = body(model) if method.on == "hidden" else lambda *_: True
    if (init := lora.moved_base(model)) is not None:
        raise ValueError(
            "expected adapters that leave the base as it was pretrained for output_anchor, got "
            f"init_lora_weights={init!r}"
        )
    for name, module in model.named_modules():
        trained = [(field, p) for field, p in module.named_parameters(recurse=False) if p.requires_grad]
        trained = trained if covers(name, module) else []
        if any(in_parts(p) for _, p in trained):
            _check_gathered(model, name, module)
        if lora.is_factor(sites, name):  # at B = 0 an adapted layer is its base, whatever A is
            found = {field: Anchor() for field, _ in trained if ".lora_B." in f".{name}."}
        else:
            found = {field: anchors.anchor(f"{name}.{field}".lstrip("."), p) for field, p in trained}
        chosen.append((module, found))
    if not any(found for _, found in chosen):
        raise NothingMixedError("expected a parameter that requires a gradient for output_anchor, got none")
    for module, found in chosen:
        if found and not isinstance(anchors, Unread):
            output.attach_(module, method, found)


def _check_gathered(model: nn.Module, name: str, module: nn.Module) -> None:
    """Refuse weights in parts that a pass of the anchors cannot gather, or would take from a pass that waits."""
    if not managed_by_fsdp(module):
        raise MixoutError(
            f"expected whole weights for output_anchor, or ones that FSDP2 gathers, got {name!r} in parts; use DDP"
        )
    if any(isinstance(one, Mixed) for one in model.modules()):
        raise MixoutError(
            "expected output_anchor alone or beside a decay under FSDP2, got it beside a method that mixes: FSDP2 has "
            "one gathered weight, and the pass of the anchors would take Phi's place; use DDP"
        )


def set_dropouts_(model: nn.Module, methods: Sequence[Method], *, keep: bool) -> None:
    """Mixing switches the model's own dropouts off; a Dropout beside it, or alone, sets them."""
    p = next((one.p for one in methods if isinstance(one, Dropout)), None)
    if p is None and (keep or not any(isinstance(one, MixingMethod) for one in methods)):
        return
    if not dropouts.set_(model, p or 0.0) and p:
        raise NothingMixedError(f"expected a model with dropouts to set to {p}, got none in it")


def undo_(model: nn.Module) -> None:
    """Take everything that was installed from ``model``."""
    for module in model.modules():
        if isinstance(module, Mixed):
            restore_(module)
        optimizer_hooks.detach_(module)
        disabling.unguard_(module)
        output.detach_(module)
        unmark_(module)
    dropouts.restore_(model)


def _weight(module: nn.Module, path: str) -> Any:  # noqa: ANN401
    return parameter(module, path)
