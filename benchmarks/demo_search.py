"""The search behind the demo's settings: learning rates and methods on another subset than the demo's.

    python benchmarks/demo_search.py --output-dir out/search [--shard 0/2]

Runs what is missing in the folder (a shard: its part, so that several processes share the work), and, once all is
there, writes ``benchmarks/results/demo_search.csv``.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import asdict, replace
from pathlib import Path

from mixout.cli.demo import SETTINGS
from mixout.study.restarts import run
from mixout.study.summary import summarise

RATES = (2e-4, 5e-4, 1e-3)
METHODS = ("dropout(0.0)", "dropout(0.1)", "mixout(0.3)", "mixout(0.5)", "mixout(0.7)", "mixout(0.9)")
RESTARTS = 3
RESULTS = Path(__file__).parent / "results" / "demo_search.csv"


def main() -> None:
    """Run a shard, or run the rest and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--shard", default=None, help="I/N: only every Nth cell, beginning with the Ith")
    args = parser.parse_args()
    cells = [(rate, method) for rate in RATES for method in METHODS]
    first, every = map(int, args.shard.split("/")) if args.shard else (0, 1)
    rows = []
    for rate, method in cells[first::every]:
        base = replace(SETTINGS, learning_rate=rate, subset_seed=1)
        records = run(base, [method], RESTARTS, args.output_dir / f"{rate:g}", report=print)
        (row,) = summarise(records)
        versions = {name: records[0].versions[name] for name in ("torch", "transformers")}
        found = asdict(row)
        del found["seconds"]  # shards share the machine
        rows.append({"learning_rate": rate, **found, **versions, "cpu": records[0].hardware["processor"]})
    if args.shard is None:
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
