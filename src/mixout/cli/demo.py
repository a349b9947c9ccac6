"""``mixout demo``: the embedded model on embedded text, with and without mixout, over several restarts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mixout.finetune.settings import Settings

# Found by a small search, stated in docs/demo.md.
METHODS = ("dropout(0.0)", "dropout(0.1)", "mixout(0.5)")
SETTINGS = Settings(
    task="docstrings",
    train_size=200,
    max_length=64,
    optimizer="adamw",
    learning_rate=5e-4,
    epochs=5,
    batch_size=16,
    evaluate="end",
    save="no",
)


def add(commands: Any) -> None:  # noqa: ANN401  argparse hides the class
    """Add the command to the parser's ``commands``."""
    parser = commands.add_parser(
        "demo",
        help="compare methods over restarts on embedded data: a table and a figure in minutes, offline",
        description=(
            "Fine-tune MiniLM on few examples of 'docstrings' (which library does this sentence come from?) with "
            "several methods and restarts. Finished runs are kept: call it again to continue, or with more restarts."
        ),
    )
    parser.add_argument("--output-dir", default="demo-output", metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--restarts", type=int, default=4, metavar="N", help="runs of each method (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run what is missing, print the table, write table.csv and figure.png."""
    from mixout.finetune.disk import WriteError, writing
    from mixout.finetune.record import write_atomically
    from mixout.study.figures import strip_plot
    from mixout.study.restarts import run as run_restarts
    from mixout.study.summary import summarise, table, to_csv

    folder = Path(args.output_dir)
    print(
        f"MiniLM-L6 on {SETTINGS.task!r}: which library does this sentence come from? {SETTINGS.train_size} training "
        f"examples, {len(METHODS)} methods, {args.restarts} restarts each.",
        file=sys.stderr,
    )
    try:
        with writing(folder):
            records = run_restarts(SETTINGS, METHODS, args.restarts, folder / "runs", report=_report)
            rows = summarise(records)
            write_atomically(folder / "table.csv", to_csv(rows))
            strip_plot(records, folder / "figure.png")
    except KeyboardInterrupt:
        print(f"mixout: interrupted; finished runs are kept in {folder}: call it again to continue", file=sys.stderr)
        return 130
    except WriteError as error:
        print(
            f"mixout: error: {error}; finished runs are kept: make room, then call it again to continue",
            file=sys.stderr,
        )
        return 1
    print(f"\n{table(rows)}\n\ntable {folder / 'table.csv'}, figure {folder / 'figure.png'}")
    return 0


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
