"""All claims in order, with the rows behind them. It prints nothing and draws nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mixout.verify import correlation, gradients, least_squares, partial, pull, sampling, theorem, transfer
from mixout.verify.claim import Claim
from mixout.verify.digits import Domains
from mixout.verify.plans import Plan


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found.

    Args:
        data: name of the images.
        claims: all of them.
        fits: lines of least squares.
        points: measured pulls.
        cells: of section 4.
    """

    data: str
    claims: list[Claim]
    fits: list[least_squares.Fit]
    points: list[pull.Point]
    cells: list[transfer.Cell]


def verify(data: Domains, plan: Plan, report: Callable[[str], None]) -> Findings:
    """Check every claim.

    Args:
        data: images for adaptivity and section 4.
        plan: how much to run.
        report: is told what goes on.
    """
    report("theorem, correlation, Supplement B, gradients: every mask enumerated")
    claims = [*theorem.claims(), *correlation.claims(), *partial.claims(), *gradients.claims()]
    report("sampled passes of apply_")
    claims += sampling.claims(passes=plan.passes)
    report("least squares with a random target")
    fits = least_squares.fits(steps=plan.steps, chains=plan.chains)
    report(f"pretraining: {data.name}")
    start = transfer.pretrain(data, plan.transfer)
    points = pull.points(data, start, plan.pull, report)
    cells = list(transfer.cells(data, start, plan.transfer, report))
    claims += [*least_squares.claims(fits), *pull.claims(points), *transfer.claims(cells)]
    return Findings(data=data.name, claims=claims, fits=fits, points=points, cells=cells)
