"""Interleaved pairs: base, variant, variant, base, ... in one process, and the ratio of each pair.

A machine's speed drifts (clocks, other processes). The two runs of a pair see nearly the same machine, and the order
changes from pair to pair, so that a steady drift cancels. Reported are the median and the quartiles of the ratios.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Run = Callable[[], object]
Clock = Callable[[Run], float]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Ratios of variant to base (median, lower and upper quartile), their number, and median seconds of both."""

    ratio: float
    low: float
    high: float
    pairs: int
    base: float
    variant: float

    def columns(self, base: str) -> dict[str, str | int]:
        """For a table; times are in milliseconds, and that of the base is called after it.

        Example:
            >>> compare([0.25], [0.125]).columns("plain")
            {'ratio': '0.500', 'low': '0.500', 'high': '0.500', 'pairs': 1, 'plain_ms': '250.00', 'ms': '125.00'}
        """
        ratios = {name: f"{getattr(self, name):.3f}" for name in ("ratio", "low", "high")}
        times = {f"{base}_ms": f"{1e3 * self.base:.2f}", "ms": f"{1e3 * self.variant:.2f}"}
        return {**ratios, "pairs": self.pairs, **times}


def interleave(base: Run, variant: Run, *, pairs: int, warmup: int, clock: Clock) -> Paired:
    """Run both in turns, after ``warmup`` runs of each that are not timed, and compare.

    Raises:
        ValueError: if ``pairs`` is below 1 or ``warmup`` below 0.

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
    seconds: dict[Run, list[float]] = {base: [], variant: []}
    for pair in range(pairs):
        for run in (base, variant) if pair % 2 == 0 else (variant, base):
            seconds[run].append(clock(run))
    return compare(seconds[base], seconds[variant])


def compare(base: Sequence[float], variant: Sequence[float]) -> Paired:
    """The statistics of pairs that were timed.

    Example:
        >>> compare([1.0, 2.0, 4.0], [1.0, 1.0, 3.0])
        Paired(ratio=0.75, low=0.625, high=0.875, pairs=3, base=2.0, variant=1.0)
    """
    ratios = [v / b for b, v in zip(base, variant, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    medians = statistics.median(base), statistics.median(variant)
    return Paired(ratio=ratio, low=low, high=high, pairs=len(ratios), base=medians[0], variant=medians[1])


def clock_of(device: torch.device) -> Clock:
    """The clock for runs on ``device``; on a GPU until it is done."""
    return _device_seconds if device.type == "cuda" else _host_seconds


def process_seconds(run: Run) -> float:
    """The processor time of this process: what other processes do hardly changes it."""
    start = time.process_time()
    run()
    return time.process_time() - start


def release() -> None:
    """Give back the memory of models that are gone; their modules refer to each other in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
