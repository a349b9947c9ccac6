"""A method on a whole model or a part of it: apply_ and remove_."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from mixout import dropouts
from mixout.anchor import Anchor, AnchorStore, ImportanceStore, OwnWeight, digest
from mixout.errors import AlreadyAppliedError, FrozenLayersWarning, MixoutError, NothingMixedError
from mixout.functional import FORMS, Form
from mixout.layers import (
    Mixed,
    Mixing,
    Share,
    attach_,
    check_scope,
    check_sharding,
    lora,
    mixed_class,
    reshard_,
    restore_,
    swap_,
)
from mixout.layers.mixed import is_frozen
from mixout.methods import (
    AnchorDecay,
    Dropout,
    Method,
    MixingMethod,
    OutputAnchor,
    as_methods,
    optimizer_hooks,
    output,
    spell,
)
from mixout.methods.decay import decayed_fields
from mixout.origin import warn_if_fine_tuned
from mixout.parts import in_parts
from mixout.ranks import SCOPES, Scope, SharedSeed
from mixout.record import Applied, applied_here, applied_to, mark_, subject, unmark_
from mixout.selection import Selection, WhereLike, body, chosen, resolve
from mixout.sources import AnchorSource, is_zero, uncompiled
from mixout.streams import Stream

_TRACES = {
    "_mixout_decay",
    "_mixout_dropouts",
    "_mixout_output",
}  # what methods leave on their modules, besides a class


def apply_(
    model: nn.Module,
    method: Method | str | Sequence[Method | str],
    *,
    where: WhereLike = None,
    anchor: AnchorSource = None,
    seed: int | None = None,
    scope: Scope = "all",
    keep_dropout: bool = False,
    anchor_dtype: torch.dtype | None = None,
    anchor_device: Literal["cpu"] | None = None,
    form: Form = "auto",
) -> nn.Module:
    """Fine-tune ``model`` with ``method`` from now on; in place.

    Nothing that others hold is replaced: Parameter objects, state-dict keys, ties, hooks, ``requires_grad`` and the
    training flag stay, so optimizers may be built before or after. In eval mode the model computes what it computed.
    Parts of a model may be given methods of their own, one call each. A layer whose weight does not require a gradient
    computes plainly while that is so. Before pruning, ``quantize_dynamic`` or ``torch.jit.script`` call
    :func:`remove_`: they would not know the mixed layers, or change weights that mixing then ignores.

    Args:
        model: any module.
        method: one method, or several that are combined; at most one of them mixes. Text such as ``"mixout(0.9)"``
            counts as the methods that it names, see :func:`mixout.methods.parse`.
        where: which layers: None or ``"body"``, all linear layers of the pretrained body; ``"paper"``, those that
            follow a dropout in the paper; ``"all"``, every linear layer; a regular expression, a
            :class:`mixout.Where` or a predicate ``(name, module) -> bool`` on all layers that can be mixed.
        anchor: what is mixed in: None for the weights of this moment; a state dict; a safetensors file or a folder
            that holds one; another model; or 0.
        seed: None for masks from torch's default generators, as dropout's; an integer for masks that follow from it
            alone.
        scope: in a distributed run, whether ``"all"`` ranks toss the same coins, as one device would (without a seed
            they take rank 0's in their first training pass), or each ``"rank"`` its own. See docs/integrations/ddp.md.
        keep_dropout: leave the model's own dropouts on beside a mixing method.
        anchor_dtype: keep the anchors in this dtype, which must hold them exactly, as bfloat16 holds the weights of a
            checkpoint in bfloat16; they are cast in each pass. None for the weights' own.
        anchor_device: ``"cpu"`` keeps the anchors in the host's memory, pinned where there is a GPU, and copies each in
            the pass that reads it, for models whose anchors do not fit beside them. None: they follow the weights.
        form: how linear layers are computed: ``"auto"``, by device and size; ``"fast"``; or ``"lean"``, with the least
            memory. See :func:`mixout.functional.mixed_linear`.

    Returns:
        ``model``.

    Raises:
        AlreadyAppliedError: if the model, or a part of it, carries a method already.
        NothingMixedError: if a mixing method finds no layer.
        AnchorMismatchError: if ``anchor`` lacks a weight or has another shape.
        MixoutError: if the model has lazy parameters, or in ``torch.inference_mode``.
        TypeError, ValueError: if an argument is out of its range.

    Warns:
        FineTunedAnchorWarning: if the weights of this moment are a checkpoint of a Trainer's run.
        FrozenLayersWarning: if every layer that is chosen is frozen.

    Example:
        >>> from mixout import Mixout
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> apply_(model, Mixout(0.9))[0]
        MixedLinear(in_features=4, out_features=3, bias=True, p=0.9, unit='input', noise='bernoulli', gradient='exact')

    Source: Lee et al. 2020, section 3.
    """
    methods = as_methods(method)
    whole, model = model, uncompiled(model)
    _check_arguments(methods, anchor, seed, scope, anchor_dtype, anchor_device, form)
    _check_model(model)
    reshard_(model)
    selection = resolve(where, model)
    applied = Applied(methods=methods, seed=SharedSeed(seed, scope))
    mixing = next((m for m in methods if isinstance(m, MixingMethod)), None)
    decays = [m for m in methods if isinstance(m, AnchorDecay)]
    outputs = [m for m in methods if isinstance(m, OutputAnchor)]
    layers, adapted = ({}, {}) if mixing is None else chosen(model, selection, mixing.unit)
    anchors = AnchorStore(model, anchor, dtype=anchor_dtype, host=anchor_device is not None)
    try:
        if mixing is not None:
            applied.mixing = _mix_(model, mixing, layers, adapted, anchors, applied, form)
        for one in decays:
            _decay_(model, one, selection, anchors)
        for held in outputs:
            _anchor_outputs_(model, held, anchors)
        _set_dropouts_(model, methods, keep=keep_dropout)
    except BaseException:
        _undo_(model)
        raise
    changed = [m for m in model.modules() if isinstance(m, Mixed) or _TRACES & vars(m).keys()]
    mark_(changed or [model], applied)
    if layers and not adapted and all(isinstance(one, Mixed) and is_frozen(one) for one in layers.values()):
        warnings.warn(
            f"none of the {len(layers)} layers that apply_ has chosen requires a gradient: {applied} mixes nothing "
            "until one does; choose layers that are trained with where=, or unfreeze these",
            FrozenLayersWarning,
            stacklevel=2,
        )
    if anchor is None and (decays or outputs or (layers and mixing is not None and mixing.anchor == "given")):
        warn_if_fine_tuned(model)
    return whole


def remove_(model: nn.Module) -> nn.Module:
    """Make ``model`` plain again: classes and dropouts as before :func:`apply_`, weights as they are, bit for bit.

    Args:
        model: what :func:`apply_` was called on, or a part or a copy of it; the rest keeps its method.

    Returns:
        ``model``.

    Raises:
        NotAppliedError: if the model carries no method.
        MixoutError: if a mixed layer was parametrized since; nothing is changed then.

    Example:
        >>> from mixout import Mixout
        >>> model = apply_(nn.Sequential(nn.Linear(4, 3)), Mixout(0.9))
        >>> remove_(model)
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
        )
    """
    applied_to(model)
    for name, module in model.named_modules():
        if isinstance(module, Mixed) and is_parametrized(module):
            raise MixoutError(
                f"expected layers as apply_ left them, got {name!r} parametrized since, whose class is not to be taken "
                "from it; call torch.nn.utils.parametrize.remove_parametrizations on it first"
            )
    _undo_(model)
    return model


def _check_arguments(
    methods: tuple[Method, ...],
    anchor: AnchorSource,
    seed: object,
    scope: object,
    dtype: torch.dtype | None,
    device: object,
    form: object,
) -> None:
    mixing = [m for m in methods if isinstance(m, MixingMethod)]
    if len({m.name for m in methods}) < len(methods) or len(mixing) > 1:
        raise ValueError(f"expected different methods of which at most one mixes, got {spell(methods)}")
    if anchor is not None and not is_zero(anchor) and [m.anchor != "given" for m in mixing] == [True] * len(methods):
        raise ValueError(f"expected no anchor for {spell(methods)}, which takes none, got one; leave anchor= out")
    if isinstance(seed, bool) or not isinstance(seed, (int, type(None))):
        raise TypeError(f"expected seed to be an integer or None, got {seed!r}")
    if scope not in SCOPES:
        raise ValueError(f"expected scope in {SCOPES}, got {scope!r}")
    if device not in (None, "cpu"):
        raise ValueError(f"expected anchor_device 'cpu' or None, got {device!r}; by default anchors follow the weights")
    if form not in FORMS:
        raise ValueError(f"expected form in {FORMS}, got {form!r}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"expected anchor_dtype as a floating point dtype, got {dtype}")


def _check_model(model: nn.Module) -> None:
    check_sharding(model)
    if any(applied_here(m) is not None or isinstance(m, Mixed) for m in model.modules()):
        raise AlreadyAppliedError(
            "expected a plain model, got one that carries a method already; call mixout.remove_(model) first, "
            "or combine methods: apply_(model, [first, second])"
        )
    if torch.is_inference_mode_enabled():
        raise MixoutError(
            "apply_ was called in torch.inference_mode, whose anchors no training pass can read; call it outside"
        )
    check_sharding(model)
    for name, module in model.named_modules():
        if any(is_lazy(parameter) for parameter in module._parameters.values()):
            raise MixoutError(
                f"the layer {name!r} ({type(module).__name__}) has no weights yet, so there is no anchor; run one "
                "forward pass of the model before apply_"
            )


def _mix_(
    model: nn.Module,
    method: MixingMethod,
    layers: Mapping[str, nn.Module],
    adapted: Mapping[str, tuple[Any, list[str]]],
    anchors: AnchorStore,
    applied: Applied,
    form: Form,
) -> Mixing:
    """Swap the chosen layers, and the factors of the chosen adapters, for mixed ones."""
    p = torch.tensor(method.p, dtype=torch.float64, device="cpu")
    mixing = Mixing(p=p, unit=method.unit, noise=method.noise, gradient=method.gradient, form=form)
    check_scope(layers, applied.seed.scope)
    if adapted:
        lora.check_fits(model, mixing, takes_anchor=method.anchor == "given", of_this_moment=anchors.of_this_moment)
    store = AnchorStore(model, 0) if method.anchor == "zero" else anchors

    def share(name: str, module: nn.Module, anchor: Anchor) -> Share:
        return Share(mixing=mixing, anchor=anchor, plain=type(module), stream=Stream(applied.seed, name))

    # All anchors first: one that is missing must leave the model as it was.
    shares = {
        name: share(
            name,
            module,
            OwnWeight() if method.anchor == "own" else store.anchor(f"{name}.weight".lstrip("."), _weight(module)),
        )
        for name, module in layers.items()
    }
    applied.seed.subject = subject(str(applied), shares, layers)
    for name, module in layers.items():
        mixed = mixed_class(module)
        if mixed is not None:
            swap_(module, mixed, shares[name])
    for name, (site, adapters) in adapted.items():
        base = digest(lora.base_weight(site))
        for adapter in adapters:
            for factor_name, factor, mixed in lora.swaps(site, adapter, mixing):
                swap_(factor, mixed, share(f"{name}.{factor_name}", factor, Anchor(None, base)))
    attach_(model, layers)
    return mixing


def _decay_(model: nn.Module, method: AnchorDecay, selection: Selection, anchors: AnchorStore) -> None:
    """Let every weight of the chosen region decay towards its anchor."""
    chosen, sites = [], lora.sites(model)
    weigh = None if method.weights is None else ImportanceStore(model, method.weights)
    for name, module in model.named_modules():
        if not selection.covers(name, module):
            continue
        if lora.within(sites, name) is not None:
            if method.selective:
                if lora.is_factor(sites, name):
                    chosen.append((module, "weight", Anchor(), None))
                continue
            raise ValueError(
                f"expected weights that are decayed as they are, got the adapter of {name!r}: decaying the factors "
                "A and B is not a decay of W - u = s B A; leave adapted layers out with where=, and give A and B "
                "the optimizer's own weight_decay"
            )
        for field in decayed_fields(module):
            weight = getattr(module, field)
            if weight.requires_grad or not sites:  # beside adapters, what is frozen stays at its anchor
                key = f"{name}.{field}".lstrip(".")
                chosen.append((module, field, anchors.anchor(key, weight), weigh and weigh.anchor(key, weight)))
    if not chosen:
        raise NothingMixedError("expected a weight of at least two dimensions to decay, got none; check where=")
    # All anchors first: one that is missing must leave the model as it was.
    for module, field, anchor, importance in chosen:
        optimizer_hooks.attach_(module, field, anchor, method, importance)


def _anchor_outputs_(model: nn.Module, method: OutputAnchor, anchors: AnchorStore) -> None:
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
            raise MixoutError("expected whole weights for output_anchor, got ones in parts on several ranks; use DDP")
        if lora.is_factor(sites, name):  # at B = 0 an adapted layer is its base, whatever A is
            found = {field: Anchor() for field, _ in trained if ".lora_B." in f".{name}."}
        else:
            found = {field: anchors.anchor(f"{name}.{field}".lstrip("."), p) for field, p in trained}
        chosen.append((module, found))
    if not any(found for _, found in chosen):
        raise NothingMixedError("expected a parameter that requires a gradient for output_anchor, got none")
    for module, found in chosen:
        if found:
            output.attach_(module, method, found)


def _set_dropouts_(model: nn.Module, methods: Sequence[Method], *, keep: bool) -> None:
    """Mixing switches the model's own dropouts off; a Dropout beside it, or alone, sets them."""
    p = next((one.p for one in methods if isinstance(one, Dropout)), None)
    if p is None and (keep or not any(isinstance(one, MixingMethod) for one in methods)):
        return
    if not dropouts.set_(model, p or 0.0) and p:
        raise NothingMixedError(f"expected a model with dropouts to set to {p}, got none in it")


def _undo_(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Mixed):
            restore_(module)
        optimizer_hooks.detach_(module)
        output.detach_(module)
        unmark_(module)
    dropouts.restore_(model)


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight
