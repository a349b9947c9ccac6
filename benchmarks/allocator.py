"""What keeping freed memory saves on a CPU (``mixout.finetune.environment.keep_memory``): training steps of MiniLM.

    python benchmarks/allocator.py

A setting is a batch and a method. It is measured in processes of their own, with and without, in turns: the C library
cannot be told to give memory back again. Each process takes the median processor time of eight steps, one thread, and
counts the pages that the system handed out. Writes ``benchmarks/results/allocator.csv``.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from mixout.finetune.environment import keep_memory
from models import CASES, Setting, build, step
from pairs import compare, process_seconds
from table import Table

OUTPUT = Path(__file__).parent / "results" / "allocator.csv"
METHODS = ("dropout(0.0)", "mixout(0.9)")
WARMUP, STEPS = 3, 8


def main() -> None:
    """Measure all settings, or in a process of its own one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 16], help="of 32 tokens each")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--one", nargs=3, metavar=("BATCH", "METHOD", "KEEP"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(int(args.one[0]), args.one[1], keep=args.one[2] == "keep")))
        return
    torch.set_num_threads(1)
    table = Table(args.output)
    for batch in args.batches:
        for method in METHODS:
            found: dict[str, list[tuple[float, float]]] = {"give back": [], "keep": []}
            for _ in range(args.pairs):
                for what, each in found.items():
                    each.append(in_process(batch, method, what))
            given, kept = ([seconds for seconds, _ in each] for each in found.values())
            pages = [statistics.median(count for _, count in each) for each in found.values()]
            row = {"case": "minilm", "tokens": 32 * batch, "method": method, **compare(given, kept).columns("default")}
            table.add(row | {"default_pages": round(pages[0]), "pages": round(pages[1])})
    print(table.text(["case", "tokens", "method", "ratio", "default_ms", "ms", "default_pages", "pages"]))


def in_process(batch: int, method: str, what: str) -> tuple[float, float]:
    """Seconds and pages of a step."""
    command = [sys.executable, __file__, "--one", str(batch), method, what]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, pages = json.loads(printed)
    return seconds, pages


def measure(batch: int, method: str, *, keep: bool) -> tuple[float, float]:
    """Of this process."""
    torch.set_num_threads(1)
    if keep:
        keep_memory()
    case = replace(CASES["minilm"], batch=batch)
    run = step(Setting(method=method).apply_(build(case, "cpu")), case, torch.device("cpu"))
    for _ in range(WARMUP):
        run()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = [process_seconds(run) for _ in range(STEPS)]
    return statistics.median(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / STEPS


if __name__ == "__main__":
    main()
