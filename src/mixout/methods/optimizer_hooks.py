"""The engine of :class:`mixout.AnchorDecay`: weights that decay, and two hooks on all optimizers that decay them."""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from mixout.anchor import AnchorTensor, OwnWeight
from mixout.errors import MixoutError
from mixout.methods.checks import Match, check, check_strength
from mixout.methods.decay import AnchorDecay, Before, before, shrink_, shrink_selectively_, shrink_weighted_
from mixout.parts import check_stepped, laid_out, loaded
from mixout.seeds import come_last_

FIELD = "_mixout_decay"  # the attribute of a module that holds its targets by field
TARGETS: weakref.WeakValueDictionary[int, Target] = weakref.WeakValueDictionary()  # in the order of creation


@dataclass(eq=False, repr=False)
class Target:
    """A weight that decays, known by module and field, since tools exchange Parameters; a copy decays its own."""

    holder: InitVar[nn.Module]
    field: str
    anchor: AnchorTensor
    method: AnchorDecay
    strength: float  # times the learning rate, or if coupled w - u, or if selective nothing
    importance: AnchorTensor | None
    decayed_at: int = 0  # on the clock of steps
    stepped: bool = False  # the weight had a gradient before the step under way, which may drop it
    # The gradient that holds the penalty, until a step has ended; in another tuple each time that it is added.
    penalised: tuple[Tensor] | None = None
    before: Before | None = None  # of the step under way, if selective

    def __post_init__(self, holder: nn.Module) -> None:
        self._module = weakref.ref(holder)  # so that a model that is deleted is freed at once
        with _LOCK:
            TARGETS[id(self)] = self
            _changed()

    def __getstate__(self) -> tuple[Any, ...]:
        return self.module, self.field, self.anchor, self.method, self.strength, self.importance

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        Target.__init__(self, *state)

    @property
    def module(self) -> nn.Module | None:
        """The module that holds the weight; None once that is deleted, or while it is being copied."""
        module = self._module()
        return module if module is not None and "_parameters" in vars(module) else None

    def parameter(self) -> nn.Parameter | None:
        """The current parameter; None if the field holds none: parametrized or pruned since, or deleted."""
        module = self.module
        return None if module is None else module._parameters.get(self.field)

    def importance_beside(self, weight: Tensor) -> Tensor | None:
        """How much each entry counts, on the device of ``weight``, where it stays; None where all count alike."""
        if (importance := self.importance) is None or importance.tensor is None:
            return None
        importance.tensor = importance.tensor.to(weight.device)
        return laid_out(importance.tensor, weight)


def targets(model: nn.Module) -> dict[str, Target]:
    """What decays in ``model``, which may be a part of another, by parameter name."""
    modules = ((name, vars(module).get(FIELD, {})) for name, module in model.named_modules())
    return {f"{name}.{field}".lstrip("."): target for name, fields in modules for field, target in fields.items()}


_MATCHES: weakref.WeakKeyDictionary[Optimizer, Match] = weakref.WeakKeyDictionary()
_HANDLES: list[Any] = []
_LOCK = threading.RLock()  # of targets and handles
_CHANGE = [object()]  # a new one whenever targets have come or gone, or parameters were exchanged
_CLOCK = itertools.count(1)  # orders beginnings and ends of steps


def attach_(
    module: nn.Module, field: str, anchor: AnchorTensor, method: AnchorDecay, importance: AnchorTensor | None = None
) -> Target:
    """Decay ``module.field`` towards ``anchor`` from the next optimizer step on."""
    strength = method.strength if isinstance(anchor, OwnWeight) else method.strength_on(anchor.tensor)
    if strength == math.inf:
        raise ValueError(
            f"expected a start that is not 0 with relative=True, got a {field} of {type(module).__name__} that is; "
            "leave it out with where=, or give a radius in the weights' own units"
        )
    target = Target(module, field, anchor, method, strength, importance)
    vars(module).setdefault(FIELD, {})[field] = target
    return target


def detach_(module: nn.Module) -> None:
    """Undo every :func:`attach_` on ``module`` itself; its submodules are left alone."""
    with _LOCK:
        for target in vars(module).pop(FIELD, {}).values():
            TARGETS.pop(id(target), None)
        _changed()


def _changed() -> None:
    """A target has come or gone: match anew, and hook into optimizers as long as there is one."""
    _CHANGE[0] = object()
    if TARGETS and not _HANDLES:
        _HANDLES.append(register_optimizer_step_pre_hook(_before_step))
        _HANDLES.append(register_optimizer_step_post_hook(_after_step))
        come_last_()
    while _HANDLES and not TARGETS:
        _HANDLES.pop().remove()


