"""What the host spends on a mixed layer, in interleaved pairs with a plain one, where the layer itself costs nothing.

    python benchmarks/host.py

Forward and backward of fifty linears of 16 x 16 under autocast in bfloat16, on one core: time goes to Python and to
torch's dispatch alone, which is what a GPU waits for where layers are small. Kernel launches come on top there. Writes
``benchmarks/results/host.csv``, a row a form: ``own`` is the thin gradient in an autograd function, ``native`` torch's
own operations.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import nn

import mixout
from mixout import forms
from mixout.bench.pairs import Run, clock_of, interleave
from mixout.bench.table import environment

RESULTS = Path(__file__).parent / "results" / "host.csv"
LAYERS, PAIRS = 50, 100


def main() -> None:
    """Time the pairs and write the table."""
    torch.set_num_threads(1)
    rows = []
    for form in ("own", "native"):
        paired = interleave(step("plain"), step(form), pairs=PAIRS, warmup=10, clock=clock_of(torch.device("cpu")))
        row = {"form": form, "ratio": f"{paired.ratio:.3f}", "low": f"{paired.low:.3f}", "high": f"{paired.high:.3f}"}
        row |= {"pairs": paired.pairs, "plain_us": f"{1e6 * paired.base / LAYERS:.1f}"}
        row |= {"form_us": f"{1e6 * paired.variant / LAYERS:.1f}"}
        rows.append(row | environment())
        print(f"{form}: {row['form_us']} us a layer, plain {row['plain_us']} us")
    with RESULTS.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def step(form: str) -> Run:
    """Forward and backward in a form of the linear: ``plain``, ``own`` or ``native``."""
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(LAYERS)))
    if form != "plain":
        mixout.apply_(model, mixout.Mixout(0.9))
    x = torch.randn(400, 16, requires_grad=True)

    def run() -> None:
        forms._may_wait_for_host = lambda *_: form == "native"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x)
        y.sum().backward()
        model.zero_grad(set_to_none=True)

    return run


if __name__ == "__main__":
    main()
