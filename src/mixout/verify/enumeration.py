r"""Exact expectations over masks: every mask there is, or a quadrature for masks that are continuous.

``E f(Phi) = sum_k weight_k f(Phi(w; u, M_k))`` with Phi from :func:`mixout.ops.mix.mix`, the operation that the layers
use. Nothing is sampled. The number of masks grows as 2 (or the number of nodes) to the number of units, so it is for a
dozen units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mixout.finetune.extras import needs
from mixout.masks import Unit, mask_shape
from mixout.ops.mix import mix

with needs("demo", "mixout verify"):
    import numpy as np

Law = Literal["bernoulli", "gaussian", "uniform"]
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Masks:
    """All values of a mask, and the probability of each.

    Args:
        values: M, (number, ...), float64.
        weights: (number,); they sum to 1.
    """

    values: Tensor
    weights: Tensor


def every_mask(shape: tuple[int, ...], p: float, *, law: Law = "bernoulli", nodes: int = 8) -> Masks:
    """All masks of independent units with mean 1-p and variance p(1-p).

    Args:
        shape: of the mask: one entry a unit.
        p: probability that a unit is replaced by the anchor, in (0, 1).
        law: ``bernoulli`` is enumerated; ``gaussian`` and ``uniform`` are integrated by the product of Gauss rules,
            exact for polynomials of M up to degree 2 ``nodes`` - 1 in each unit.
        nodes: of the rule, per unit.

    Example:
        >>> masks = every_mask((1, 2), 0.25)
        >>> masks.values.flatten(1).tolist(), masks.weights.tolist()
        ([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0.0625, 0.1875, 0.1875, 0.5625])
    """
    points, chances = _rule(p, law, nodes)
    units = math.prod(shape)
    # cartesian_prod of one list is that list, without the second dimension.
    values = torch.cartesian_prod(*[points] * units).reshape(-1, *shape)
    weights = torch.cartesian_prod(*[chances] * units).reshape(-1, units).prod(1)
    return Masks(values=values, weights=weights)


def _rule(p: float, law: Law, nodes: int) -> tuple[Tensor, Tensor]:
    """Values of one unit's M and their probabilities."""
    if law == "bernoulli":
        return torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([p, 1 - p], dtype=torch.float64)
    if law == "gaussian":
        points, chances = np.polynomial.hermite_e.hermegauss(nodes)
    else:
        points, chances = np.polynomial.legendre.leggauss(nodes)
        points = points * 3**0.5  # uniform with variance 1
    spread = (p * (1 - p)) ** 0.5
    return torch.from_numpy(1 - p + spread * points), torch.from_numpy(chances / chances.sum())


def expectation(
    loss: Loss,
    weight: Tensor,
    anchor: Tensor,
    p: float,
    *,
    unit: Unit = "input",
    law: Law = "bernoulli",
    nodes: int = 8,
) -> float:
    r"""E L(Phi) over every mask of one weight.

    Args:
        loss: takes (number, out, in), returns (number,).
        weight: w, (out, in), float64.
        anchor: u, like ``weight``.
        p: probability that a unit is replaced by the anchor, in (0, 1).
        unit: what shares a coin.
        law: of M; see :func:`every_mask`.
        nodes: see :func:`every_mask`.

    Example:
        >>> w, u = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
        >>> expectation(lambda phi: phi.sum((1, 2)), w, u, 0.5)  # E Phi = w
        2.0
    """
    masks = every_mask(mask_shape(tuple(weight.shape), unit), p, law=law, nodes=nodes)
    phi = mix(weight, anchor, masks.values, 1 / (1 - p))
    return float(masks.weights @ loss(phi))