def _match(optimizer: Optimizer) -> Match:
    match = _MATCHES.setdefault(optimizer, Match())
    if any((target := ref()) is None or id(target.parameter()) != p_id for ref, p_id, _ in match.held):
        _CHANGE[0] = object()  # for all optimizers: another one may hold the new parameter
    change, groups = _CHANGE[0], [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    if match.change is not change or groups != match.groups:
        match.held = [(weakref.ref(target), id(p), number) for target, p, number in _entries(optimizer)]
        match.groups, match.change = groups, change
    return match


def _entries(optimizer: Optimizer) -> list[tuple[Target, nn.Parameter, int]]:
    decaying: dict[int, Target] = {}
    out_of_reach: dict[int, Target] = {}
    with _LOCK:
        live = list(TARGETS.values())
    for target in live:
        parameter = target.parameter()
        check_stepped(parameter, "anchor_decay")
        if parameter is not None:
            decaying.setdefault(id(parameter), target)
        elif target.module is not None:
            out_of_reach.update((id(p), target) for p in target.module.parameters() if p.requires_grad)
    # An optimizer within this one (SAM, Lookahead) decays what it steps.
    inner = [value for value in vars(optimizer).values() if isinstance(value, Optimizer) and value is not optimizer]
    if inner and isinstance(optimizer, loaded("torch.distributed.optim", "ZeroRedundancyOptimizer")):
        inner.append(optimizer)  # the other ranks step what this one does not
    nested = {id(p) for optim in inner for group in optim.param_groups for p in group["params"]}
    stepped = [(p, n) for n, group in enumerate(optimizer.param_groups) for p in group["params"] if id(p) not in nested]
    for parameter, _ in stepped:
        if id(parameter) not in decaying and (lost := out_of_reach.get(id(parameter))) is not None:
            raise MixoutError(
                f"{lost.anchor.name} was parametrized or pruned after apply_, so AnchorDecay does not reach it; undo "
                "that (prune.remove, remove_parametrizations), or remove_ and leave the layer out with where="
            )
    return [(decaying[id(p)], p, number) for p, number in stepped if id(p) in decaying]


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    match = _match(optimizer)
    if not (entries := match.entries):
        return None
    match.began = next(_CLOCK)
    check(optimizer, match, entries)
    if all(target.method.shrinks for target, *_ in entries):
        return None
    # With a closure the gradient is made inside the step: args are the optimizer and then the closure.
    named = kwargs.get("closure") is not None
    closure = kwargs["closure"] if named else args[1] if len(args) > 1 else None
    if not callable(closure):  # some other argument of this optimizer
        _meet_gradient(optimizer, match)
        return None

    def then_meet() -> Any:  # noqa: ANN401
        tags = [(target, tag, tag[0]._version) for target, *_ in match.entries if (tag := target.penalised) is not None]
        loss = closure()
        for target, tag, version in tags:
            if target.penalised is tag and tag[0]._version != version:  # its backward pass has made another gradient
                target.penalised = None
        _meet_gradient(optimizer, match)
        return loss

    if named:
        return args, {**kwargs, "closure": then_meet}
    return (args[0], then_meet, *args[2:]), kwargs


@torch.no_grad()
def _meet_gradient(optimizer: Optimizer, match: Match) -> None:
    """Look at the gradients, if selective; or add rate (w - u) to them, once."""
    # A fused optimizer under GradScaler divides the gradient itself: the penalty must be scaled like it.
    loss_scale = getattr(optimizer, "grad_scale", None)
    for target, weight, number in match.entries:
        grad = weight.grad
        if grad is None or target.method.shrinks:
            continue
        anchor, sign = target.anchor.cast(weight), -1 if optimizer.param_groups[number].get("maximize") else 1
        if target.method.selective:
            target.before = before(weight, anchor, grad if sign > 0 else -grad)
            continue
        if target.penalised is not None and target.penalised[0] is grad:
            continue  # by an outer step, which may have clipped it since, or one that raised
        if grad.layout is not torch.strided:
            raise MixoutError(
                f"expected a dense gradient of {target.anchor.name} for {target.method}, which adds a dense one to it, "
                "got a sparse one; leave out decoupled=False, or sparse=True"
            )
        difference = weight if anchor is None else weight - anchor
        if (importance := target.importance_beside(weight)) is not None:
            difference = difference * importance
        grad.add_(difference if loss_scale is None else difference * loss_scale, alpha=sign * target.strength)
        target.penalised = (grad,)


def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:  # noqa: ANN401
    match = _MATCHES.get(optimizer)
    if match is None or not (entries := match.entries):
        return
    now = next(_CLOCK)
    groups: dict[tuple[Any, ...], list[tuple[Tensor, Any]]] = {}
    acting: dict[tuple[int, float], Target] = {}
    for target, weight, number in entries:
        target.penalised = None
        # What was decayed since this step began was decayed by an optimizer within it.
        stepped, target.stepped = target.stepped or weight.grad is not None, False
        if not stepped or not target.method.decoupled or target.decayed_at > match.began:
            continue
        target.decayed_at = now
        anchor = target.anchor.cast(weight)
        if target.method.selective:
            if target.before is not None:
                shrink_selectively_(weight, anchor, target.before, target.strength)
            target.before = None
            continue
        acting.setdefault((number, target.strength), target)
        if (importance := target.importance_beside(weight)) is not None:
            shrink_weighted_(weight, anchor, importance, _exponent(optimizer, number, target.strength))
            continue
        mesh = getattr(weight, "device_mesh", None)  # of a DTensor
        key = number, target.strength, anchor is None, weight.dtype, weight.device, mesh
        groups.setdefault(key, []).append((weight, anchor))
    for (number, strength, to_zero, *_), pairs in groups.items():
        weights, anchors = map(list, zip(*pairs, strict=True))
        shrink_(weights, None if to_zero else anchors, _exponent(optimizer, number, strength))
    check_strength(optimizer, match, [(target, number) for (number, _), target in acting.items()])


def _exponent(optimizer: Optimizer, number: int, strength: float) -> float | Tensor:
    exponent: float | Tensor = optimizer.param_groups[number]["lr"] * -strength
    # A fused optimizer under GradScaler skips a step with infinite gradients without telling the host.
    found_inf = getattr(optimizer, "found_inf", None)
    return exponent if found_inf is None else (found_inf == 0) * exponent
