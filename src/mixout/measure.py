"""Which anchors lie on the layers of a model, how far it has gone from them, and the weights in between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from mixout import distances
from mixout.anchor import AnchorStore, AnchorTensor, MovingAnchor, OwnWeight
from mixout.distances import Distance
from mixout.errors import InputError, MixoutError, NotAppliedError
from mixout.layers import Mixed, lora, parameter, weights
from mixout.layers.mixed import REPLACED
from mixout.methods import MixingMethod, optimizer_hooks, output
from mixout.methods.optimizer_hooks import targets
from mixout.parts import reshard_
from mixout.record import applied_here, applied_to
from mixout.selection import WhereLike, resolve
from mixout.sources import OF_LORA, AnchorSource, WeightMissingError, unwrapped


def distance(model: nn.Module, anchor: AnchorSource = None, *, where: WhereLike = None) -> Distance:
    """||w - u||, in total and by parameter.

    Args:
        model: a model, or any part of one.
        anchor: None for the anchors that lie on the model's layers; else any source that :func:`mixout.apply_` takes,
            so that models trained with and without mixing are measured alike. It must be a copy: the weights of
            ``model`` itself, as in its ``state_dict()``, have distance 0. For LoRA layers this is the norm of
            W - u = s B A; DoRA layers, whose W is another, are not measured.
        where: with ``anchor``: which layers' weights count, as in :func:`mixout.apply_`.

    Raises:
        NotAppliedError: if ``anchor`` is None and the model holds no anchor.
        AnchorMismatchError: if ``anchor`` lacks a weight, or a weight has another shape than its anchor.
        MixoutError: if a weight is computed by another tool since apply_.

    Example:
        >>> import mixout
        >>> model = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), mixout.Mixout(0.9))
        >>> distance(model).total
        0.0
    """
    model = unwrapped(model)
    reshard_(model)
    if anchor is None:
        check_anchored(model)
        anchored = distances.distance(
            {key: weight_and_start(key, *entry) for key, entry in anchored_weights(model).items()}
        )
        deltas = {key: lora.delta_norm(layer) for key, layer in adapted_layers(model).items()}
        return Distance(total=math.hypot(anchored.total, *deltas.values()), by_layer={**anchored.by_layer, **deltas})
    selection, store, pairs, missing = resolve(where, model), AnchorStore(model, anchor), {}, None
    for name, module in model.named_modules():
        for key, weight in _matrices(name, module) if selection.mixes(name, module) else ():
            try:
                pairs[key] = (weight, store.tensor(key, weight))
            except WeightMissingError as error:
                missing = error
    if missing is not None and not (selection.may_lack and pairs):
        raise missing
    return distances.distance(pairs)


def _matrices(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The mixable weights of a layer by their dotted names; its matrices if the layer cannot be mixed."""
    weight_by_path: dict[str, Tensor | None] = {path: parameter(module, path) for path in weights(module)}
    for path, weight in (weight_by_path or dict(module.named_parameters(recurse=False))).items():
        if weight is not None and weight.dim() >= 2:
            yield f"{name}.{path}".lstrip("."), weight


def radius_used(model: nn.Module) -> dict[str, float]:
    """How far each weight that decays has gone, in radii of its :class:`mixout.AnchorDecay`: max |w - u| / r.

    Where entries have an importance F of their own, their radius is r / F.

    Near 1: the decay binds. Near 0: it hardly acts, and a smaller radius would. Above 1: the optimizer's steps were
    longer than its learning rate, see docs/methods/anchor-decay.md. Reads each of these weights once.

    Args:
        model: a model, or any part of one.

    Returns:
        The largest entry of each weight, by parameter name; nothing where no decoupled decay acts.

    Raises:
        AnchorMismatchError: if a weight has another shape than its anchor.
        MixoutError: if a weight is computed by another tool since apply_.

    Example:
        >>> import mixout, torch
        >>> model = mixout.apply_(nn.Sequential(nn.Linear(2, 1)), mixout.AnchorDecay(radius=0.5), anchor=0)
        >>> with torch.no_grad(): _ = model[0].weight.copy_(torch.tensor([[0.1, -0.25]]))
        >>> radius_used(model)
        {'0.weight': 0.5}
    """
    model = unwrapped(model)
    reshard_(model)
    used = {}
    for key, target in targets(model).items():
        if target.module is not None and target.method.shrinks:
            weight, start = weight_and_start(key, target.module, target.field, target.anchor)
            if (importance := target.importance_beside(weight)) is not None:
                moved = weight if start is None else weight - start.to(weight.device, weight.dtype)
                weight, start = moved.detach() * importance, None
            used[key] = distances.norm(weight, start, math.inf) * target.strength
    return used


