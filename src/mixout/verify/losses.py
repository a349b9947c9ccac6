r"""Strongly convex losses of one small weight, for which expectations can be enumerated.

Quadratic: ``L(w) = 1/2 (w - c)^T H (w - c)`` over the flattened weight. Logistic: cross entropy of a linear classifier
plus ``(ridge/2) ||w||^2``, which is strongly convex with constant ``ridge``. No loss here is that of a network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OUT, IN = 2, 4
RIDGE = 0.3


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A weight, its anchor and data, drawn from one seed; float64.

    Args:
        weight: w, (OUT, IN).
        anchor: u, (OUT, IN).
        center: c, the quadratic's minimum, (OUT, IN).
        hessian: H, symmetric positive definite, over the flattened weight.
        features: of the logistic loss, (examples, IN).
        labels: classes from 0 to OUT - 1, (examples,).
    """

    weight: Tensor
    anchor: Tensor
    center: Tensor
    hessian: Tensor
    features: Tensor
    labels: Tensor

    @property
    def delta(self) -> Tensor:
        """W - u."""
        return self.weight - self.anchor


def problem(seed: int = 0) -> Problem:
    """Draw one; H has condition number of about 10 and strong correlations."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    size = OUT * IN
    root = normal(size, size)
    return Problem(
        weight=normal(OUT, IN),
        anchor=normal(OUT, IN),
        center=normal(OUT, IN),
        hessian=root @ root.T / size + 0.3 * torch.eye(size, dtype=torch.float64),
        features=normal(20, IN),
        labels=torch.randint(OUT, (20,), generator=draw),
    )


def quadratic(phi: Tensor, center: Tensor, hessian: Tensor) -> Tensor:
    """The quadratic loss of each of (number, out, in) weights: (number,).

    Example:
        >>> one = torch.ones(1, 1, 2, dtype=torch.float64)
        >>> quadratic(one, torch.zeros(1, 2), 3 * torch.eye(2, dtype=torch.float64)).item()
        3.0
    """
    away = (phi - center).flatten(1)
    return 0.5 * torch.einsum("ni,ij,nj->n", away, hessian, away)


def logistic(phi: Tensor, features: Tensor, labels: Tensor, ridge: float = RIDGE) -> Tensor:
    """Cross entropy plus ridge of each of (number, classes, in) classifiers: (number,)."""
    scores = torch.einsum("bi,noi->nob", features, phi)
    entropy = torch.nn.functional.cross_entropy(scores, labels.expand(len(phi), -1), reduction="none").mean(1)
    return entropy + ridge / 2 * phi.flatten(1).square().sum(1)


def block_sum(delta: Tensor, hessian: Tensor) -> float:
    r"""Sum over input units of d^T H d, d being ``delta`` (out, in) restricted to the unit's column."""
    out, inputs = delta.shape
    total = 0.0
    for unit in range(inputs):
        part = torch.zeros_like(delta)
        part[:, unit] = delta[:, unit]
        total += float(part.reshape(out * inputs) @ hessian @ part.reshape(out * inputs))
    return total
