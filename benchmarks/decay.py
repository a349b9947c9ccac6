"""What AnchorDecay adds to a training step, as a ratio to plain fine-tuning.

    python benchmarks/decay.py

Whole steps (forward, loss, backward, fused AdamW) in fp32 on one thread. Times are *process* times of interleaved pairs
with plain fine-tuning, every dropout off; the first row of each case is plain against itself, the noise. A decay reads
every decayed weight and its anchor once and writes the weight, embeddings included, whatever the batch: the fewer
tokens a step has, the more it weighs. ``costs-nothing`` shows what the host spends on it. Writes
``benchmarks/results/decay.csv``; about 5 minutes on a core of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import mixout
from models import CASES, COSTS_NOTHING, Case, build
from models import step as step_of
from pairs import Run, interleave, process_seconds
from table import Table

RESULTS = Path(__file__).parent / "results" / "decay.csv"
COLUMNS = ("case", "tokens", "method", "ratio", "low", "high", "pairs", "plain_ms", "ms", "load")
PLAIN = "dropout(0.0)"
METHODS = (PLAIN, "anchor_decay(radius=0.005)", "anchor_decay(1.0, selective=true)", "anchor_decay(weights)")
MINILM = CASES["minilm"]
# Pairs of each case.
CASES_AND_PAIRS = ((COSTS_NOTHING, 100), (MINILM, 30), (replace(MINILM, length=128), 12))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each method in each case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=float, default=1.0, help="multiply the number of pairs; default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="table to write; default: %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    table = Table(args.output)
    for case, pairs in CASES_AND_PAIRS:
        for method in METHODS:
            table.add(measured(case, method, max(2, round(pairs * args.pairs))))
    print(table.text(COLUMNS))


def measured(case: Case, method: str, pairs: int) -> dict[str, str | int | float]:
    """The row of one method."""
    timed = interleave(step(case, PLAIN), step(case, method), pairs=pairs, warmup=2, clock=process_seconds)
    return {"case": case.name, "tokens": case.tokens, "method": method, **timed.columns("plain")}


def step(case: Case, method: str) -> Run:
    """A training step of the model of ``case``; decays beside ``Dropout(0)``, as the plain one."""
    case = replace(case, precision="fp32")
    model = build(case, "cpu")
    chosen: list[mixout.Method | str] = [PLAIN] if method == PLAIN else [PLAIN, decay(method, model)]
    return step_of(mixout.apply_(model, chosen), case, torch.device("cpu"))


def decay(method: str, model: nn.Module) -> mixout.Method | str:
    """The method; weights are random numbers, since time does not care."""
    if method != "anchor_decay(weights)":
        return method
    weights = {name: torch.rand_like(p) for name, p in model.named_parameters() if p.dim() >= 2}
    return mixout.AnchorDecay(radius=0.005, weights=weights)


if __name__ == "__main__":
    main()
