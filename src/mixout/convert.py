"""A method on a whole model: apply_, remove_, and what can be asked of the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from mixout import anchor as anchors
from mixout import dropouts
from mixout.anchor import AnchorSource, AnchorStore, Distance, is_zero, uncompiled
from mixout.errors import AlreadyAppliedError, MixoutError, NotAppliedError, NothingMixedError
from mixout.layers import Mixed, check_sharding, obstacle, reshard_, restore_
from mixout.layers.lora import adapted_layers, base_weight, delta_norm, within
from mixout.masks import check_p
from mixout.methods import Method, MixingMethod, spell
from mixout.methods.adapters import mixable_factors, selected_adapters, why_not
from mixout.methods.method import Applied, Site, chosen_layers, parent
from mixout.origin import warn_if_fine_tuned
from mixout.ranks import SCOPES, Scope, SharedSeed
from mixout.selection import Selection, WhereLike, resolve


def apply_(
    model: nn.Module,
    method: Method | Sequence[Method],
    *,
    where: WhereLike = None,
    anchor: AnchorSource = None,
    seed: int | None = None,
    scope: Scope = "all",
    keep_dropout: bool = False,
    anchor_dtype: torch.dtype | None = None,
    anchor_device: Literal["cpu"] | None = None,
) -> nn.Module:
    """Fine-tune ``model`` with ``method`` from now on; in place.

    Nothing that others hold is replaced: Parameter objects, state-dict keys, ties, hooks, ``requires_grad`` and the
    training flag stay, so optimizers may be built before or after. In eval mode the model computes what it computed.

    Args:
        model: any module.
        method: one method, or several that are combined; at most one of them mixes.
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

    Returns:
        ``model``.

    Raises:
        AlreadyAppliedError: if the model, or a part of it, carries a method already.
        NothingMixedError: if a mixing method finds no layer.
        AnchorMismatchError: if ``anchor`` lacks a weight or has another shape.
        TypeError, ValueError: if an argument is out of its range.

    Warns:
        FineTunedAnchorWarning: if the weights of this moment are a checkpoint of a Trainer's run.

    Example:
        >>> from mixout import Mixout
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> apply_(model, Mixout(0.9))[0]
        MixedLinear(in_features=4, out_features=3, bias=True, p=0.9, unit='input', noise='bernoulli', gradient='exact')

    Source: Lee et al. 2020, section 3.
    """
    methods = (method,) if isinstance(method, Method) else tuple(method)
    whole, model = model, uncompiled(model)
    _check_methods(methods)
    _check_fresh(model)
    _check_anchor_used(methods, anchor)
    if isinstance(seed, bool) or not isinstance(seed, (int, type(None))):
        raise TypeError(f"expected seed to be an integer or None, got {seed!r}")
    if scope not in SCOPES:
        raise ValueError(f"expected scope in {SCOPES}, got {scope!r}")
    if anchor_device not in (None, "cpu"):
        raise ValueError(
            f"expected anchor_device 'cpu' or None, got {anchor_device!r}; by default anchors follow the weights"
        )
    if anchor_dtype is not None and not anchor_dtype.is_floating_point:
        raise ValueError(f"expected anchor_dtype as a floating point dtype, got {anchor_dtype}")
    check_sharding(model)
    reshard_(model)
    selection = resolve(where, model)
    if any(isinstance(m, MixingMethod) for m in methods):
        _check_something_to_mix(model, selection)
    site = Site(
        model=model,
        selection=selection,
        anchors=AnchorStore(model, anchor, dtype=anchor_dtype, host=anchor_device is not None),
        keep_dropout=keep_dropout,
        applied=Applied(methods=methods, seed=SharedSeed(seed, scope)),
    )
    model._mixout = site.applied  # type: ignore[assignment]
    try:
        # Mixing switches dropouts off; a Dropout beside it sets them, whatever the order it is named in.
        for one in sorted(methods, key=lambda m: not isinstance(m, MixingMethod)):
            one.install_(site)
    except BaseException:
        remove_(model)
        raise
    if anchor is None and any(one.tensor is not None for one in site.applied.anchors.values()):
        warn_if_fine_tuned(model)
    return whole


def remove_(model: nn.Module) -> nn.Module:
    """Make ``model`` plain again: classes and dropouts as before :func:`apply_`, weights as they are, bit for bit.

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
    found = _roots(model)
    if not found:
        applied_to(model)  # says what is wrong
    for name, module in model.named_modules():
        if isinstance(module, Mixed) and is_parametrized(module):
            raise MixoutError(
                f"expected layers as apply_ left them, got {name!r} parametrized since, whose class is not to be taken "
                "from it; call torch.nn.utils.parametrize.remove_parametrizations on it first"
            )
    for root in found:
        applied: Applied = root._mixout  # type: ignore[assignment]
        del root._mixout
        for decay in applied.decays:
            decay.stop()
        for module in root.modules():
            if isinstance(module, Mixed):
                restore_(module)
        dropouts.restore_(root)
    return model


def applied_to(model: nn.Module) -> tuple[nn.Module, Applied]:
    """The module that :func:`apply_` was called on, found inside wrappers too, and what it left there.

    Raises:
        NotAppliedError: if there is none, or if it lies around ``model``.
        MixoutError: if several parts of ``model`` carry a method of their own.
    """
    found = _roots(model)
    if len(found) > 1:
        raise MixoutError(f"expected a model with one method, got {len(found)} parts with their own; call it on each")
    if found:
        return found[0], found[0]._mixout  # type: ignore[return-value]
    if any(isinstance(module, Mixed) for module in model.modules()):
        raise NotAppliedError("expected the module that apply_ was called on, got a part of it; call it on the whole")
    raise NotAppliedError("expected a model with a method, got a plain one; call mixout.apply_(model, method) first")


