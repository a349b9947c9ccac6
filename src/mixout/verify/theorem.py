r"""Theorem 1 and Corollary 1.1: ``E L(Phi) >= L(w) + m p / (2 (1-p)) ||w - u||^2`` for L of strong convexity m.

Equality where the Hessian is m I, for mixout (a coin per input neuron) and mixconnect (a coin per weight) alike. With
any constant Hessian H the gap is exactly ``p / (2 (1-p)) sum over units of d^T H d``, at least the bound with m the
smallest eigenvalue. Only the mask's mean and variance enter there: Gaussian and uniform masks give the same number.
With a loss that is not quadratic the bound is an inequality. Lee et al. 2020, section 3 and supplement A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixout.masks import Unit
from mixout.verify.claim import Claim, at_least, equals
from mixout.verify.enumeration import Law, expectation
from mixout.verify.losses import RIDGE, Problem, block_sum, logistic, problem, quadratic

TOPIC = "Theorem 1, Corollary 1.1: E L(Phi) - L(w), every mask enumerated"
_CURVATURE = 1.7
_NAMES: dict[Unit, str] = {"input": "mixout", "element": "mixconnect"}
_CONTINUOUS: tuple[Law, ...] = ("gaussian", "uniform")


def claims(ps: tuple[float, ...] = (0.3, 0.9)) -> list[Claim]:
    """The claims of the theorem for each p."""
    given = problem()
    return [claim for p in ps for claim in (*_quadratic(given, p), *_logistic(given, p))]


def bound(delta: Tensor, p: float, convexity: float) -> float:
    """Corollary 1.1's m p / (2 (1-p)) ||w - u||^2.

    Example:
        >>> bound(torch.ones(2, 2), 0.5, 1.0)
        2.0
    """
    return convexity * p / (2 * (1 - p)) * float(delta.square().sum())


def _quadratic(given: Problem, p: float) -> list[Claim]:
    isotropic = _CURVATURE * torch.eye(len(given.hessian), dtype=torch.float64)
    found = [
        equals(
            TOPIC,
            f"{_NAMES[unit]}, Hessian m I: equality with the bound",
            p,
            bound(given.delta, p, _CURVATURE),
            _quadratic_gap(given, isotropic, p, unit),
        )
        for unit in _NAMES
    ]
    exact = p / (2 * (1 - p)) * block_sum(given.delta, given.hessian)
    gap = _quadratic_gap(given, given.hessian, p, "input")
    smallest = float(torch.linalg.eigvalsh(given.hessian)[0])
    found += [
        equals(TOPIC, "mixout, Hessian H: p/(2(1-p)) sum over units of d'Hd", p, exact, gap),
        at_least(TOPIC, "mixout, Hessian H: not below the bound", p, bound(given.delta, p, smallest), gap),
    ]
    for law in _CONTINUOUS:
        gap = _quadratic_gap(given, given.hessian, p, "input", law)
        found.append(equals(TOPIC, f"mixout with {law} masks, Hessian H: the same gap", p, exact, gap))
    return found


def _logistic(given: Problem, p: float) -> list[Claim]:
    def loss(phi: Tensor) -> Tensor:
        return logistic(phi, given.features, given.labels)

    here = float(loss(given.weight[None]))
    least = bound(given.delta, p, RIDGE)
    found = [
        at_least(
            TOPIC,
            f"{_NAMES[unit]}, logistic with L2: not below the bound",
            p,
            least,
            expectation(loss, given.weight, given.anchor, p, unit=unit) - here,
        )
        for unit in _NAMES
    ]
    for law in _CONTINUOUS:
        gap = expectation(loss, given.weight, given.anchor, p, law=law, nodes=10) - here
        found.append(at_least(TOPIC, f"{law} masks, logistic with L2: not below the bound", p, least, gap))
    return found


def _quadratic_gap(given: Problem, hessian: Tensor, p: float, unit: Unit, law: Law = "bernoulli") -> float:
    def loss(phi: Tensor) -> Tensor:
        return quadratic(phi, given.center, hessian)

    # The loss is of degree 2 in M: three nodes are exact.
    mean = expectation(loss, given.weight, given.anchor, p, unit=unit, law=law, nodes=3)
    return mean - float(loss(given.weight[None]))
