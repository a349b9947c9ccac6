"""The search behind the settings of the study demo-tie: learning rates and methods, on another subset.

    python benchmarks/demo_search.py --output-dir out/search

Runs what is missing in the ledger there and, once all is there, writes ``benchmarks/results/demo_search.csv``. Ledgers
of several machines may be copied together before.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

from mixout.study.analysis.cells import summarise
from mixout.study.declaration import read
from mixout.study.executors import LocalExecutor
from mixout.study.grid import Axis
from mixout.study.ledger import Ledger
from mixout.study.runner import run

RATES = (2e-4, 5e-4, 1e-3)
METHODS = ("dropout(0.0)", "dropout(0.1)", "mixout(0.3)", "mixout(0.5)", "mixout(0.7)", "mixout(0.9)")
RESTARTS = 3
RESULTS = Path(__file__).parent / "results" / "demo_search.csv"


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    args = parser.parse_args()
    methods = [Axis(label=method, settings={"method": method}) for method in METHODS]
    study = replace(
        read("demo-tie"), restarts=RESTARTS, methods=methods, baseline=None, factors={"learning_rate": RATES}
    ).with_settings({"subset_seed": 1})
    planned, ledger = study.runs(), Ledger(args.output_dir)
    if run(planned, ledger, LocalExecutor(), report=print).failed:
        raise SystemExit(f"some runs failed; mixout study status --ledger {args.output_dir}")
    contents = ledger.read()
    records = [entry.record for entry in contents.entries.values() if entry.record is not None]
    constants = {name: records[0].versions[name] for name in ("torch", "transformers")}
    constants["cpu"] = records[0].hardware["processor"]
    names = ("method", "runs", "mean", "sd", "min", "max", "failed", "distance")
    rows = [
        {**cell.factors, **{name: getattr(cell, name) for name in names}, **constants}
        for cell in summarise(contents.of(planned))
    ]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
