"""What an optimizer steps of the weights that decay, and what is checked of it before each step."""

from __future__ import annotations

import math
import warnings
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from mixout.errors import DecayStrengthWarning, MixoutError, ZeroDecayWarning, outside

if TYPE_CHECKING:
    from mixout.methods.decay import AnchorDecay
    from mixout.methods.optimizer_hooks import Target

# A learning rate of so many radii pins weights; a decay that takes back less in each of so many steps does nothing.
_PINNED, _TRIED, _NOTHING = 3.0, 100, 1e-6


@dataclass
class Match:
    """Which parameters of an optimizer decay, with the numbers of their groups."""

    # By id: a parameter that refers to its optimizer must not be kept, and torch swaps none with a weak reference.
    groups: list[list[int]] = field(default_factory=list)
    held: list[tuple[weakref.ref[Target], int, int]] = field(default_factory=list)  # parameter's id, group's number
    change: object = None  # the last one that was matched
    began: int = 0  # when the last step began, on the clock of steps
    warned: bool = False
    warned_of_strength: bool = False
    steps: int = 0
    strongest: float = 0.0  # share of the distance that a step with a rate has taken back, at most
    strongest_method: AnchorDecay | None = None  # the method that did

    @property
    def entries(self) -> list[tuple[Target, nn.Parameter, int]]:
        """Those whose target is still there; a target that comes during a step waits for the next."""
        live = ((target, target.parameter(), p_id, n) for ref, p_id, n in self.held if (target := ref()) is not None)
        return [(target, p, n) for target, p, p_id, n in live if p is not None and id(p) == p_id]


def check(optimizer: Optimizer, match: Match, entries: list[tuple[Target, nn.Parameter, int]]) -> None:
    """Check before the step, which cannot be refused once it is taken."""
    for target, weight, number in entries:
        group = optimizer.param_groups[number]
        target.stepped = weight.grad is not None
        if not (weight.requires_grad or target.stepped):
            continue
        if not match.warned and (to_zero := group.get("weight_decay")):
            warnings.warn(
                f"{type(optimizer).__name__} has weight_decay={float(to_zero):g} on weights that {target.method} pulls "
                "to their start: weight_decay pulls the same weights to zero; set it to 0 for them",
                ZeroDecayWarning,
                stacklevel=outside(),
            )
            match.warned = True
        target.anchor.check(weight)
        if group.get("lr") is None and target.method.shrinks:
            raise MixoutError(
                f"expected a learning rate of {type(optimizer).__name__}, which AnchorDecay's strength is multiplied "
                "with, got None; give it one (Adafactor: lr=, relative_step=False), or decay with decoupled=False"
            )


def check_strength(optimizer: Optimizer, match: Match, acting: list[tuple[Target, int]]) -> None:
    """Warn of a decay that pins weights, or does nothing; ``acting``: a target of each strength, its group's number."""
    for target, number in acting:
        lr = optimizer.param_groups[number]["lr"]
        if isinstance(lr, Tensor) and not lr.is_cpu:  # one would have to wait for a GPU
            continue
        lr = float(lr)
        share = lr * target.strength
        if target.method.rate and share > match.strongest:
            match.strongest, match.strongest_method = share, target.method
        if share >= _PINNED:
            _warn_of_strength(
                match,
                f"{type(optimizer).__name__} has lr={lr:g}, {share:.2g} times {1 / target.strength:g}, the radius of "
                f"{target.anchor.name} by {target.method}: each step takes it {-math.expm1(-share):.0%} of the way "
                "back to its start, so it stays much nearer than that. Take a smaller learning rate, or a larger "
                "radius; SGD goes about radius x gradient far, so try a radius of 1 with it",
            )
    match.steps += bool(acting)
    if match.steps == _TRIED and match.strongest_method is not None and match.strongest < _NOTHING:
        method = match.strongest_method
        meant = f"did you mean radius={method.rate:g}?" if method.strength < 1 else "take a larger one"
        _warn_of_strength(
            match,
            f"{method} does nothing: in {_TRIED} steps of {type(optimizer).__name__} none has taken back more than "
            f"{match.strongest:.1g} of the distance to the start; {meant}",
        )


def _warn_of_strength(match: Match, text: str) -> None:
    if not match.warned_of_strength:
        match.warned_of_strength = True
        warnings.warn(text, DecayStrengthWarning, stacklevel=outside())