@torch.no_grad()
def interpolate_(model: nn.Module, t: float, anchor: AnchorSource = None, *, where: WhereLike = None) -> nn.Module:
    r"""Move weights to :math:`u + t (w - u)`, between the anchor and where training ended; in place.

    This is WiSE-FT: train, then try t = 0.3, 0.5, 0.7 on held-out data. It costs no training. Each call starts from the
    weights as they are, so load the trained ones again before you try another t.

    Args:
        model: a model, or any part of one.
        t: 1 leaves the weights as they are, 0 puts the anchor in their place; both bit for bit.
        anchor: None for the anchors that lie on the model's layers; weights without one (biases, norms, the head) stay.
            In LoRA layers W - u = s B A, so B is multiplied by t. Or any source that :func:`mixout.apply_` takes: then
            every parameter that ``where`` covers moves, biases and norms too, as in the paper.
        where: with ``anchor``: which modules, as in :func:`mixout.apply_`; by default the pretrained body.

    Returns:
        ``model``.

    Raises:
        NotAppliedError: if ``anchor`` is None and the model holds no anchor.
        AnchorMismatchError: if ``anchor`` lacks a weight, or a weight has another shape than its anchor.
        MixoutError: if a weight is computed by another tool since apply_, or an adapter is no plain LoRA, or merged.
        InputError: if ``anchor`` is the memory of the model's own weights, as its ``state_dict()`` is.
        TypeError, ValueError: if ``t`` is not a number in [0, 1].

    Example:
        >>> import mixout
        >>> model = mixout.apply_(nn.Linear(2, 1), mixout.Mixout(0.9), anchor={"weight": torch.zeros(1, 2)})
        >>> _ = nn.init.ones_(model.weight)
        >>> interpolate_(model, 0.25).weight.tolist()
        [[0.25, 0.25]]

    Source: Wortsman et al., CVPR 2022, arXiv 2109.01903.
    """
    t = check_t(t)
    inner = unwrapped(model)
    reshard_(inner)
    if anchor is None:
        anchored = {key: entry for key, entry in anchored_weights(inner).items() if not _is_zero_of_method(*entry)}
        if not (anchored or adapted_layers(inner)):
            name_it = (
                f"name it: interpolate_(model, {t:g}, start), where start is the pretrained model, its state dict or "
                "folder; apply_ would take the trained weights for it"
            )
            raise NotAppliedError(
                "expected the start to go back to, got none, since no anchor lies on this model; "
                f"{OF_LORA if lora.sites(inner) else name_it}"
            )
        pairs = [weight_and_start(key, *entry) for key, entry in anchored.items()]
        for layer in lora.sites(inner).values():
            for name in held_adapters(layer):
                lora.check_unmerged(layer)
                if problem := lora.variant(layer, name):
                    raise MixoutError(f"expected adapters whose B can be multiplied by t, got {problem}")
                pairs += [(weight, None) for weight in layer.lora_B[name].parameters()]
    else:
        pairs = [(weight, start) for _, _, weight, start in covered(inner, anchor, where)]
    # A tied weight moves once. All anchors first: one that is missing must leave the model as it was.
    for weight, start in {id(weight): (weight, start) for weight, start in pairs}.values():
        _move_(weight, start, t)
    return model


def _is_zero_of_method(module: nn.Module, field: str, anchor: AnchorTensor) -> bool:
    """Whether the anchor of a weight is the 0 to which a method such as Dropconnect sets weights."""
    record = applied_here(module) if isinstance(module, Mixed) and module._mixed.anchors.get(field) is anchor else None
    methods = () if record is None else record.methods
    return any(isinstance(method, MixingMethod) and method.anchor == "zero" for method in methods)


def check_t(t: float) -> float:
    """Return ``t`` of :func:`interpolate_` as a float, or say what is wrong with it."""
    if isinstance(t, bool) or not isinstance(t, Real):
        raise TypeError(f"expected t to be a number in [0, 1], got {t!r}")
    if not 0 <= t <= 1:
        raise ValueError(f"expected t in [0, 1], from the anchor to the weights as they are, got {t}")
    return float(t)


