r"""Claims about small weights, by the exact expectation over masks: every mask there is, or a quadrature.

With ``Phi = u + M/(1-p) (w - u)`` from the operation that the layers use, and d_i = w - u in the column of unit i:

- Theorem 1, Corollary 1.1: ``E L(Phi) >= L(w) + m p / (2 (1-p)) ||w - u||^2`` for L of strong convexity m, with
  equality where the Hessian is m I. With any constant Hessian H the gap is ``p / (2 (1-p)) sum_i d_i' H d_i``,
  whatever the law of the masks, given its mean and variance.
- Supplement B: where only some layers or units are mixed, the same with their coordinates alone.
- mixout (one mask entry per input neuron) less mixconnect (one per weight) is the correlations within a unit,
  ``p / (2 (1-p)) sum over units, i != j in the unit, of d_i H_ij d_j``, of either sign.
- The gradient of E L(Phi) is ``grad L(w) + p/(1-p) B d``, B the blocks of H on the units: the second part is the pull.
  The paper's convention has (1-p) times that. Neither a mixed forward with a dense gradient nor a masked gradient alone
  has a pull.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mixout.masks import Unit, mask_shape
from mixout.ops.mix import mix
from mixout.ops.reference import Gradient
from theory.claims import Claim, at_least, equals

Law = Literal["bernoulli", "gaussian", "uniform"]
OUT, IN, RIDGE = 2, 4, 0.3
PS = (0.3, 0.9)
THEOREM = "Theorem 1, Corollary 1.1: E L(Phi) - L(w), every mask enumerated"
PARTIAL = "Supplement B: only a part is mixed"
UNITS = "mixout against mixconnect on a quadratic"
GRADIENT = "Expected gradient on a quadratic: pull along w - u beyond grad L(w)"


def every_mask(shape: tuple[int, ...], p: float, law: Law = "bernoulli", nodes: int = 8) -> tuple[Tensor, Tensor]:
    """All masks of independent units with mean 1-p and variance p(1-p), (number, *shape), and their probabilities.

    Bernoulli masks are enumerated. The others are integrated by Gauss rules, exact for polynomials of degree up to
    2 ``nodes`` - 1 in each unit.

    Example:
        >>> values, chances = every_mask((1, 2), 0.25)
        >>> values.flatten(1).tolist(), chances.tolist()
        ([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0.0625, 0.1875, 0.1875, 0.5625])
    """
    if law == "bernoulli":
        points, chances = torch.tensor([[0.0, 1.0], [p, 1 - p]], dtype=torch.float64)
    else:
        gauss = np.polynomial.hermite_e.hermegauss if law == "gaussian" else np.polynomial.legendre.leggauss
        standard, weights = map(torch.from_numpy, gauss(nodes))
        deviation = (p * (1 - p)) ** 0.5 * (3**0.5 if law == "uniform" else 1)
        points, chances = 1 - p + deviation * standard, weights / weights.sum()
    units = math.prod(shape)
    values = torch.cartesian_prod(*[points] * units).reshape(-1, *shape)
    return values, torch.cartesian_prod(*[chances] * units).reshape(-1, units).prod(1)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A weight w, its anchor u and a center c, all (OUT, IN), with the losses' data; float64, from one seed.

    The Hessian has a condition number of about 10 and strong correlations.
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

    def quadratic(self, phi: Tensor, hessian: Tensor | None = None) -> Tensor:
        """1/2 (phi - c)' H (phi - c) of each of (number, OUT, IN) weights."""
        away = (phi - self.center).flatten(1)
        return 0.5 * torch.einsum("ni,ij,nj->n", away, self.hessian if hessian is None else hessian, away)

    def logistic(self, phi: Tensor) -> Tensor:
        """Cross entropy of linear classifiers and RIDGE/2 ||phi||^2, so strongly convex with constant RIDGE."""
        scores = torch.einsum("bi,noi->nob", self.features, phi)
        entropy = torch.nn.functional.cross_entropy(scores, self.labels.expand(len(phi), -1), reduction="none").mean(1)
        return entropy + RIDGE / 2 * phi.flatten(1).square().sum(1)

    def gap(
        self, loss: Callable[[Tensor], Tensor], p: float, unit: Unit = "input", law: Law = "bernoulli", nodes: int = 3
    ) -> float:
        """E L(Phi) - L(w); three nodes are exact for a quadratic."""
        masks, chances = every_mask(mask_shape((OUT, IN), unit), p, law, nodes)
        phi = mix(self.weight, self.anchor, masks, 1 / (1 - p))
        return float(chances @ loss(phi) - loss(self.weight[None])[0])


