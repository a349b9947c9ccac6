"""How long torch.compile takes for a mixed BERT of six layers, as a ratio to the plain one.

    python benchmarks/compile_time.py

Process time of the first training step (forward and backward) of a model compiled with the inductor on a CPU, plain and
with mixout(0.9), each in a process of its own with an empty compiler cache, in turns. Writes
``benchmarks/results/compile-time.csv``.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mixout.bench.table import environment

RESULTS = Path(__file__).parent / "results" / "compile-time.csv"

PROGRAM = """
import resource, sys, time, torch, mixout
from transformers import BertConfig, BertModel
torch.set_num_threads(1)
shape = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 128}
dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
torch.manual_seed(0)
model = BertModel(BertConfig(**shape, **dropouts, vocab_size=50), add_pooling_layer=False).train()
if sys.argv[1] == "mixout":
    mixout.apply_(model, mixout.Mixout(0.9))
compiled, ids = torch.compile(model), torch.arange(32)[None]
spent = lambda: sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
before = spent()
compiled(ids).last_hidden_state.square().sum().backward()
print(spent() - before, torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


def main() -> None:
    """Time both in turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    pairs = parser.parse_args().pairs
    seconds: dict[str, list[float]] = {"plain": [], "mixout": []}
    graphs = {}
    for _ in range(pairs):
        for kind, found in seconds.items():
            with tempfile.TemporaryDirectory() as cache:
                done = subprocess.run(
                    [sys.executable, "-W", "ignore", "-c", PROGRAM, kind],
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"},
                )
            time, graphs[kind] = done.stdout.split()
            found.append(float(time))
            print(f"{kind}: {float(time):.1f} s, {graphs[kind]} graph", flush=True)
    ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    row = {
        "ratio": f"{ratio:.3f}",
        "pairs": pairs,
        "plain_s": f"{statistics.median(seconds['plain']):.1f}",
        "mixout_s": f"{statistics.median(seconds['mixout']):.1f}",
        "graphs": graphs["mixout"],
        **environment(),
    }
    with RESULTS.open("w", newline="") as file:
        table = csv.DictWriter(file, list(row), lineterminator="\n")
        table.writeheader()
        table.writerow(row)
    print(f"mixout takes {row['ratio']} of plain's compile time")


if __name__ == "__main__":
    main()
