r"""Figure 5: least squares ``y = w1 x + w2 + noise`` trained with mixout(u, p) towards a random target u.

With ``L = ||X w - y||^2 / (2n)`` and ``H = X'X / n`` the expected loss of mixout is again quadratic, with minimum

    w* = (H + p/(1-p) diag H)^-1 (X'y / n + p/(1-p) (diag H) u).

The gradient's expectation is linear in w, so the stationary mean of SGD with a constant step is w*. The paper shows the
fitted lines; the closed form is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mixout.ops.mix import mix
from theory.claims import Claim, equals

TOPIC = "Figure 5: least squares with a random target (tolerance of sampled training: 5 standard errors)"
PS = (0.0, 0.3, 0.6, 0.9)
TRUE = (2.0, -1.0)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The line that one p leads to: by the closed form, and by training (mean and standard error over chains)."""

    p: float
    slope: float
    intercept: float
    trained_slope: float
    trained_intercept: float
    slope_error: float
    intercept_error: float
    target_slope: float
    target_intercept: float


def data(seed: int = 5, points: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Points (x, 1), (n, 2), x uniform in [-1, 2]; y around the true line; the random target u, (2,); float64."""
    draw = torch.Generator().manual_seed(seed)
    x = 3 * torch.rand(points, generator=draw, dtype=torch.float64) - 1
    inputs = torch.stack([x, torch.ones_like(x)], 1)
    noise = 0.5 * torch.randn(points, generator=draw, dtype=torch.float64)
    outputs = inputs @ torch.tensor(TRUE, dtype=torch.float64) + noise
    return inputs, outputs, 2 * torch.randn(2, generator=draw, dtype=torch.float64)


def closed_form(inputs: Tensor, outputs: Tensor, target: Tensor, p: float) -> Tensor:
    """The minimum w* of E L(Phi).

    Example:
        >>> bool(torch.dist(closed_form(*data(), 0.999999), data()[2]) < 1e-4)  # at the end only the target counts
        True
    """
    hessian, odds = inputs.T @ inputs / len(outputs), p / (1 - p)
    diagonal = odds * hessian.diagonal().diag()
    minimum: Tensor = torch.linalg.solve(hessian + diagonal, inputs.T @ outputs / len(outputs) + diagonal @ target)
    return minimum


def train(inputs: Tensor, outputs: Tensor, target: Tensor, p: float, *, steps: int, chains: int) -> Tensor:
    """Averaged iterates of SGD with sampled masks, from the target on, the first half not counted: (chains, 2).

    The step is a fraction of what the noise of the masks allows, so that no chain diverges at any p.
    """
    rate = 0.2 * (1 - p) / float(inputs.square().sum(1).mean())
    weight = target.repeat(chains, 1, 1).requires_grad_()
    anchor, draw = weight.detach().clone(), torch.Generator().manual_seed(0)
    total, skipped = torch.zeros(chains, 2, dtype=torch.float64), steps // 2
    for step in range(steps):
        mask = (torch.rand(chains, 1, 2, generator=draw, dtype=torch.float64) >= p).double()
        phi = mix(weight, anchor, mask, 1 / (1 - p))
        loss = (phi[:, 0] @ inputs.T - outputs).square().mean(1).sum() / 2
        (grad,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight -= rate * grad
            if step >= skipped:
                total += weight[:, 0]
    return total / (steps - skipped)


def fits(*, steps: int = 4000, chains: int = 128) -> Iterator[Fit]:
    """Closed form and training for every p of the figure."""
    given = data()
    for p in PS:
        trained = train(*given, p, steps=steps, chains=chains)
        numbers = [closed_form(*given, p), trained.mean(0), trained.std(0) / chains**0.5, given[2]]
        names = ("{}", "trained_{}", "{}_error", "target_{}")
        yield Fit(
            p=p,
            **{
                name.format(part): float(value[place])
                for name, value in zip(names, numbers, strict=True)
                for place, part in enumerate(("slope", "intercept"))
            },
        )


def claims(found: list[Fit]) -> Iterator[Claim]:
    """That training finds the closed form, that p = 0 is least squares, and that the line turns to the target's."""
    inputs, outputs, _ = data()
    ordinary = float(torch.linalg.lstsq(inputs, outputs[:, None]).solution[0, 0])
    yield equals(TOPIC, "closed form: the slope of ordinary least squares", 0.0, ordinary, found[0].slope)
    before = float("inf")
    for fit in found:
        for name in ("slope", "intercept"):
            yield Claim(
                topic=TOPIC, statement=f"training with sampled masks: {name} of the closed form", p=fit.p,
                expected=getattr(fit, name), found=getattr(fit, f"trained_{name}"),
                tolerance=5 * getattr(fit, f"{name}_error") + 1e-3,
            )  # fmt: skip
        away = ((fit.slope - fit.target_slope) ** 2 + (fit.intercept - fit.target_intercept) ** 2) ** 0.5
        if fit.p:
            yield Claim(
                topic=TOPIC, statement="distance of the line to the target's: below that of the p before", p=fit.p,
                relation="<=", expected=before, found=away,
            )  # fmt: skip
        before = away