def covered(
    model: nn.Module, anchor: AnchorSource, where: WhereLike
) -> list[tuple[str, nn.Module, nn.Parameter, Tensor | None]]:
    """Name, module, parameter and anchor of all that ``where`` covers; a tied parameter once; integers stay."""
    store, holders = AnchorStore(model, anchor), dict[nn.Parameter, tuple[str, nn.Module]]()
    for key, module, weight in resolve(where, model).parameters(model):
        if weight.is_floating_point() or weight.is_complex():
            holders.setdefault(weight, (key, module))
        elif (start := store.tensor(key, weight)) is None or not weight.equal(start):
            raise InputError(
                f"expected weights between which one can go, got {key!r} of {weight.dtype}, whose start is another; "
                "dequantise the model, or leave it out with where="
            )
    found = [(key, module, weight, store.tensor(key, weight)) for weight, (key, module) in holders.items()]
    store.check_apart()
    return found


def _move_(weight: Tensor, anchor: Tensor | None, t: float) -> None:
    """Move w <- u + t (w - u); t = 0 and 1 copy, since 0 * w is nan where w is infinite, and -0 + 0 is no -0."""
    if t == 1:
        return
    if anchor is None:
        weight.zero_() if t == 0 else weight.mul_(t)
    elif t == 0:
        weight.copy_(anchor)
    else:
        weight.lerp_(anchor.to(weight.device, weight.dtype), 1 - t)


def anchored_weights(model: nn.Module, *, own: bool = False) -> dict[str, tuple[nn.Module, str, AnchorTensor]]:
    """Module, field and anchor of each weight that is decayed or mixed, by its dotted name; ``own``: OwnWeight too."""
    sites = lora.sites(model)
    by_key = {
        key: (target.module, target.field, target.anchor)
        for key, target in targets(model).items()
        if target.module is not None and not lora.is_factor(sites, key.rpartition(".")[0])
    }
    for name, (module, output_anchors) in output.held(model).items():
        if not lora.is_factor(sites, name):
            by_key |= {f"{name}.{field}".lstrip("."): (module, field, u) for field, u in output_anchors.anchors.items()}
    for name, module in model.named_modules():
        if isinstance(module, Mixed) and name not in sites and not lora.is_factor(sites, name):
            for path, anchor in module._mixed.anchors.items():
                start = anchor.start if isinstance(anchor, MovingAnchor) else anchor
                key = f"{name}.{path}".lstrip(".")
                if start.tensor is not None or key not in by_key:  # the 0 of Dropconnect hides no start
                    by_key[key] = (module, path, start)
    return {key: entry for key, entry in by_key.items() if own or not isinstance(entry[2], OwnWeight)}


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The LoRA layers on which a method acts, by the name of their anchor, which is their frozen base."""
    return {
        lora.base_name(name, layer): layer
        for name, layer in lora.sites(model).items()
        if (adapters := held_adapters(layer)) and not any(lora.variant(layer, adapter) for adapter in adapters)
    }


def held_adapters(layer: Any) -> dict[str, tuple[nn.Module, AnchorTensor]]:  # noqa: ANN401  of peft
    """For each adapter of which a factor is mixed, decays, or is anchored to 0: that factor, its anchor of the base."""
    adapters: dict[str, tuple[nn.Module, AnchorTensor]] = {
        name: (factor, factor._mixed.anchor) for name, factor in lora.mixed_factors(layer).items()
    }
    for name, factor in getattr(layer, "lora_B", {}).items():
        anchors = [target.anchor for target in vars(factor).get(optimizer_hooks.FIELD, {}).values()]
        if isinstance(output_anchors := vars(factor).get(output.FIELD), output.Held):
            anchors += output_anchors.anchors.values()
        if anchors:
            adapters.setdefault(name, (factor, anchors[0]))
    return adapters


def has_anchors(model: nn.Module) -> bool:
    """Whether there is an anchor on a module of ``model``."""
    return bool(anchored_weights(model) or adapted_layers(model))


def check_anchored(model: nn.Module) -> None:
    """Refuse a model that holds no anchor."""
    if not has_anchors(model):
        methods = ", ".join(map(str, applied_to(model)))
        raise NotAppliedError(f"{methods} holds no anchor; pass anchor= to measure against one")


def weight_and_start(name: str, module: nn.Module, field: str, anchor: AnchorTensor) -> tuple[Tensor, Tensor | None]:
    """A weight as it is, and its anchor beside it; None where that is 0."""
    weight = parameter(module, field)
    if weight is None:
        raise MixoutError(f"{name!r} {REPLACED}")
    return weight, anchor.beside(weight)
