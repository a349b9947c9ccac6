"""What a step of MoFO costs, as a ratio to one of torch's AdamW: as built by default, and fused.

    python benchmarks/mofo.py

The optimizer's step alone, on the gradients of one batch, in fp32 on one thread; process times of interleaved pairs,
AdamW against itself first, the noise. Writes ``benchmarks/results/mofo.csv``; a minute on a core of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from mixout.optim import MoFO
from models import CASES, build
from pairs import interleave, process_seconds
from table import Table

RESULTS = Path(__file__).parent / "results" / "mofo.csv"
COLUMNS = ("model", "optimizer", "against", "ratio", "low", "high", "pairs", "adamw_ms", "ms", "load")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="pairs of steps; default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="table to write; default: %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    table = Table(args.output)
    for against, name in (("adamw", "adamw"), ("adamw", "mofo"), ("fused adamw", "mofo")):
        base, variant = (optimizer(kind, build(CASES["minilm"], "cpu")) for kind in (against, name))
        timed = interleave(base.step, variant.step, pairs=args.pairs, warmup=3, clock=process_seconds)
        table.add({"model": "minilm", "optimizer": name, "against": against, **timed.columns("adamw")})
    print(table.text(COLUMNS))


def optimizer(kind: str, model: nn.Module) -> Optimizer:
    """Of all parameters, whose gradients are random."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    if kind == "mofo":
        return MoFO(model.parameters(), lr=1e-5)
    return AdamW(model.parameters(), lr=1e-5, fused=True if kind == "fused adamw" else None)


if __name__ == "__main__":
    main()
