r"""Where the pull is: in the mixed forward *and* the masked gradient together, in neither alone.

Expected gradients on a quadratic with Hessian H, every mask enumerated, each form of the gradient taken from the
library's own operation by autograd:

- ``exact``: ``grad L(w) + p/(1-p) B d``, B being the diagonal blocks of H over the units: the gradient of E L(Phi);
- ``paper``: (1-p) times that;
- ``dense`` (mixed forward, plain gradient): ``grad L(w)``, no pull;
- gradient mask (plain forward, masked gradient): ``grad L(w)``, no pull.

So a control that keeps only one half of mixout keeps its noise and loses its pull. Beyond quadratics this holds to
second order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixout.masks import mask_shape
from mixout.ops.mix import mix
from mixout.ops.reference import Gradient
from mixout.verify.claim import Claim, equals
from mixout.verify.enumeration import every_mask
from mixout.verify.losses import Problem, problem, quadratic

TOPIC = "Expected gradient on a quadratic: pull along w - u beyond grad L(w)"


def claims(ps: tuple[float, ...] = (0.3, 0.9)) -> list[Claim]:
    """The pull of each form of the gradient, for each p, and that ``exact`` is right in every coordinate."""
    given = problem()
    blocks = _blocks(given)
    plain = (given.hessian @ (given.weight - given.center).flatten()).view_as(given.weight)
    found = []
    for p in ps:
        pull = p / (1 - p) * blocks
        exact = expected_gradient(given, p, "exact")
        error = float((exact - plain - pull).abs().max())
        found += [
            equals(TOPIC, "exact: largest error of a coordinate against grad E L(Phi)", p, 0.0, error),
            _claim(given, "exact: p/(1-p) sum over units of d'Hd", p, pull, exact - plain),
            _claim(
                given, "paper's: (1-p) times the exact gradient", p, (1 - p) * (plain + pull),
                expected_gradient(given, p, "paper"),
            ),
            _claim(
                given, "mixed forward, dense gradient: none", p, 0 * pull, expected_gradient(given, p, "dense") - plain
            ),
            _claim(given, "gradient mask alone: none", p, 0 * pull, expected_gradient(given, p, None) - plain),
        ]  # fmt: skip
    return found


def expected_gradient(given: Problem, p: float, gradient: Gradient | None) -> Tensor:
    """E of the gradient that autograd finds, by enumeration; None is the gradient mask, whose forward is w."""
    masks = every_mask(mask_shape(tuple(given.weight.shape), "input"), p)
    total = torch.zeros_like(given.weight)
    for mask, chance in zip(masks.values, masks.weights, strict=True):
        weight = given.weight.clone().requires_grad_()
        anchor = given.anchor if gradient else given.weight
        phi = mix(weight, anchor, mask, 1 / (1 - p), gradient=gradient or "exact")
        quadratic(phi[None], given.center, given.hessian).sum().backward()  # type: ignore[no-untyped-call]
        if weight.grad is not None:
            total += chance * weight.grad
    return total


def _claim(given: Problem, statement: str, p: float, expected: Tensor, found: Tensor) -> Claim:
    """Both projected on w - u."""
    return equals(TOPIC, statement, p, float((expected * given.delta).sum()), float((found * given.delta).sum()))


def _blocks(given: Problem) -> Tensor:
    """B d: each column of d under the Hessian's block of that column."""
    delta = given.delta
    result = torch.zeros_like(delta)
    for unit in range(delta.shape[1]):
        part = torch.zeros_like(delta)
        part[:, unit] = delta[:, unit]
        result[:, unit] = (given.hessian @ part.flatten()).view_as(delta)[:, unit]
    return result
