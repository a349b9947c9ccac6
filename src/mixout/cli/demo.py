"""``mixout demo``: the study of the embedded model on embedded text, with and without mixout, and its report."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

# The study; what it runs and how its settings were found: docs/demo.md.
STUDY = "demo"


def add(commands: Any) -> None:  # noqa: ANN401  argparse hides the class
    """Add the command to the parser's ``commands``."""
    parser = commands.add_parser(
        "demo",
        help="compare methods over restarts on embedded data: a report in minutes, offline",
        description=(
            "Fine-tune MiniLM on few examples of 'docstrings' (which library does this sentence come from?) with "
            "several methods and restarts, and write a report. Finished runs are kept: call it again to continue, or "
            "with more restarts."
        ),
    )
    parser.add_argument("--output-dir", default="demo-output", metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--restarts", type=int, default=4, metavar="N", help="runs of each method (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run what is missing, write the report, print where it is."""
    from mixout.cli.study.runs import guarded
    from mixout.finetune.disk import writing
    from mixout.study.declaration import read
    from mixout.study.executors.local import LocalExecutor
    from mixout.study.ledger import Ledger
    from mixout.study.progress import Report
    from mixout.study.reporting import report_on
    from mixout.study.runner import run as run_missing

    folder = Path(args.output_dir)
    study = replace(read(STUDY), restarts=args.restarts)
    planned = study.runs()
    settings = planned[0].settings
    print(
        f"{settings.model} on {study.tasks[0].label!r}: {settings.train_size} training examples, "
        f"{len(study.methods)} methods, {study.restarts} restarts each.",
        file=sys.stderr,
    )
    ledger = Ledger(folder / "ledger")

    def work(report: Report) -> int:
        tally = run_missing(planned, ledger, LocalExecutor(), report=report)
        # In the terms of the study's command: with it the demo can be enlarged and exported, too.
        options = f"{STUDY} --restarts {study.restarts} --ledger {ledger.folder}"
        commands = [f"mixout study run {options}", f"mixout study report {options}"]
        with writing(folder):
            page = report_on(
                planned,
                ledger.read(),
                folder / "report",
                title=study.name,
                baseline=study.baseline,
                commands=commands,
            )
        print(f"report {page}")
        return 1 if tally.failed else 0

    return guarded(work, folder)
