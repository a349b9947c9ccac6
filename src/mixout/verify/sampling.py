r"""What ``mixout.apply_`` draws while training has the law that the other claims enumerate.

A layer without bias shows its Phi when it is given the identity: ``layer(I) = Phi^T``. The mean of L(Phi) over sampled
passes of an applied model is compared with the enumerated expectation, in standard errors.
"""

from __future__ import annotations

import torch
from torch import nn

import mixout
from mixout.verify.claim import Claim
from mixout.verify.enumeration import expectation
from mixout.verify.losses import IN, OUT, problem, quadratic

TOPIC = "Sampled passes of apply_ against the enumeration (tolerance: 4.5 standard errors)"
_METHODS = (("mixout", "input"), ("mixconnect", "element"))
_ERRORS = 4.5  # both tails of a normal law beyond it hold 7e-6


def claims(ps: tuple[float, ...] = (0.3, 0.9), *, passes: int = 2000, seed: int = 0) -> list[Claim]:
    """One claim for each method and p.

    Args:
        ps: probabilities that a unit is replaced by the anchor.
        passes: forward passes to average over.
        seed: of the masks.
    """
    given = problem()
    found = []
    for p in ps:
        for name, unit in _METHODS:
            layer = nn.Linear(IN, OUT, bias=False, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(given.weight)
            method = mixout.Mixout(p) if unit == "input" else mixout.Mixconnect(p)
            mixout.apply_(layer, method, anchor={"weight": given.anchor}, seed=seed)
            with torch.no_grad():
                identity = torch.eye(IN, dtype=torch.float64)
                phi = torch.stack([layer(identity).T for _ in range(passes)])
            losses = quadratic(phi, given.center, given.hessian)
            expected = expectation(
                lambda values: quadratic(values, given.center, given.hessian), given.weight, given.anchor, p,
                unit="input" if unit == "input" else "element",
            )  # fmt: skip
            found.append(
                Claim(
                    topic=TOPIC,
                    statement=f"{name}: mean of L(Phi) over {passes} passes",
                    p=p,
                    relation="=",
                    expected=expected,
                    found=float(losses.mean()),
                    tolerance=_ERRORS * float(losses.std()) / passes**0.5,
                )
            )
    return found
