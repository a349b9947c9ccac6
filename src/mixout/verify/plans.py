"""How much to run: a short form for tests, one for two cores and minutes, and the paper's own. It runs nothing.

The paper's rates belong to the paper's 8,400 steps. The form for minutes has a twentieth of these steps and ten times
the rate, so that fine-tuning comes comparably far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mixout.errors import InputError
from mixout.verify import pull, transfer

Size = Literal["short", "minutes", "full"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the claims that sample or train are given.

    Args:
        passes: sampled forward passes of an applied model.
        steps: of least squares.
        chains: of least squares.
        transfer: section 4.
        pull: adaptivity.
    """

    passes: int
    steps: int
    chains: int
    transfer: transfer.Plan
    pull: pull.Plan


def plan(size: Size, *, mnist: bool, ps: Sequence[float] = ()) -> Plan:
    """The plan of that size.

    Args:
        size: ``short``: seconds. ``minutes``: minutes on two cores. ``full``: the paper's restarts, p, images and
            epochs; hours.
        mnist: whether the images are MNIST's, or the smaller ones of scikit-learn.
        ps: of section 4, beside 0; empty for the plan's own.

    Raises:
        InputError: if one of ``ps`` is not between 0 and 1.
    """
    if not all(0 < p < 1 for p in ps):
        raise InputError(f"expected every p between 0 and 1, got {', '.join(map(str, ps))}; 0 is run in any case")
    chosen = _plan(size, mnist=mnist)
    return replace(chosen, transfer=replace(chosen.transfer, ps=(0.0, *sorted(set(ps))))) if ps else chosen


def _plan(size: Size, *, mnist: bool) -> Plan:
    if size == "short":
        return Plan(passes=300, steps=800, chains=48, transfer=_short(mnist), pull=_pull(_short(mnist), (60, 150), 80))
    if not mnist:
        chosen = _digits(size)
        return Plan(
            passes=2000, steps=3000, chains=128, transfer=chosen, pull=_pull(chosen, (10, 30, 60, 120, 240, 360), 200)
        )
    chosen = _mnist(size)
    checkpoints = (10, 30, 60, 120, 240, 370) if size == "minutes" else (10, 30, 100, 300, 1000, 4000)
    return Plan(passes=2000, steps=3000, chains=128, transfer=chosen, pull=_pull(chosen, checkpoints, 200))


def _short(mnist: bool) -> transfer.Plan:
    return transfer.Plan(
        hidden=(24, 16), ps=(0.0, 0.8), restarts=3, pretrain_rate=5e-3, pretrain_epochs=1 if mnist else 10,
        train_size=600, rate=1e-3, sgd_rate=0.01, epochs=10,
    )  # fmt: skip


def _digits(size: Size) -> transfer.Plan:
    ps = (0.0, 0.2, 0.4, 0.6, 0.8) if size == "minutes" else tuple(step / 10 for step in range(9))
    return transfer.Plan(
        hidden=(100, 50), ps=ps, restarts=10, pretrain_rate=2e-3, pretrain_epochs=20, train_size=None, rate=5e-4,
        sgd_rate=0.01, epochs=20,
    )  # fmt: skip


def _mnist(size: Size) -> transfer.Plan:
    if size == "full":
        return transfer.Plan(
            hidden=(300, 100), ps=tuple(step / 10 for step in range(9)), restarts=10, pretrain_rate=1e-4,
            pretrain_epochs=5, train_size=54_000, rate=5e-5, sgd_rate=1e-3, epochs=5,
        )  # fmt: skip
    return transfer.Plan(
        hidden=(300, 100), ps=(0.0, 0.2, 0.4, 0.6, 0.8), restarts=10, pretrain_rate=3e-4, pretrain_epochs=3,
        train_size=6000, rate=5e-4, sgd_rate=0.01, epochs=2,
    )  # fmt: skip


def _pull(chosen: transfer.Plan, checkpoints: tuple[int, ...], number: int) -> pull.Plan:
    return pull.Plan(
        rate=chosen.rate, epochs=chosen.epochs, train_size=chosen.train_size, checkpoints=checkpoints, images=200,
        masks=number, signs=number,
    )  # fmt: skip
