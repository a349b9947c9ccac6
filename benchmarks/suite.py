"""A benchmark in progress: where, with which cases, until when; every row that is measured, failed or left out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from models import Case, Setting, build, step
from pairs import Clock, Run, clock_of, interleave, release
from table import Row, Table

COLUMNS = ("part", "what", "case", "tokens", "precision", "method", "ratio", "low", "high", "pairs", "plain", "value",
           "unit", "floor", "note")  # fmt: skip


@dataclass(kw_only=True)
class Bench:
    """Where to measure, which cases, how often, until when, and what is known so far.

    Args:
        table: takes the rows.
        cases: models to measure.
        device: on which.
        pairs: timed pairs of each comparison.
        ends: on ``time.monotonic()``.
        dry: tiny models and one pair.
        clock: what steps are timed by; None for that of the device.
    """

    table: Table
    cases: list[Case]
    device: torch.device
    pairs: int
    ends: float
    dry: bool = False
    clock: Clock | None = None

    def add(
        self, part: str, case: Case, setting: Setting, measure: Callable[..., dict[str, Row]], *args: object
    ) -> None:
        """Add the rows that ``measure(*args)`` returns by what they are, or one row of why there are none."""
        row: Row = dict.fromkeys(COLUMNS, "") | {"part": part, "case": case.name, "tokens": case.tokens}
        row |= {"precision": case.precision, "method": str(setting)}
        try:
            found = measure(*args) if time.monotonic() < self.ends else {"": {"note": "not measured: no time left"}}
        except torch.OutOfMemoryError:
            found = {"": {"note": "out of memory"}}
        except Exception as error:  # one row must not cost the others: time on a GPU is scarce
            found = {"": {"note": f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"}}
        for what, values in found.items():
            self.table.add(row | {"what": what} | values)
            shown = [value for value in (row | {"what": what} | values).values() if value != ""]
            print(*(f"{value:.4g}" if isinstance(value, float) else value for value in shown), flush=True)
        release()

    def step(self, case: Case, setting: Setting) -> Run:
        """A step of a model of its own."""
        return step(setting.apply_(build(case, self.device)), case, self.device, train=not setting.evaluate)

    def timed(self, plain: Run, run: Run, *, clock: Clock | None = None) -> Row:
        """The columns of a comparison, in seconds."""
        clock, warmup = clock or self.clock or clock_of(self.device), 1 if self.dry else 3
        found = interleave(plain, run, pairs=self.pairs, warmup=warmup, clock=clock)
        row: Row = {"ratio": found.ratio, "low": found.low, "high": found.high, "pairs": found.pairs}
        return row | {"plain": found.base, "value": found.variant, "unit": "s"}
