"""A method on a whole model or a part of it, or several by layer: apply_ and remove_."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Never, TypeAlias

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from mixout._names import nearest
from mixout.anchor import AnchorStore
from mixout.errors import AlreadyAppliedError, FrozenLayersWarning, MixoutError, outside
from mixout.install import Rules, install_, rule_of, undo_
from mixout.layers import Mixed, is_linear, lora
from mixout.layers.mixed import is_frozen
from mixout.methods import AnchorDecay, Dropout, Method, MixingMethod, OutputAnchor, as_methods, spell
from mixout.methods.optimizer_hooks import targets
from mixout.parts import check_sharding, reshard_
from mixout.passes import FORMS, Form
from mixout.reach import check_reach
from mixout.record import applied_here, applied_to
from mixout.seeds import Seed
from mixout.selection import WhereLike, blocks, resolve
from mixout.sources import Anchor, AnchorSource, is_zero, unwrapped, warn_if_fine_tuned

ByLayer: TypeAlias = Mapping[str, Method | str | Sequence[Method | str]]

_FORMER = {
    "anchor_dtype": "write anchor=mixout.Anchor(dtype=...)",
    "anchor_device": 'write anchor=mixout.Anchor(device="cpu")',
    "scope": 'write seed=mixout.Seed(scope="rank")',
}


def apply_(
    model: nn.Module,
    method: Method | str | Sequence[Method | str] | ByLayer,
    *,
    where: WhereLike = None,
    anchor: AnchorSource | Anchor = None,
    seed: int | Seed | None = None,
    keep_dropout: bool = False,
    form: Form = "auto",
    **former: Never,
) -> nn.Module:
    """Fine-tune ``model`` with ``method`` from now on; in place.

    Nothing that others hold is replaced: Parameter objects, state-dict keys, tied weights, hooks, ``requires_grad`` and
    the training flag stay, so optimizers may be built before or after. In eval mode nothing is replaced.
    Parts of a model may be given methods of their own, one call each. A layer whose weight does not require a gradient
    computes plainly while that is so. Before pruning, quantisation or ``torch.jit`` call :func:`remove_`.

    Args:
        model: any module.
        method: one method, or several that are combined; at most one of them mixes. Text such as ``"mixout(0.9)"``
            stands for the methods that it names, see :func:`mixout.methods.parse`. Or by layer: a dict from regular
            expressions on layer names to methods. The first expression that matches a layer decides; layers that none
            matches are left out. :func:`mixout.by_depth` makes such a dict.
        where: which layers: None or :data:`mixout.BODY`, all linear layers of the pretrained body;
            :data:`mixout.PAPER`, those that follow a dropout in the paper; :data:`mixout.ALL`, every linear layer; a
            regular expression on the names of linear layers; a :class:`mixout.Where`, for other types of layers too; or
            a predicate ``(name, module) -> bool`` on all layers that can be mixed.
        anchor: what is mixed in: None for a copy of the current weights; a state dict; a safetensors file or a folder
            that holds one; another model; or 0. :class:`Anchor` says how it is kept. A layer that it lacks is left out
            as new, where nothing else says which layers are a new head.
        seed: None for masks from torch's default generators, as dropout's; an integer for masks that follow from it
            alone. :class:`Seed` says which ranks share them.
        keep_dropout: leave the model's own dropouts on beside a mixing method.
        form: how linear layers are computed: ``"auto"``, by device and size; ``"fast"``; or ``"lean"``, with the least
            memory. See :func:`mixout.functional.mixed_linear`.
        former: keywords of version 0.1, which are refused with the names of today.

    Returns:
        ``model``.

    Raises:
        AlreadyAppliedError: if the model, or a part of it, carries a method already.
        NothingMixedError: if a mixing method finds no layer, or by default the new head alone.
        AnchorMismatchError: if ``anchor`` lacks a weight that was asked for, or has another shape.
        MixoutError: if the model has lazy parameters, or in ``torch.inference_mode``.
        TypeError, ValueError: if an argument is out of its range.

    Warns:
        FineTunedAnchorWarning: if the current weights are a checkpoint of a Trainer's run.
        FrozenLayersWarning: if every layer to mix and every weight to decay is frozen.
        LowCoverageWarning: if less than half of the FLOPs of the body, or of the chosen layers, is reached.

    Example:
        >>> from mixout import Mixout
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> apply_(model, Mixout(0.9))[0]
        MixedLinear(in_features=4, out_features=3, bias=True, p=0.9, unit='input', noise='bernoulli', gradient='exact')

    Source: Lee et al. 2020, section 3.
    """
    anchor_spec = anchor if isinstance(anchor, Anchor) else Anchor(anchor)
    seed_spec = seed if isinstance(seed, Seed) else Seed(seed)
    for name in former:
        raise TypeError(
            f"apply_ takes no keyword {name!r}; {_FORMER[name]}" if name in _FORMER
            else f"apply_ got an unexpected keyword {name!r}{nearest(name, inspect.signature(apply_).parameters)}"
        )  # fmt: skip
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model as a torch.nn.Module, got {type(model).__name__}; of a trainer pass its model")
    if form not in FORMS:
        raise ValueError(f"expected form in {FORMS}, got {form!r}")
    rules = rules_of(method)
    methods = tuple(dict.fromkeys(m for group in rules.values() for m in group))
    original, model = model, unwrapped(model)
    for group in rules.values():
        if len({m.name for m in group}) < len(group) or sum(isinstance(m, MixingMethod) for m in group) > 1:
            raise ValueError(f"expected different methods of which at most one mixes, got {spell(group)}")
    given = any(isinstance(m, MixingMethod) and m.anchor == "given" for m in methods)
    holds = any(isinstance(m, (AnchorDecay, OutputAnchor)) for m in methods)  # an anchor, without mixing
    if not (anchor_spec.source is None or is_zero(anchor_spec.source) or given or holds):
        raise ValueError(f"expected no anchor for {spell(methods)}, which takes none, got one; leave anchor= out")
    selection = resolve(where, model)
    check_applicable(model)
    reshard_(model)
    anchors = AnchorStore(model, anchor_spec)
    try:
        layers = install_(model, rules, selection, anchors, seed_spec, form, keep_dropout=keep_dropout)
        if layers:
            check_reach(model, selection.but(lambda name, _: rule_of(rules, name) is None))
        decaying = (target.parameter() for target in targets(model).values())
        acts = [not is_frozen(module) for module in model.modules() if isinstance(module, Mixed)]
        acts += [weight.requires_grad for weight in decaying if weight is not None]
        if acts and not any(acts):
            warnings.warn(
                f"none of the {len(acts)} layers and weights that {spell(methods)} acts on requires a gradient: "
                "nothing is done to them until one does; choose layers that are trained with where=, or unfreeze these",
                FrozenLayersWarning,
                stacklevel=outside(),
            )
        # Adapters are put on a model as it is: their base is what they are to stay near.
        if anchor_spec.source is None and ((layers and given) or holds) and not lora.sites(model):
            warn_if_fine_tuned(model)
    except BaseException:  # a warning too, where warnings are errors
        undo_(model)
        raise
    return original


def by_depth(model: nn.Module, method: Callable[[float], Method]) -> dict[str, Method]:
    """Methods that follow the depth of a layer, for :func:`mixout.apply_`.

    Blocks are the members of the outermost ``nn.ModuleList`` that hold linear layers, in order: an encoder's before
    its decoder's. What lies in no block counts as the last.

    Args:
        model: the model.
        method: the method of a block, given its depth: 0 for the first one, 1 for the last.

    Returns:
        Methods by regular expression.

    Raises:
        ValueError: if ``model`` has no such list.

    Example:
        >>> from mixout import Mixout
        >>> model = nn.ModuleDict({"layer": nn.ModuleList(nn.Linear(2, 2) for _ in range(3))})
        >>> [method.p for method in by_depth(model, lambda depth: Mixout(0.9 - 0.4 * depth)).values()]
        [0.9, 0.7, 0.5]
    """
    names = [name for name, block in blocks(unwrapped(model)) if any(map(is_linear, block.modules()))]
    if not names:
        raise ValueError(
            f"expected a model whose blocks lie in a torch.nn.ModuleList, got {type(model).__name__} without one; "
            "write the methods by layer as a dict"
        )
    last = len(names) - 1
    methods = {f"^{re.escape(name)}(\\.|$)": method(index / max(1, last)) for index, name in enumerate(names[:-1])}
    return {**methods, "": method(1.0)}


def rules_of(method: Any) -> Rules:  # noqa: ANN401  whatever a caller may write
    """What a caller may write as ``method=``, as rules."""
    if not isinstance(method, Mapping):
        return {"": as_methods(method)}
    rules = {}
    for pattern, methods in method.items():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            message = f"expected regular expressions as keys of the methods, got {pattern!r}: {error}"
            raise ValueError(message) from error
        rules[pattern] = as_methods(methods)
        if any(isinstance(m, Dropout) for m in rules[pattern]):
            raise ValueError(
                f"expected methods that act on layers, got Dropout for {pattern!r}, which sets all of the model's "
                "dropouts; leave it out, or pass keep_dropout=True to keep them as they are"
            )
    if not rules:
        raise ValueError("expected methods by layer, such as {'encoder': mixout.Mixout(0.5)}, got an empty dict")
    return rules


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
    undo_(model)
    return model


def check_applicable(model: nn.Module) -> None:
    """Refuse a model that carries a method already, or whose weights cannot be anchored."""
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
    for name, module in model.named_modules():
        if any(is_lazy(parameter) for parameter in module._parameters.values()):
            raise MixoutError(
                f"the layer {name!r} ({type(module).__name__}) has no weights yet, so there is no anchor; run one "
                "forward pass of the model before apply_"
            )
