"""anchor_decay(rate): weight decay towards the anchor instead of towards zero.

Decoupled (default), after every optimizer step of learning rate eta: ``w <- w - eta rate (w - u)``, as AdamW does
towards zero. Coupled: ``rate (w - u)`` is added to the gradient before the step, the derivative of the paper's
wdecay(u, lambda), ``L(w) + (lambda / 2) ||w - u||^2``, which with u = w_pre is L2-SP without its head term.

- Acts through hooks on every optimizer that steps a decayed parameter, whether built before or after; nothing
  is added to the loss, so accumulation, loss scaling and the size of the graph are not touched.
- Refused under DeepSpeed's ZeRO, whose optimizers step flat copies of the weights.
- Decays weights of two dimensions or more in the pretrained body (or where ``where`` says); never biases, norms or a
  new head; and no adapters of peft. The optimizer's own weight_decay pulls towards zero beside it: set it to 0.
- Source: Lee, Cho, Kang, ICLR 2020, sections 2 and 5; Li, Grandvalet, Davoine, ICML 2018 (L2-SP).
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from types import FrameType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from mixout.anchor import Anchor
from mixout.errors import MixoutError, NothingMixedError
from mixout.layers.lora import adapted_layers, within
from mixout.methods.method import Method, Site


@dataclass(frozen=True)
class AnchorDecay(Method):
    """Weight decay towards the anchor.

    Args:
        rate: strength, at least 0, in units of one over learning rate (decoupled) or of the loss's curvature (coupled).
        decoupled: after the step, scaled by the learning rate; or, if False, in the gradient before it.

    Raises:
        TypeError: if ``rate`` is not a number.
        ValueError: if ``rate`` is negative or not finite.

    Example:
        >>> AnchorDecay(0.01)
        AnchorDecay(rate=0.01, decoupled=True)
    """

    rate: float
    _: KW_ONLY
    decoupled: bool = True
    name: ClassVar[str] = "anchor_decay"

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not isinstance(self.rate, (int, float)):
            raise TypeError(f"expected rate to be a number, at least 0, got {self.rate!r}")
        if not (self.rate >= 0 and math.isfinite(self.rate)):
            raise ValueError(f"expected a finite rate, at least 0, got {self.rate}")

    def install_(self, site: Site) -> None:
        """Anchor every weight of the chosen region and hook the optimizers."""
        targets = []
        adapted = adapted_layers(site.model)
        for name, module in site.model.named_modules():
            if not site.selection.covers(name, module):
                continue
            if within(adapted, name) is not None:
                raise ValueError(
                    f"expected weights that are decayed as they are, got the adapter of {name!r}: decaying the factors "
                    "A and B is not a decay of W - u = s B A; leave adapted layers out with where=, and give A and B "
                    "the optimizer's own weight_decay"
                )
            for key, parameter in module.named_parameters(prefix=name, recurse=False):
                if parameter.dim() >= 2 and parameter.is_floating_point():
                    anchor = site.anchors.anchor(key, parameter)
                    site.applied.anchors[key] = anchor
                    targets.append(Target(module, key.rpartition(".")[2], anchor))
        if not targets:
            raise NothingMixedError("expected a weight of at least two dimensions to decay, got none; check where=")
        site.applied.decays.append(Decay(self, targets))


@dataclass
class Target:
    """A parameter, by its module, since tools exchange Parameter objects, and the anchor it decays towards."""

    module: nn.Module
    field: str
    anchor: Anchor

    def parameter(self) -> Tensor:
        """The parameter of this moment."""
        parameter: Tensor = getattr(self.module, self.field)
        return parameter


_STEPPED_BY_ZERO = ("_hp_mapping", "ds_id")  # DeepSpeed's marks, of stages 1 and 2 and of stage 3
_LIVE: weakref.WeakSet[Decay] = weakref.WeakSet()
_HOOKED: list[Any] = []
_STEPS_FILE = Optimizer.profile_hook_step.__code__.co_filename


class Decay:
    """A decay in force: as long as this object lives, the optimizers' hooks see it. Copies decay their own model."""

    def __init__(self, method: AnchorDecay, targets: list[Target]) -> None:
        self.method = method
        self.targets = targets
        self._enlist()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._enlist()

    def stop(self) -> None:
        """Decay no more."""
        _LIVE.discard(self)

    def _enlist(self) -> None:
        _LIVE.add(self)
        if not _HOOKED:
            _HOOKED.append(register_optimizer_step_pre_hook(_before_step))
            _HOOKED.append(register_optimizer_step_post_hook(_after_step))

    def due(self, optimizer: Optimizer) -> Iterator[tuple[Tensor, Tensor | None, Any]]:
        """(w, u, learning rate) of every parameter that ``optimizer`` steps now; u is None where it is zero."""
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
        done = {id(p) for outer in _enclosing(optimizer) for group in outer.param_groups for p in group["params"]}
        for target in self.targets:
            parameter = target.parameter()
            if any(hasattr(parameter, mark) for mark in _STEPPED_BY_ZERO):
                raise MixoutError(
                    "expected an optimizer that steps the model's weights, got DeepSpeed's ZeRO, which steps flat "
                    "copies that anchor_decay does not reach; use DDP, FSDP2 or stage 0, or leave anchor_decay out"
                )
            if id(parameter) in rates and id(parameter) not in done:  # a tied parameter decays once
                done.add(id(parameter))
                anchor = target.anchor.follow(parameter)
                yield parameter, anchor, rates[id(parameter)]


