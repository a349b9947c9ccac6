"""``mixout study report`` and ``export``: what runs showed, as a page and as a table."""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mixout.cli.study.declared import declared, known, planned
from mixout.errors import InputError
from mixout.finetune.disk import WriteError, writing
from mixout.finetune.extras import needs
from mixout.finetune.record import write_atomically
from mixout.study.analysis.runs import Run, read_scores, to_csv_rows
from mixout.study.ledger import Ledger


def report(args: argparse.Namespace) -> int:
    """Write a report on a study, or on a table of scores."""
    if (args.file is None) == (args.scores is None):
        raise InputError("expected either a study FILE or --scores CSV, got both or neither")
    folder = Path(args.output_dir)
    try:
        with writing(folder):
            page = _on_scores(args, folder) if args.file is None else _on_study(args, folder)
    except WriteError as error:
        print(f"mixout: error: {error}; make room, then call it again", file=sys.stderr)
        return 1
    print(f"report {page}")
    return 0


def export(args: argparse.Namespace) -> int:
    """Write all runs as one table."""
    path = Path(args.output)
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"expected --output as a file that ends in .csv or .parquet, got {args.output!r}")
    runs = _exported(args)
    if not runs:
        raise InputError(f"expected runs in {args.ledger}, got none; run the study first")
    rows = to_csv_rows(runs)
    try:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".csv":
                _write_csv(path, rows)
            else:
                _write_parquet(path, rows)
    except WriteError as error:
        print(f"mixout: error: {error}; make room, then call it again", file=sys.stderr)
        return 1
    print(f"{len(rows)} runs in {path}")
    return 0


def _exported(args: argparse.Namespace) -> list[Run]:
    """The runs of the ledger and of the tables that are known; with a study those that it asks for, in its order."""
    ledger, asked, elsewhere = Ledger(args.ledger), planned(args), known(args)
    own = ledger.runs() if asked is None else ledger.read().of(asked)
    # A run that failed here may have ended elsewhere.
    found = elsewhere | {run.id: run for run in own if run.status != "failed" or run.id not in elsewhere}
    if asked is None:
        return list(found.values())
    return [
        replace(found[one.id], task=one.task, method=one.method, factors=one.factors)
        for one in asked
        if one.id in found
    ]


def _on_scores(args: argparse.Namespace, folder: Path) -> Path:
    from mixout.study.report import write_report  # not before: it loads matplotlib

    return write_report(
        read_scores(args.scores, report=lambda line: print(line, file=sys.stderr)),
        folder,
        title=args.title or Path(args.scores).stem,
        baseline=args.baseline,
        commands=[shlex.join(["mixout", "study", "report", "--scores", args.scores, *_presentation(args)])],
    )


def _on_study(args: argparse.Namespace, folder: Path) -> Path:
    from mixout.study.reporting import report_on

    study = declared(args)
    runs = study.runs()
    contents = Ledger(args.ledger).read()
    missing = sum(run.id not in contents.entries for run in runs)
    if missing:
        print(f"{missing} of {len(runs)} runs are missing; the report is on the others", file=sys.stderr)
    options = [args.file, "--restarts", str(study.restarts), "--ledger", args.ledger]
    options += ["--set", *args.set] if args.set else []
    commands = [
        shlex.join(["mixout", "study", "run", *options]),
        shlex.join(["mixout", "study", "report", *options, *_presentation(args)]),
    ]
    return report_on(study, runs, contents, folder, commands=commands, title=args.title, baseline=args.baseline)


def _presentation(args: argparse.Namespace) -> list[str]:
    """The options that decide what a report is called, what it compares with, and where it lies."""
    chosen = {"--baseline": args.baseline, "--title": args.title, "--output-dir": args.output_dir}
    return [word for name, value in chosen.items() if value is not None for word in (name, value)]


def _write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def _write_parquet(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with needs("hf", "Parquet files"):
        import pyarrow
        import pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
