"""What mixout costs on this machine: time, memory and compilation, as ratios to fine-tuning without any dropout.

    python benchmarks/bench.py                       # time and memory of the models meant for this machine
    python benchmarks/bench.py --parts host          # what the host spends on a step whose matrices cost nothing
    python benchmarks/bench.py --dry-run             # every row with tiny models; the numbers mean nothing

Parts: ``time``, whole training steps, medians and quartiles of interleaved pairs, with the floor that FLOPs set;
``memory``, what autograd keeps for backward, with and without anchors, and on a GPU the peak; ``host``, process time,
operators and launches on one thread; ``state``, what mixout adds to a checkpoint; ``compile``, time to compile and
compiled steps, each in a process of its own with an empty cache; ``busy``, milliseconds until a step is launched, until
it is done, and in which kernels run.

Rows are written one by one, so a run that is cut off keeps the others. A row that fails or has no time left says so.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import parts
from mixout._names import nearest
from mixout.errors import InputError
from mixout.finetune.environment import keep_memory
from models import CASES, PLAIN, Case
from pairs import process_seconds
from suite import COLUMNS, Bench
from table import Table

TINY: dict[str, Any] = {
    "width": 16,
    "intermediate": 24,
    "heads": 4,
    "key_heads": 2,
    "layers": 1,
    "vocabulary": 40,
    "length": 8,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table; 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts.PARTS, default=["time", "memory"], metavar="PART")
    parser.add_argument("--case", nargs="+", default=[], metavar="MODEL", help=f"among {', '.join(CASES)}")
    parser.add_argument("--pairs", type=int, default=10, help="timed pairs of a comparison; default: %(default)s")
    parser.add_argument("--batch", type=int, help="sequences in a step, other than the case's")
    parser.add_argument("--process-time", action="store_true", help="of one thread: a busy machine hardly changes it")
    parser.add_argument("--keep-memory", action="store_true", help="as mixout finetune does on a CPU")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no row after that time; default: no limit")
    parser.add_argument("--output", type=Path, default=Path("out/bench.csv"), help="default: %(default)s")
    parser.add_argument("--add", action="store_true", help="keep the rows that the file holds")
    parser.add_argument("--dry-run", action="store_true", help="every row with tiny models and one pair")
    args = parser.parse_args(argv)
    gpu = torch.cuda.is_available()
    try:
        if args.process_time and gpu:
            raise InputError("expected --process-time where there is no GPU, for which the host waits")
        if args.pairs < 1:
            raise InputError(f"expected --pairs of at least 1, got {args.pairs}")
        cases = [find(name) for name in args.case] or [case for case in CASES.values() if case.gpu == gpu]
        table = Table(args.output, keep=args.add)
    except InputError as error:
        parser.error(str(error))
    if args.dry_run:
        cases = [replace(case, **TINY, batch=2) for case in cases]
    if args.keep_memory:
        keep_memory()
    if args.process_time:
        torch.set_num_threads(1)
    bench = Bench(
        table=table,
        cases=[replace(case, batch=args.batch or case.batch) for case in cases],
        device=torch.device("cuda" if gpu else "cpu"),
        pairs=1 if args.dry_run else args.pairs,
        ends=time.monotonic() + args.seconds,
        dry=args.dry_run,
        clock=process_seconds if args.process_time else None,
    )
    before = len(table.rows)
    for name in args.parts:
        parts.PARTS[name](bench)
    print(f"\n{table.text(COLUMNS)}\n\n{table.path}: ratios to plain fine-tuning, {PLAIN.method}")
    return int(any(row["note"].startswith("failed") for row in table.rows[before:]))


def find(name: str) -> Case:
    """The case called ``name``.

    Raises:
        InputError: if there is none; the message names the nearest.
    """
    if name in CASES:
        return CASES[name]
    raise InputError(f"expected a case among {', '.join(CASES)}, got {name!r}{nearest(name, CASES)}")


if __name__ == "__main__":
    sys.exit(main())
