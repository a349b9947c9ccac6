"""Interleaved pairs: base, variant, variant, base, ... in one process, and the ratio of each pair.

A machine's speed drifts (clocks, other processes); the two runs of a pair see nearly the same machine, and the order
changes from pair to pair, so that a steady drift cancels. Reported are the median and the quartiles of the ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Run = Callable[[], object]
Clock = Callable[[Run], float]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """What the pairs say.

    Args:
        ratio: median of the pairs' ratios, variant over base.
        low: their lower quartile.
        high: their upper quartile.
        pairs: how many.
        base: median seconds of the base.
        variant: median seconds of the variant.
    """

    ratio: float
    low: float
    high: float
    pairs: int
    base: float
    variant: float


def interleave(base: Run, variant: Run, *, pairs: int, warmup: int, clock: Clock) -> Paired:
    """Run both alternately and compare.

    Args:
        base: what the ratio is to.
        variant: what is measured.
        pairs: number of timed pairs, at least 1.
        warmup: runs of each before that, not timed.
        clock: seconds that a run takes.

    Raises:
        ValueError: if ``pairs`` or ``warmup`` is out of its range.

    Example:
        >>> seconds = {"plain": 2.0, "mixed": 1.5}
        >>> interleave(lambda: "plain", lambda: "mixed", pairs=4, warmup=0, clock=lambda run: seconds[run()]).ratio
        0.75
    """
    if pairs < 1 or warmup < 0:
        raise ValueError(f"expected pairs >= 1 and warmup >= 0, got pairs {pairs} and warmup {warmup}")
    for _ in range(warmup):
        base()
        variant()
    of_base, of_variant = [], []
    for pair in range(pairs):
        if pair % 2 == 0:
            of_base.append(clock(base))
            of_variant.append(clock(variant))
        else:
            of_variant.append(clock(variant))
            of_base.append(clock(base))
    return compare(of_base, of_variant)


def compare(base: Sequence[float], variant: Sequence[float]) -> Paired:
    """The statistics of pairs that were timed, of equal number.

    Example:
        >>> compare([1.0, 2.0, 4.0], [1.0, 1.0, 3.0])
        Paired(ratio=0.75, low=0.625, high=0.875, pairs=3, base=2.0, variant=1.0)
    """
    ratios = [v / b for b, v in zip(base, variant, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Paired(
        ratio=ratio,
        low=low,
        high=high,
        pairs=len(ratios),
        base=statistics.median(base),
        variant=statistics.median(variant),
    )


def clock_of(device: torch.device) -> Clock:
    """The clock for runs on ``device``."""
    return _device_seconds if device.type == "cuda" else _host_seconds


def _host_seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _device_seconds(run: Run) -> float:
    """Between two events of the GPU's stream, waiting for the host included: that is what training takes."""
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000
