r"""Figure 5: least squares ``y = w1 x + w2 + noise`` trained with mixout(u, p) towards a random target u.

With ``L = ||X w - y||^2 / (2n)`` and ``H = X^T X / n`` the expected loss of mixout is again quadratic, with minimum

    w* = (H + p/(1-p) diag H)^-1 (X^T y / n + p/(1-p) (diag H) u).

Training with sampled masks is to converge to it: the gradient's expectation is linear in w, so the stationary mean of
SGD with a constant step is w* exactly. Many chains run side by side, and their averaged iterates give a standard error.
Lee et al. 2020, figure 5, shows the fitted lines; the closed form is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixout.masks import draw
from mixout.ops.mix import mix
from mixout.streams import Stream
from mixout.verify.claim import Claim, equals

TOPIC = "Figure 5: least squares with a random target (tolerance of sampled training: 5 standard errors)"
PS = (0.0, 0.3, 0.6, 0.9)
_ERRORS = 5.0
TRUE = (2.0, -1.0)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The line that one p leads to.

    Args:
        p: probability that a coordinate is replaced by the target's.
        slope: w1 of the closed form.
        intercept: w2 of the closed form.
        trained_slope: w1 of training, mean over chains of averaged iterates.
        trained_intercept: w2 of training.
        slope_error: standard error of ``trained_slope`` over the chains.
        intercept_error: standard error of ``trained_intercept``.
        target_slope: u1.
        target_intercept: u2.
    """

    p: float
    slope: float
    intercept: float
    trained_slope: float
    trained_intercept: float
    slope_error: float
    intercept_error: float
    target_slope: float
    target_intercept: float


@dataclass(frozen=True, kw_only=True)
class Data:
    """Points (x, 1) and y, and the target; float64.

    Args:
        inputs: X, (n, 2).
        outputs: y, (n,).
        target: u, (2,).
    """

    inputs: Tensor
    outputs: Tensor
    target: Tensor


def data(seed: int = 5, points: int = 60) -> Data:
    """Points around the true line, x uniform in [-1, 2]; the target is random."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.rand(points, generator=generator, dtype=torch.float64) - 1
    inputs = torch.stack([x, torch.ones_like(x)], 1)
    noise = 0.5 * torch.randn(points, generator=generator, dtype=torch.float64)
    return Data(
        inputs=inputs,
        outputs=inputs @ torch.tensor(TRUE, dtype=torch.float64) + noise,
        target=2 * torch.randn(2, generator=generator, dtype=torch.float64),
    )


def closed_form(given: Data, p: float) -> Tensor:
    """The minimum w* of E L(Phi).

    Example:
        >>> given = data()
        >>> bool(torch.dist(closed_form(given, 0.999999), given.target) < 1e-4)  # at the end only the target counts
        True
    """
    points = len(given.outputs)
    hessian = given.inputs.T @ given.inputs / points
    diagonal = hessian.diagonal().diag()
    odds = p / (1 - p)
    right = given.inputs.T @ given.outputs / points + odds * diagonal @ given.target
    minimum: Tensor = torch.linalg.solve(hessian + odds * diagonal, right)
    return minimum


def train(given: Data, p: float, *, steps: int, chains: int, seed: int = 0) -> Tensor:
    """Averaged iterates of SGD with sampled masks, from the target on, the first half not counted: (chains, 2).

    The step is a fraction of what the noise of the masks allows, so that no chain diverges at any p.
    """
    rate = 0.2 * (1 - p) / float(given.inputs.square().sum(1).mean())
    weight = given.target.repeat(chains, 1, 1).requires_grad_()
    anchor = weight.detach().clone()
    stream = Stream(seed, "least squares")
    total, skipped = torch.zeros(chains, 2, dtype=torch.float64), steps // 2
    for step in range(steps):
        phi = mix(weight, anchor, draw((chains, 1, 2), p, stream=stream), 1 / (1 - p))
        loss = (phi[:, 0] @ given.inputs.T - given.outputs).square().mean(1).sum() / 2
        (grad,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight -= rate * grad
            if step >= skipped:
                total += weight[:, 0]
    return total / (steps - skipped)


def fits(*, steps: int = 4000, chains: int = 128) -> list[Fit]:
    """Closed form and training for every p of the figure."""
    given = data()
    found = []
    for p in PS:
        exact, trained = closed_form(given, p), train(given, p, steps=steps, chains=chains)
        mean, error = trained.mean(0), trained.std(0) / chains**0.5
        found.append(
            Fit(
                p=p,
                slope=float(exact[0]),
                intercept=float(exact[1]),
                trained_slope=float(mean[0]),
                trained_intercept=float(mean[1]),
                slope_error=float(error[0]),
                intercept_error=float(error[1]),
                target_slope=float(given.target[0]),
                target_intercept=float(given.target[1]),
            )
        )
    return found


def claims(found: list[Fit]) -> list[Claim]:
    """That training finds the closed form, that p = 0 is least squares, and that the line turns to the target's."""
    given = data()
    ordinary = torch.linalg.lstsq(given.inputs, given.outputs[:, None]).solution[:, 0]
    result = [
        equals(TOPIC, "closed form: the slope of ordinary least squares", 0.0, float(ordinary[0]), found[0].slope)
    ]
    for fit in found:
        for name, exact, trained, error in (
            ("slope", fit.slope, fit.trained_slope, fit.slope_error),
            ("intercept", fit.intercept, fit.trained_intercept, fit.intercept_error),
        ):
            result.append(
                Claim(
                    topic=TOPIC, statement=f"training with sampled masks: {name} of the closed form", p=fit.p,
                    relation="=", expected=exact, found=trained, tolerance=_ERRORS * error + 1e-3,
                )
            )  # fmt: skip
    away = [((fit.slope - fit.target_slope) ** 2 + (fit.intercept - fit.target_intercept) ** 2) ** 0.5 for fit in found]
    for before, after, fit in zip(away, away[1:], found[1:], strict=False):
        result.append(
            Claim(
                topic=TOPIC, statement="distance of the line to the target's: below that of the p before", p=fit.p,
                relation="<=", expected=before, found=after, tolerance=0.0,
            )
        )  # fmt: skip
    return result
