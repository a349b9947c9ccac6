"""``mixout bench``: what mixout costs on this machine, in ratios to plain fine-tuning."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixout.bench.plan import Plan
    from mixout.bench.table import Row

_WHAT = ("step", "layer", "memory")


def add(commands: Any) -> None:  # noqa: ANN401  argparse hides the class
    """Add the command to the parser's ``commands``."""
    parser = commands.add_parser(
        "bench",
        help="measure time and memory of training with mixout against plain fine-tuning",
        description=(
            "Time training steps and single layers, and measure memory, of mixout at several p, mixconnect, dropout "
            "and the authors' formulation, as ratios to fine-tuning without any dropout. Times are medians and "
            "quartiles of interleaved pairs. Writes a CSV file for each kind of measurement, and figures."
        ),
    )
    parser.add_argument("--what", choices=(*_WHAT, "all"), default="all", help="default: %(default)s")
    parser.add_argument(
        "--case", nargs="+", default=[], metavar="NAME", help="models to measure; default: those meant for this machine"
    )
    parser.add_argument("--quick", action="store_true", help="one small model and few pairs: within a minute")
    parser.add_argument(
        "--pairs", type=int, metavar="N", help="timed pairs of each comparison (default: 10, with --quick 3)"
    )
    parser.add_argument("--compile", action="store_true", help="measure everything, plain too, under torch.compile")
    parser.add_argument("--output-dir", default="out/bench", metavar="DIR", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Measure, write what is known after each row, print the table."""
    from mixout.bench import figures  # first of all: without matplotlib the end would be missing
    from mixout.bench.plan import plan
    from mixout.bench.table import table

    chosen = plan(names=args.case, pairs=args.pairs, quick=args.quick, compile=args.compile)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "-compiled" if args.compile else ""
    rows: list[Row] = []
    for what in _WHAT if args.what == "all" else (args.what,):
        rows += _measure(what, chosen, folder / f"{what}{suffix}.csv")
    drawn = figures.draw(rows, folder, suffix)
    print(f"{table(rows)}\n\n{_machine()}\ntables and {len(drawn)} figures in {folder}")
    return 0


def _measure(what: str, chosen: Plan, path: Path) -> list[Row]:
    from mixout.bench import layer, memory, step
    from mixout.bench.table import environment, to_csv
    from mixout.finetune.record import write_atomically

    measure = {"step": step.measure, "layer": layer.measure, "memory": memory.measure}[what]
    constants = environment()
    rows: list[Row] = []
    for row in measure(chosen, _report):
        rows.append(row)
        _report(f"  {row.label}, {row.quantity}: {row.ratio:.3f} of plain")
        write_atomically(path, to_csv(rows, constants))
    return rows


def _machine() -> str:
    from mixout.bench.table import environment

    found = environment()
    place = found["gpu"] or f"{found['processor']}, {found['threads']} threads"
    return f"ratios to plain fine-tuning without dropout; {place}; torch {found['torch']}, mixout {found['mixout']}"


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