def _roots(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(vars(module).get("_mixout"), Applied)]


def distance(model: nn.Module, anchor: AnchorSource = None, *, where: WhereLike = None) -> Distance:
    """||w - u||, in total and by parameter.

    Args:
        model: a model.
        anchor: None for the anchors that the model's method holds; else any source that :func:`apply_` takes, so
            that models trained with and without mixing are measured alike.
        where: with ``anchor``: which layers' weights count, as in :func:`apply_`.

    Raises:
        NotAppliedError: if ``anchor`` is None and the model holds no anchor.
        AnchorMismatchError: if ``anchor`` lacks a weight or has another shape.

    Example:
        >>> from mixout import Mixout
        >>> model = apply_(nn.Sequential(nn.Linear(4, 3)), Mixout(0.9))
        >>> distance(model).total
        0.0
    """
    reshard_(model)
    if anchor is None:
        root, applied = anchored(model)
        held = ((name, root.get_parameter(name), one) for name, one in applied.anchors.items())
        found = anchors.distance({name: (weight, one.beside(weight)) for name, weight, one in held})
        deltas = {f"{name}.base_layer.weight": delta_norm(root.get_submodule(name)) for name in applied.adapted}
        return Distance(total=math.hypot(found.total, *deltas.values()), by_layer={**found.by_layer, **deltas})
    selection, store, pairs = resolve(where, model), AnchorStore(model, anchor), {}
    for name, module in model.named_modules():
        if selection.mixes(name, module):
            for key, weight in module.named_parameters(prefix=name, recurse=False):
                if weight.dim() >= 2:
                    pairs[key] = (weight, store.anchor(key, weight).tensor)
    return anchors.distance(pairs)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the anchors that the model's method holds; of LoRA layers, of their frozen bases.

    Raises:
        NotAppliedError: if the model holds no anchor.
        MixoutError: if an adapter is merged into its base.
    """
    root, applied = anchored(model)
    bases = {f"{name}.base_layer.weight": base_weight(root.get_submodule(name)) for name in applied.adapted}
    return anchors.fingerprint({**{name: one.tensor for name, one in applied.anchors.items()}, **bases})


def anchored(model: nn.Module) -> tuple[nn.Module, Applied]:
    """The root and what was applied to it, if that has an anchor.

    Raises:
        NotAppliedError: if there are none.
    """
    root, applied = applied_to(model)
    if not applied.anchored:
        raise NotAppliedError(
            f"expected a method that holds an anchor, got {spell(applied.methods)}; pass anchor= to measure against one"
        )
    return root, applied


def set_p_(model: nn.Module, p: float) -> None:
    """Change p of the mixing method that ``model`` carries; a compiled model is not compiled again.

    Raises:
        NotAppliedError: if the model carries no mixing method.
        TypeError, ValueError: if ``p`` is not a number in [0, 1].
    """
    _, applied = applied_to(model)
    if applied.mixing is None:
        raise NotAppliedError(f"expected a mixing method, got {spell(applied.methods)}")
    applied.mixing.set_p(check_p(p, applied.mixing.noise))


def _check_methods(methods: tuple[Method, ...]) -> None:
    if not methods or not all(isinstance(m, Method) for m in methods):
        raise TypeError(f"expected a method such as mixout.Mixout(0.9), or several, got {methods!r}")
    if len({m.name for m in methods}) < len(methods) or sum(isinstance(m, MixingMethod) for m in methods) > 1:
        raise ValueError(f"expected different methods of which at most one mixes, got {spell(methods)}")


def _check_anchor_used(methods: tuple[Method, ...], anchor: AnchorSource) -> None:
    if (
        anchor is not None
        and not is_zero(anchor)
        and all(isinstance(m, MixingMethod) and not m.takes_anchor for m in methods)
    ):
        raise ValueError(f"expected no anchor for {spell(methods)}, which takes none, got one; leave anchor= out")


def _check_fresh(model: nn.Module) -> None:
    if any("_mixout" in vars(m) or isinstance(m, Mixed) for m in model.modules()):
        raise AlreadyAppliedError(
            "expected a plain model, got one that carries a method already; call mixout.remove_(model) first, "
            "or combine methods: apply_(model, [first, second])"
        )


def _check_something_to_mix(model: nn.Module, selection: Selection) -> None:
    adapted = adapted_layers(model)
    selected = selected_adapters(model, selection)
    if chosen_layers(model, selection) or any(any(mixable_factors(one, "input")) for one in selected.values()):
        return
    reasons = [f"{name}: {why_not(layer)}" for name, layer in selected.items()]
    for name, module in model.named_modules():
        if name not in adapted and within(adapted, name) is None and selection.mixes(name, module):
            problem = obstacle(module, parent(model, name)) or "frozen, and without an adapter"
            reasons.append(f"{name}: {problem}")
    detail = "; ".join(reasons[:5]) if reasons else "where= matches no linear layer, or none that can be mixed"
    raise NothingMixedError(f"expected at least one layer to mix, got none ({detail}); see mixout.coverage")
