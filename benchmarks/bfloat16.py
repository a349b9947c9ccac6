"""What bfloat16 does to a training step of MiniLM on a CPU, in interleaved pairs of whole steps in one process.

    python benchmarks/bfloat16.py attention    # under autocast, attention in float32 against torch's bfloat16 kernel
    python benchmarks/bfloat16.py precision    # autocast, as mixout finetune makes it, against float32

A step is forward, backward and fused AdamW, every dropout off, 16 texts of each length, half of them a quarter shorter.
Writes a row a length to ``benchmarks/results/attention.csv`` or ``precision.csv``. Which is faster depends on whether
the processor has instructions for bfloat16, the column ``has_bf16``; where ``attention.csv`` was made it had.
"""

from __future__ import annotations

import argparse
import csv
from contextlib import nullcontext
from pathlib import Path

import torch

from mixout.finetune.attention import float_attention
from mixout.finetune.environment import emulates_bfloat16
from mixout.finetune.models import load
from pairs import Run, clock_of, interleave
from table import environment

RESULTS = Path(__file__).parent / "results"
# Base, variant, lengths: a step in bfloat16 takes seconds where it is emulated.
COMPARISONS = {
    "attention": ("narrow", "wide", (16, 32, 64, 128)),
    "precision": ("fp32", "bf16", (16, 64)),
}
TEXTS = 16


def main() -> None:
    """Time the pairs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of each length")
    parser.add_argument("--output", type=Path, help="table to write; default: benchmarks/results/COMPARISON.csv")
    options = parser.parse_args()
    base, variant, lengths = COMPARISONS[options.comparison]
    rows = []
    for length in lengths:
        steps = step(length, base), step(length, variant)
        paired = interleave(*steps, pairs=options.pairs, warmup=1, clock=clock_of(torch.device("cpu")))
        row = {"texts": TEXTS, "length": length, "ratio": f"{paired.ratio:.3f}", "low": f"{paired.low:.3f}"}
        row |= {"high": f"{paired.high:.3f}", "pairs": paired.pairs, f"{base}_s": f"{paired.base:.4f}"}
        row |= {f"{variant}_s": f"{paired.variant:.4f}", "has_bf16": not emulates_bfloat16()}
        rows.append(row | environment())
        print(f"{length} tokens: {row['ratio']} ({row['low']} to {row['high']}), {variant} over {base}")
    with (options.output or RESULTS / f"{options.comparison}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def step(length: int, arithmetic: str) -> Run:
    """A training step on texts of ``length`` tokens.

    Args:
        length: of the longer texts.
        arithmetic: ``fp32``; ``narrow``, autocast as it is; ``wide`` or ``bf16``, autocast with attention in float32.
    """
    model = load("minilm", labels=("no", "yes"), init_seed=0).model
    model.train(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    present = torch.ones(TEXTS, length, dtype=torch.int64)
    present[: TEXTS // 2, length - length // 4 :] = 0
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 20000, (TEXTS, length), generator=draw)
    labels = torch.randint(2, (TEXTS,), generator=draw)

    def run() -> None:
        attention = float_attention() if arithmetic in ("wide", "bf16") else nullcontext()
        with attention, torch.autocast("cpu", dtype=torch.bfloat16, enabled=arithmetic != "fp32"):
            loss = model(input_ids=tokens, attention_mask=present, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


if __name__ == "__main__":
    main()
