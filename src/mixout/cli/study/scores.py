"""``mixout study report --scores``: on a table of scores, without torch, which takes longer to load than to report."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from mixout.cli.lines import Lines
from mixout.errors import InputError
from mixout.finetune.record import WriteError, writing


def report(args: argparse.Namespace) -> int:
    """Write a report on a table of scores."""
    if args.file is not None:
        raise InputError("expected either a study FILE or --scores CSV, got both")
    folder = Path(args.output_dir)
    return written(lambda: f"report {_on_scores(args, folder)}", folder, "--output-dir")


def written(make: Callable[[], str], folder: Path, option: str) -> int:
    """Make files in a folder and print what was made, or what to do where they could not be written."""
    try:
        with writing(folder):
            print(make())
    except WriteError as error:
        print(f"mixout: error: {error}; choose another {option}, or call it again", file=sys.stderr)
        return 1
    return 0


def _on_scores(args: argparse.Namespace, folder: Path) -> Path:
    # Not before: they load pandas and matplotlib.
    from mixout.study.analysis.table import read_scores
    from mixout.study.report import write_report

    if Path(args.scores).resolve().parent == folder.resolve():
        raise InputError(f"expected --output-dir beside the table, got {args.output_dir!r}, which holds it")
    return write_report(
        read_scores(args.scores, report=Lines(), direction=args.direction, unit=args.unit),
        folder,
        title=args.title or Path(args.scores).stem,
        baseline=args.baseline,
        margin=args.margin,
        commands=[command(args, "--scores", args.scores)],
    )


def command(args: argparse.Namespace, *options: str) -> str:
    """The call that makes this report, with the options that decide what it compares, is called, and where it lies."""
    chosen = {name: getattr(args, name) for name in ("direction", "unit", "baseline", "title", "output_dir")}
    spelled = [
        word for name, value in chosen.items() if value is not None for word in (f"--{name.replace('_', '-')}", value)
    ]
    margin = [] if args.margin == 1.0 else ["--margin", f"{args.margin:g}"]
    return shlex.join(["mixout", "study", "report", *options, *spelled, *margin])
