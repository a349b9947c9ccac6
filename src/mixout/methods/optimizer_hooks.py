"""The engine of :class:`mixout.AnchorDecay`: weights that decay, and the hooks on optimizers that decay them.

Two hooks see every step of every ``torch.optim.Optimizer`` of the process, as long as there is a target. Which targets
an optimizer steps is found out at its first step and again when parameters or targets were exchanged; an optimizer that
steps none pays for a comparison of its parameters' ids.
"""

from __future__ import annotations

import itertools
import math
import operator
import warnings
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from mixout.anchor import AnchorTensor, OwnWeight
from mixout.distances import norm
from mixout.errors import MixoutError, ZeroDecayWarning
from mixout.methods.decay import AnchorDecay, before, shrink_, shrink_selectively_, shrink_weighted_
from mixout.methods.targets import FIELD, ON_CHANGE, TARGETS, Target, changed
from mixout.periods import ZERO_MARKS, come_last_


@dataclass
class _Match:
    """Which parameters of an optimizer decay, with the numbers of their groups; out of date without ``groups``."""

    groups: list[list[nn.Parameter]] = field(default_factory=list)
    entries: list[tuple[Target, nn.Parameter, int]] = field(default_factory=list)
    began: int = 0  # the last step, on the clock of steps
    warned: bool = False


_MATCHES: weakref.WeakKeyDictionary[Optimizer, _Match] = weakref.WeakKeyDictionary()
_HANDLES: list[Any] = []
_CLOCK = itertools.count(1)  # orders beginnings and ends of steps


def attach_(
    module: nn.Module, field: str, anchor: AnchorTensor, method: AnchorDecay, importance: AnchorTensor | None = None
) -> Target:
    """Decay ``module.field`` towards ``anchor`` from the next optimizer step on."""
    unit = 1.0
    if method.relative and not isinstance(anchor, OwnWeight):  # a dry run's, which reads nothing
        start = anchor.tensor
        unit = 0.0 if start is None else norm(start, None) / math.sqrt(max(1, start.numel()))
    if unit == 0:
        raise ValueError(
            f"expected a start that is not 0 with relative=True, got a {field} of {type(module).__name__} that is; "
            "leave it out with where=, or give a radius in the weights' own units"
        )
    target = Target(module, field, anchor, method, method.strength / unit, importance)
    vars(module).setdefault(FIELD, {})[field] = target
    return target


def detach_(module: nn.Module) -> None:
    """Undo every :func:`attach_` on ``module`` itself; its submodules are left alone."""
    for target in vars(module).pop(FIELD, {}).values():
        TARGETS.pop(id(target), None)
    changed()


def _on_change() -> None:
    """Forget what was matched, and hook into optimizers as long as there is a target."""
    _forget_matches()
    if TARGETS and not _HANDLES:
        _HANDLES.append(register_optimizer_step_pre_hook(_before_step))
        _HANDLES.append(register_optimizer_step_post_hook(_after_step))
        come_last_()
    if not TARGETS:
        for handle in _HANDLES:
            handle.remove()
        _HANDLES.clear()


ON_CHANGE.append(_on_change)


def _forget_matches() -> None:
    for match in _MATCHES.values():
        match.groups = []


def _match(optimizer: Optimizer) -> _Match:
    match = _MATCHES.get(optimizer)
    if match is None:
        match = _MATCHES[optimizer] = _Match()
    if any(target.parameter() is not parameter for target, parameter, _ in match.entries):
        _forget_matches()  # of all optimizers: another may hold the parameter that came instead
    groups = [group["params"] for group in optimizer.param_groups]
    if len(groups) != len(match.groups) or not all(
        len(now) == len(then) and all(map(operator.is_, now, then))
        for now, then in zip(groups, match.groups, strict=True)
    ):
        match.entries = [] if _lets_another_step(optimizer) else _entries(optimizer)
        match.warned = match.warned or _warned_of_zero_decay(optimizer, match)
        match.groups = [list(parameters) for parameters in groups]
    return match


def _entries(optimizer: Optimizer) -> list[tuple[Target, nn.Parameter, int]]:
    decaying: dict[int, Target] = {}
    out_of_reach: dict[int, Target] = {}
    for target in list(TARGETS.values()):
        parameter = target.parameter()
        if any(hasattr(parameter, mark) for mark in ZERO_MARKS):
            raise MixoutError(
                "expected an optimizer that steps the model's weights, got DeepSpeed's ZeRO, which steps flat copies "
                "that anchor_decay does not reach; use DDP, FSDP2 or stage 0, or leave anchor_decay out"
            )
        if parameter is not None:
            decaying.setdefault(id(parameter), target)
        elif target.module is not None:
            out_of_reach.update((id(other), target) for other in target.module.parameters() if other.requires_grad)
    stepped = [(p, number) for number, group in enumerate(optimizer.param_groups) for p in group["params"]]
    for parameter, _ in stepped:
        lost = out_of_reach.get(id(parameter))
        if lost is not None and id(parameter) not in decaying:
            raise MixoutError(
                f"the {lost.field} of {type(lost.module).__name__} was parametrized or pruned after apply_, so "
                "AnchorDecay does not reach it; undo that (torch.nn.utils.parametrize.remove_parametrizations, "
                "torch.nn.utils.prune.remove), or call mixout.remove_(model) and leave the layer out with where="
            )
    return [(decaying[id(p)], p, number) for p, number in stepped if id(p) in decaying]


