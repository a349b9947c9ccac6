r"""What one coin per neuron adds to one coin per weight: the within-unit correlations of the Hessian, nothing else.

On a quadratic ``mixconnect: p/(2(1-p)) sum_i d_i H_ii d_i`` and
``mixout - mixconnect = p/(2(1-p)) sum over units, i != j in the unit, d_i H_ij d_j``, of either sign. The lower bound
of Theorem 1 does not see the difference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixout.verify.claim import Claim, equals
from mixout.verify.enumeration import expectation
from mixout.verify.losses import problem, quadratic

TOPIC = "mixout against mixconnect on a quadratic"


def claims(ps: tuple[float, ...] = (0.3, 0.9)) -> list[Claim]:
    """Two claims for each p."""
    given = problem()
    flat = given.delta.flatten()
    own = float(flat.square() @ given.hessian.diagonal())
    # Column of each flattened weight: two weights share a coin where it is equal.
    column = torch.arange(given.delta.numel()) % given.delta.shape[1]
    shared = (column[:, None] == column[None, :]).fill_diagonal_(False)
    across = float(flat @ (given.hessian * shared) @ flat)

    def loss(phi: Tensor) -> Tensor:
        return quadratic(phi, given.center, given.hessian)

    here = float(loss(given.weight[None]))
    found = []
    for p in ps:
        by_column = expectation(loss, given.weight, given.anchor, p, unit="input") - here
        by_weight = expectation(loss, given.weight, given.anchor, p, unit="element") - here
        factor = p / (2 * (1 - p))
        found += [
            equals(TOPIC, "mixconnect: p/(2(1-p)) d' diag(H) d", p, factor * own, by_weight),
            equals(
                TOPIC, "mixout - mixconnect: the within-unit correlation term", p, factor * across,
                by_column - by_weight,
            ),
        ]  # fmt: skip
    return found
