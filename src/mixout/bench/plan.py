"""What to measure and how thoroughly: the choices that the command line makes, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from mixout.bench.cases import CASES, Case, find
from mixout.errors import InputError

Report = Callable[[str], None]

PAIRS = 10
QUICK_PAIRS = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One benchmark.

    Args:
        cases: models to measure; the first also with smaller batches.
        pairs: timed pairs of each comparison.
        quick: fewer comparisons.
        compile: measure everything under ``torch.compile``, plain fine-tuning too.
        device: where.

    Raises:
        InputError: if ``pairs`` is not positive.
    """

    cases: tuple[Case, ...]
    pairs: int
    quick: bool
    compile: bool
    device: torch.device

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise InputError(f"expected pairs >= 1, got {self.pairs}")

    @property
    def warmup(self) -> int:
        """Runs that are not timed: the optimizer's state is made in the first, a graph is compiled in the first two."""
        return 3 if self.compile else 1 if self.quick else 2

    @property
    def smaller(self) -> tuple[Case, ...]:
        """The first case with smaller batches, the smallest first."""
        first = self.cases[0]
        divisors = (4,) if self.quick else (8, 4, 2)
        batches = {first.batch // divisor for divisor in divisors} - {0, first.batch}
        return tuple(replace(first, batch=batch) for batch in sorted(batches))


def plan(*, names: Sequence[str] = (), pairs: int | None = None, quick: bool = False, compile: bool = False) -> Plan:
    """The plan for this machine.

    Args:
        names: of cases; by default those meant for GPUs where there is one, else those meant for CPUs.
        pairs: timed pairs of each comparison; by default ``PAIRS``, or ``QUICK_PAIRS``.
        quick: fewer comparisons, and by default only the smallest case.
        compile: measure under ``torch.compile``.

    Raises:
        InputError: if a name is unknown or ``pairs`` is not positive.
    """
    gpu = torch.cuda.is_available()
    cases = tuple(map(find, dict.fromkeys(names))) or tuple(case for case in CASES.values() if case.gpu == gpu)
    if quick and not names:
        cases = (find("minilm"),)
    return Plan(
        cases=cases,
        pairs=(QUICK_PAIRS if quick else PAIRS) if pairs is None else pairs,
        quick=quick,
        compile=compile,
        device=torch.device("cuda" if gpu else "cpu"),
    )
