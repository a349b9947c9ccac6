"""What bfloat16 does to a training step of MiniLM on a CPU, in interleaved pairs of whole steps in one process.

    python benchmarks/bfloat16.py    # autocast, as mixout finetune makes it, against float32

A step is forward, backward and fused AdamW, every dropout off, 16 texts of each length, half of them a quarter shorter.
Writes a row a length to ``benchmarks/results/precision.csv``. Which is faster depends on whether the processor has
instructions for bfloat16, the column ``has_bf16``.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch

from mixout.finetune.models import load
from pairs import Run, clock_of, interleave
from table import environment

RESULTS = Path(__file__).parent / "results"
# A step in bfloat16 takes seconds where it is emulated.
LENGTHS = (16, 64)
TEXTS = 16


def main() -> None:
    """Time the pairs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of each length")
    parser.add_argument("--output", type=Path, default=RESULTS / "precision.csv")
    options = parser.parse_args()
    capabilities = torch.cpu.get_capabilities().items()
    has_bf16 = any(able for name, able in capabilities if name.endswith("bf16") or name == "avx_ne_convert")
    rows = []
    for length in LENGTHS:
        steps = step(length, "fp32"), step(length, "bf16")
        paired = interleave(*steps, pairs=options.pairs, warmup=1, clock=clock_of(torch.device("cpu")))
        row = {"texts": TEXTS, "length": length, "ratio": f"{paired.ratio:.3f}", "low": f"{paired.low:.3f}"}
        row |= {"high": f"{paired.high:.3f}", "pairs": paired.pairs, "fp32_s": f"{paired.base:.4f}"}
        row |= {"bf16_s": f"{paired.variant:.4f}", "has_bf16": has_bf16}
        rows.append(row | environment())
        print(f"{length} tokens: {row['ratio']} ({row['low']} to {row['high']}), bf16 over fp32")
    with options.output.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def step(length: int, arithmetic: str) -> Run:
    """A training step on texts of ``length`` tokens.

    Args:
        length: of the longer texts.
        arithmetic: ``fp32``, or ``bf16`` by autocast.
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
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arithmetic != "fp32"):
            loss = model(input_ids=tokens, attention_mask=present, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


if __name__ == "__main__":
    main()
