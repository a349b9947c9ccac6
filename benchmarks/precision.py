"""bfloat16 autocast against float32 on a CPU: a training step of MiniLM, as ``mixout finetune`` makes it.

    python benchmarks/precision.py

Interleaved pairs of whole steps in one process, see attention.py. Writes a row a length to
``benchmarks/results/precision.csv``, with whether the processor has instructions for bfloat16.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from attention import TEXTS, step

from mixout.bench.pairs import Run, clock_of, interleave
from mixout.bench.table import environment
from mixout.finetune.attention import float_attention
from mixout.finetune.environment import emulates_bfloat16

RESULTS = Path(__file__).parent / "results" / "precision.csv"
LENGTHS = (16, 64)


def main() -> None:
    """Time the pairs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of each length")
    parser.add_argument("--output", type=Path, default=RESULTS, help="table to write")
    options = parser.parse_args()
    rows = []
    for length in LENGTHS:
        wide, autocast = step(length, narrow=False), step(length)

        def narrow(autocast: Run = autocast) -> None:
            with float_attention():
                autocast()

        paired = interleave(wide, narrow, pairs=options.pairs, warmup=1, clock=clock_of(torch.device("cpu")))
        row = {"texts": TEXTS, "length": length, "ratio": f"{paired.ratio:.3f}", "low": f"{paired.low:.3f}"}
        row |= {"high": f"{paired.high:.3f}", "pairs": paired.pairs, "fp32_s": f"{paired.base:.4f}"}
        row |= {"bf16_s": f"{paired.variant:.4f}", "has_bf16": not emulates_bfloat16()}
        rows.append(row | environment())
        print(f"{length} tokens: {row['ratio']} ({row['low']} to {row['high']}) of the step in float32")
    with options.output.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