def _enclosing(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers within whose step ``optimizer`` steps (SAM, Lookahead, ZeRO): what they hold, they decay.

    Read off the call stack, where torch's wrapper of ``step`` holds the optimizer as ``self``: a count of our own would
    be wrong from the first step on that raises.
    """
    found = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "wrapper" and frame.f_code.co_filename == _STEPS_FILE:
            outer = frame.f_locals.get("self")
            if isinstance(outer, Optimizer) and outer is not optimizer:
                found.append(outer)
        frame = frame.f_back
    return found


def _before_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    _check_rates(optimizer)
    if all(decay.method.decoupled for decay in _LIVE):
        return None
    # With a closure the gradient is made inside the step: args are the optimizer and then the closure.
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        _add_penalty(optimizer)
        return None

    def with_penalty() -> Any:  # noqa: ANN401
        loss = closure()
        _add_penalty(optimizer)
        return loss

    return args[:1], {**kwargs, "closure": with_penalty}


def _check_rates(optimizer: Optimizer) -> None:
    """Before the step: one that has been taken cannot be refused."""
    if all(group.get("lr") is not None for group in optimizer.param_groups):
        return
    if any(decay.method.decoupled and any(rate is None for *_, rate in decay.due(optimizer)) for decay in _LIVE):
        raise MixoutError(
            f"expected a learning rate, which AnchorDecay's strength is multiplied with, got None from "
            f"{type(optimizer).__name__}; give it one (Adafactor: lr=, relative_step=False), or decay with "
            "decoupled=False"
        )


@torch.no_grad()
def _add_penalty(optimizer: Optimizer) -> None:
    for decay in list(_LIVE):
        if not decay.method.decoupled:
            # A fused optimizer under GradScaler divides the gradient itself: the penalty must be scaled like it.
            loss_scale = getattr(optimizer, "grad_scale", None)
            for weight, anchor, _ in decay.due(optimizer):
                way = weight if anchor is None else weight - anchor
                grad: Tensor = weight.grad  # type: ignore[assignment]
                grad.add_(way if loss_scale is None else way * loss_scale, alpha=decay.method.rate)


@torch.no_grad()
def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:  # noqa: ANN401
    # A fused optimizer under GradScaler skips a step with infinite gradients without telling the host.
    skipped = getattr(optimizer, "found_inf", None)
    for decay in list(_LIVE):
        if decay.method.decoupled:
            for weight, anchor, rate in decay.due(optimizer):
                strength = rate * decay.method.rate
                _pull_(weight, anchor, strength if skipped is None else strength * (1 - skipped))


def _pull_(weight: Tensor, anchor: Tensor | None, strength: float | Tensor) -> None:
    """Take ``strength`` of the way from w to u: w <- w - strength (w - u)."""
    if isinstance(strength, Tensor):  # of any dtype and device, which lerp does not take
        weight.sub_((weight if anchor is None else weight - anchor) * strength)
    elif anchor is None:
        weight.mul_(1 - strength)
    else:
        weight.lerp_(anchor, strength)  # one pass, without a temporary of the weight's size