def _lets_another_step(optimizer: Optimizer) -> bool:
    """Whether ``optimizer`` wraps another one (SAM, Lookahead, ZeroRedundancyOptimizer), whose own steps then decay."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return any(
        isinstance(inner, Optimizer)
        and inner is not optimizer
        and all(id(parameter) in own for group in inner.param_groups for parameter in group["params"])
        for inner in vars(optimizer).values()
    )


def _warned_of_zero_decay(optimizer: Optimizer, match: _Match) -> bool:
    for target, _, number in match.entries:
        if to_zero := optimizer.param_groups[number].get("weight_decay"):
            warnings.warn(
                f"{type(optimizer).__name__} has weight_decay={float(to_zero):g} on weights that {target.method} pulls "
                "to their start: weight_decay pulls the same weights to zero; set it to 0 for them",
                ZeroDecayWarning,
                stacklevel=5,  # the caller of optimizer.step
            )
            return True
    return False


def _check(optimizer: Optimizer, match: _Match) -> None:
    """Before the step: one that has been taken cannot be refused."""
    for target, weight, number in match.entries:
        anchor = target.anchor.tensor
        moves = weight.requires_grad or weight.grad is not None
        if anchor is not None and anchor.shape != weight.shape and moves:
            raise MixoutError(
                f"the {target.field} of {type(target.module).__name__} was resized after apply_: it has shape "
                f"{tuple(weight.shape)} and its anchor has {tuple(anchor.shape)}; call mixout.remove_(model), and "
                "apply_ again after resizing (if the model was trained since, with the pretrained weights in the new "
                "size as anchor=), or leave the layer out with where="
            )
        if optimizer.param_groups[number].get("lr") is None and target.method.shrinks and moves:
            raise MixoutError(
                "expected a learning rate, which AnchorDecay's strength is multiplied with, got None from "
                f"{type(optimizer).__name__}; give it one (Adafactor: lr=, relative_step=False), or decay with "
                "decoupled=False"
            )


def _before_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    match = _match(optimizer)
    if not match.entries:
        return None
    match.began = next(_CLOCK)
    _check(optimizer, match)
    if all(target.method.shrinks for target, *_ in match.entries):
        return None
    # With a closure the gradient is made inside the step: args are the optimizer and then the closure.
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        _meet_gradient(optimizer, match)
        return None

    def then_meet() -> Any:  # noqa: ANN401
        loss = closure()
        _meet_gradient(optimizer, match)
        return loss

    return args[:1], {**kwargs, "closure": then_meet}


@torch.no_grad()
def _meet_gradient(optimizer: Optimizer, match: _Match) -> None:
    """Look at the gradients, if selective; or add rate (w - u) to them, once."""
    # A fused optimizer under GradScaler divides the gradient itself: the penalty must be scaled like it.
    loss_scale = getattr(optimizer, "grad_scale", None)
    for target, weight, _ in match.entries:
        grad = weight.grad
        if grad is None or target.method.shrinks:
            continue
        anchor = target.anchor.follow(weight)
        if target.method.selective:
            target.before = before(weight, anchor, grad)
            continue
        if target.penalised is not None and target.penalised[0] is grad and target.penalised[1] == grad._version:
            continue  # an outer step, or one that raised, has added it to this gradient
        difference = weight if anchor is None else weight - anchor
        if (importance := target.importance_beside(weight)) is not None:
            difference = difference * importance
        grad.add_(difference if loss_scale is None else difference * loss_scale, alpha=target.strength)
        target.penalised = grad, grad._version


def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:  # noqa: ANN401
    match = _MATCHES.get(optimizer)
    if match is None or not match.entries:
        return
    now = next(_CLOCK)
    alike: dict[tuple[Any, ...], tuple[list[Tensor], list[Any]]] = {}
    for target, weight, number in match.entries:
        target.penalised = None
        # What was decayed since this step began was decayed by an optimizer within it.
        if weight.grad is None or not target.method.decoupled or target.decayed_at > match.began:
            continue
        target.decayed_at = now
        anchor = target.anchor.follow(weight)
        if target.method.selective:
            if target.before is not None:
                shrink_selectively_(weight, anchor, target.before, target.strength)
            target.before = None
            continue
        if (importance := target.importance_beside(weight)) is not None:
            shrink_weighted_(weight, anchor, importance, _exponent(optimizer, number, target.strength))
            continue
        mesh = getattr(weight, "device_mesh", None)  # of a DTensor
        key = number, target.strength, anchor is None, weight.dtype, weight.device, mesh
        weights, anchors = alike.setdefault(key, ([], []))
        weights.append(weight)
        anchors.append(anchor)
    for (number, strength, zero, *_), (weights, anchors) in alike.items():
        shrink_(weights, None if zero else anchors, _exponent(optimizer, number, strength))


def _exponent(optimizer: Optimizer, number: int, strength: float) -> float | Tensor:
    exponent: float | Tensor = optimizer.param_groups[number]["lr"] * -strength
    if (found_inf := getattr(optimizer, "found_inf", None)) is not None:
        # A fused optimizer under GradScaler skips a step with infinite gradients without telling the host.
        return (found_inf == 0) * exponent  # type: ignore[no-any-return]
    return exponent