def problem(seed: int = 0) -> Problem:
    """Draw one."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    root, size = normal(OUT * IN, OUT * IN), OUT * IN
    return Problem(
        weight=normal(OUT, IN),
        anchor=normal(OUT, IN),
        center=normal(OUT, IN),
        hessian=root @ root.T / size + 0.3 * torch.eye(size, dtype=torch.float64),
        features=normal(20, IN),
        labels=torch.randint(OUT, (20,), generator=draw),
    )


def blocks(hessian: Tensor) -> Tensor:
    """``hessian`` of a flattened (OUT, IN) weight with the products of different columns set to 0."""
    column = torch.arange(OUT * IN) % IN
    return hessian * (column[:, None] == column[None, :])


def claims(ps: tuple[float, ...] = PS) -> Iterator[Claim]:
    """All of this module."""
    given = problem()
    for p in ps:
        for part in (theorem, partial, units, gradients):
            yield from part(given, p)


def theorem(given: Problem, p: float) -> Iterator[Claim]:
    """Equality, the exact gap and the bound, for both units and other laws of the masks."""
    curvature, flat, odds = 1.7, given.delta.flatten(), p / (2 * (1 - p))
    distance = odds * float(flat @ flat)
    isotropic = curvature * torch.eye(OUT * IN, dtype=torch.float64)
    names: tuple[tuple[str, Unit], ...] = (("mixout", "input"), ("mixconnect", "element"))
    for name, unit in names:
        gap = given.gap(lambda phi: given.quadratic(phi, isotropic), p, unit)
        yield equals(THEOREM, f"{name}, Hessian m I: equality with the bound", p, curvature * distance, gap)
    exact = odds * float(flat @ blocks(given.hessian) @ flat)
    gap, smallest = given.gap(given.quadratic, p), float(torch.linalg.eigvalsh(given.hessian)[0])
    yield equals(THEOREM, "mixout, Hessian H: p/(2(1-p)) sum over units of d'Hd", p, exact, gap)
    yield at_least(THEOREM, "mixout, Hessian H: not below the bound", p, smallest * distance, gap)
    for name, unit in names:
        gap = given.gap(given.logistic, p, unit)
        yield at_least(THEOREM, f"{name}, logistic with L2: not below the bound", p, RIDGE * distance, gap)
    laws: tuple[Law, ...] = ("gaussian", "uniform")
    for law in laws:
        gap = given.gap(given.quadratic, p, law=law)
        yield equals(THEOREM, f"mixout with {law} masks, Hessian H: the same gap", p, exact, gap)
        gap = given.gap(given.logistic, p, law=law, nodes=10)
        yield at_least(THEOREM, f"{law} masks, logistic with L2: not below the bound", p, RIDGE * distance, gap)


def partial(given: Problem, p: float) -> Iterator[Claim]:
    """Two columns are mixed, or the first row, as if each row were a layer; the loss couples them with the rest."""
    for what, rows, columns in (("two columns of four", OUT, 2), ("one layer of two", 1, IN)):
        mixed = torch.zeros(OUT, IN, dtype=torch.float64)
        mixed[:rows, :columns] = 1
        masks, chances = every_mask((1, columns), p)
        masks = torch.cat([masks, torch.ones(len(masks), 1, IN - columns, dtype=torch.float64)], 2)
        phi = torch.where(mixed.bool(), mix(given.weight, given.anchor, masks, 1 / (1 - p)), given.weight)
        gap = float(chances @ given.quadratic(phi) - given.quadratic(given.weight[None])[0])
        flat, odds = (given.delta * mixed).flatten(), p / (2 * (1 - p))
        exact = odds * float(flat @ blocks(given.hessian) @ flat)
        bound = odds * float(torch.linalg.eigvalsh(given.hessian)[0]) * float(flat @ flat)
        yield equals(PARTIAL, f"{what} mixed: p/(2(1-p)) sum over mixed units of d'Hd", p, exact, gap)
        yield at_least(PARTIAL, f"{what} mixed: not below the bound on those coordinates", p, bound, gap)


def units(given: Problem, p: float) -> Iterator[Claim]:
    """What one mask entry per neuron adds to one per weight."""
    flat, odds = given.delta.flatten(), p / (2 * (1 - p))
    own = odds * float(flat.square() @ given.hessian.diagonal())
    across = odds * float(flat @ blocks(given.hessian) @ flat) - own
    by_column, by_weight = given.gap(given.quadratic, p), given.gap(given.quadratic, p, "element")
    yield equals(UNITS, "mixconnect: p/(2(1-p)) d' diag(H) d", p, own, by_weight)
    yield equals(UNITS, "mixout - mixconnect: the within-unit correlation term", p, across, by_column - by_weight)


def gradients(given: Problem, p: float) -> Iterator[Claim]:
    """The pull of each form of the gradient, projected on w - u; that of ``exact`` in every coordinate."""
    flat = given.delta.flatten()
    plain = (given.hessian @ (given.weight - given.center).flatten()).view(OUT, IN)
    pull = p / (1 - p) * (blocks(given.hessian) @ flat).view(OUT, IN)
    exact, none = expected_gradient(given, p, "exact"), torch.zeros(OUT, IN, dtype=torch.float64)
    error = float((exact - plain - pull).abs().max())
    yield equals(GRADIENT, "exact: largest error of a coordinate against grad E L(Phi)", p, 0.0, error)
    for statement, expected, found in (
        ("exact: p/(1-p) sum over units of d'Hd", pull, exact - plain),
        ("paper's: (1-p) times the exact gradient", (1 - p) * (plain + pull), expected_gradient(given, p, "paper")),
        ("mixed forward, dense gradient: none", none, expected_gradient(given, p, "dense") - plain),
        ("gradient mask alone: none", none, expected_gradient(given, p, None) - plain),
    ):
        along = [float((value * given.delta).sum()) for value in (expected, found)]
        yield equals(GRADIENT, statement, p, *along)


def expected_gradient(given: Problem, p: float, gradient: Gradient | None) -> Tensor:
    """E of the gradient that autograd finds; None is the gradient mask, whose forward is w."""
    total = torch.zeros(OUT, IN, dtype=torch.float64)
    for mask, chance in zip(*every_mask((1, IN), p), strict=True):
        weight = given.weight.clone().requires_grad_()
        phi = mix(weight, given.anchor if gradient else given.weight, mask, 1 / (1 - p), gradient=gradient or "exact")
        (found,) = torch.autograd.grad(given.quadratic(phi[None]).sum(), weight, materialize_grads=True)
        total += chance * found
    return total
