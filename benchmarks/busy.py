"""Does a training step on a GPU wait for the host? BERT-large in bfloat16: what each form of the linear takes of both.

    python benchmarks/busy.py

Ten steps of each form, after three: milliseconds until the host has launched a step, until the GPU has done it, and how
long the GPU's kernels ran in it (torch's profiler, two steps). Where the first two are equal and the third is smaller,
the GPU waits. Not in pairs: read differences of a few percent of the first two as noise, the third is steady. Writes
``benchmarks/results/busy-cuda.csv``.
"""

from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mixout import functional
from mixout.bench.pairs import Run
from mixout.bench.plan import plan
from mixout.bench.runs import model_of, release, train_run
from mixout.bench.table import environment
from mixout.bench.variants import PLAIN, Variant

RESULTS = Path(__file__).parent / "results" / "busy-cuda.csv"
# What a thin gradient must spare for a form to be taken.
FORMS = {"plain": 0.0, "native": float("inf"), "sparse": 0.0}
STEPS = 10


def main() -> None:
    """Measure and write the table."""
    rows: list[dict[str, Any]] = []
    chosen = plan(names=["bert-large"])
    for batch in (32, 128):
        case = replace(chosen.cases[0], batch=batch)
        for form, spared in FORMS.items():
            functional.SPARSE_ON_GPU_FROM = spared
            variant = PLAIN if form == "plain" else Variant(method="mixout", p=0.9)
            step = train_run(model_of(case, variant, chosen.device), case, chosen)
            launched, done = times(step)
            row = {"form": form, "tokens": case.tokens, "launched_ms": launched, "done_ms": done, "busy_ms": busy(step)}
            rows.append(row | environment())
            print({name: row[name] for name in list(row)[:5]})
            del step
            release()
    with RESULTS.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def times(step: Run) -> tuple[float, float]:
    """Milliseconds a step until it is launched, and until it is done."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    launched = time.perf_counter()
    torch.cuda.synchronize()
    done = time.perf_counter()
    return tuple(round(1e3 * (end - began) / STEPS, 1) for end in (launched, done))


def busy(step: Run) -> float:
    """Milliseconds a step in which kernels run."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(2):
            step()
        torch.cuda.synchronize()
    kernels = [event for event in seen.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    return round(sum(event.self_device_time_total for event in kernels) / 2e3, 1)


if __name__ == "__main__":
    main()
