"""Attention in float32 against torch's bfloat16 kernel on a CPU, within a training step of MiniLM under autocast.

    python benchmarks/attention.py

Interleaved pairs of whole steps (forward, backward, fused AdamW) in one process, every dropout off, 16 texts of each
length, half of them a quarter shorter. Writes a row a length to ``benchmarks/results/attention.csv``.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch

from mixout.bench.pairs import Run, clock_of, interleave
from mixout.bench.table import environment
from mixout.finetune.attention import float_attention
from mixout.finetune.models import load

RESULTS = Path(__file__).parent / "results" / "attention.csv"
LENGTHS = (16, 32, 64, 128)
TEXTS = 16


def main() -> None:
    """Time the pairs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of each length")
    parser.add_argument("--output", type=Path, default=RESULTS, help="table to write")
    options = parser.parse_args()
    rows = []
    for length in LENGTHS:
        narrow = step(length)

        def wide(narrow: Run = narrow) -> None:
            with float_attention():
                narrow()

        paired = interleave(narrow, wide, pairs=options.pairs, warmup=2, clock=clock_of(torch.device("cpu")))
        row = {"texts": TEXTS, "length": length, "ratio": f"{paired.ratio:.3f}", "low": f"{paired.low:.3f}"}
        row |= {"high": f"{paired.high:.3f}", "pairs": paired.pairs, "narrow_s": f"{paired.base:.4f}"}
        rows.append(row | {"wide_s": f"{paired.variant:.4f}"} | environment())
        print(f"{length} tokens: {row['ratio']} ({row['low']} to {row['high']}) of the step with narrow attention")
    with options.output.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def step(length: int, *, narrow: bool = True) -> Run:
    """A training step on texts of ``length`` tokens, under bfloat16 autocast or in float32."""
    model = load("minilm", labels=("no", "yes"), init_seed=0).model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    present = torch.ones(TEXTS, length, dtype=torch.int64)
    present[: TEXTS // 2, length - length // 4 :] = 0
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 20000, (TEXTS, length), generator=draw)
    labels = torch.randint(2, (TEXTS,), generator=draw)

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            loss = model(input_ids=tokens, attention_mask=present, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


if __name__ == "__main__":
    main()
