"""``mixout study report`` and ``export``: what a ledger's runs showed, as a page and as a table."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from mixout._names import count
from mixout.cli.study.declared import check_no_file, declared, known
from mixout.cli.study.scores import command, written
from mixout.errors import InputError, needs
from mixout.study.analysis.runs import Run
from mixout.study.analysis.table import to_csv_rows
from mixout.study.best import wanted
from mixout.study.grid import Planned, Study
from mixout.study.identity import Inputs
from mixout.study.ledger import Contents, Ledger
from mixout.study.reporting import with_all_restarts


def report(args: argparse.Namespace) -> int:
    """Write a report on a study, or on all that a ledger holds."""
    for name in ("direction", "unit"):
        if getattr(args, name) is not None:
            raise InputError(f"expected --{name} only with --scores CSV; a ledger knows it")
    folder = Path(args.output_dir)
    return written(lambda: f"report {_on_ledger(args, folder)}", folder, "--output-dir")


def export(args: argparse.Namespace) -> int:
    """Write all runs as one table."""
    path = Path(args.output)
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"expected --output as a file that ends in .csv or .parquet, got {args.output!r}")
    runs = _exported(args)
    if not runs:
        raise InputError(f"expected runs in {args.ledger}, got none; run the study first")
    with needs("hf", "tables"):
        import pandas
    rows = to_csv_rows(runs)

    def write() -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f".{path.name}.tmp")
        if path.suffix == ".csv":
            pandas.DataFrame(rows, dtype=object).to_csv(whole, index=False, lineterminator="\n")
        else:
            with needs("data", "Parquet files"):
                import pyarrow  # noqa: F401  without it pandas refuses, and in other words
            pandas.DataFrame(rows).to_parquet(whole, index=False)
        whole.replace(path)
        return f"{count(len(rows), 'run')} in {path}"

    return written(write, path.parent, "--output")


def _exported(args: argparse.Namespace) -> list[Run]:
    """The runs of the ledger and of the tables that are known; with a study those that it asks for, in its order."""
    contents = Ledger(args.ledger).read()
    if args.file is None:
        check_no_file(args)
        elsewhere = known(args, ())
        # A run that failed here may have ended elsewhere.
        own = [run for run in contents.runs() if run.status != "failed" or run.id not in elsewhere]
        return list((elsewhere | {run.id: run for run in own}).values())
    asked = _asked(args, contents)[1]
    elsewhere, found = known(args, asked), []
    for one in asked:
        entry = contents.entry(one)
        if entry is not None and (entry.record is not None or one.id not in elsewhere):
            found.append(entry.seen_as(one))
        elif one.id in elsewhere:
            run = elsewhere[one.id]
            found.append(replace(run, id=one.id, task=one.task, method=one.method, factors=one.factors))
    return found


def _asked(args: argparse.Namespace, contents: Contents) -> tuple[Study, list[Planned]]:
    """The study, with all restarts that the ledger holds unless told otherwise, and its runs."""
    study, inputs = declared(args), Inputs()
    try:
        if args.restarts is None:
            study = with_all_restarts(study, contents, inputs)
        return study, study.runs(inputs)
    except InputError as error:
        if contents.entries and ("no such" in str(error) or "exists" in str(error)):
            raise InputError(
                f"{error}. Without data and model: leave FILE out, for all that the ledger holds"
            ) from error
        raise


def _on_ledger(args: argparse.Namespace, folder: Path) -> Path:
    from mixout.study.reporting import report_on

    contents = Ledger(args.ledger).read()
    study, planned, options = None, None, ["--ledger", args.ledger]
    title, baseline, commands = Path(args.ledger).name, args.baseline, []
    if args.file is not None:
        study, grid = _asked(args, contents)
        planned = wanted(study, grid, contents)
        missing = sum(contents.entry(run) is None for run in planned)
        if missing:
            print(f"{missing} of {len(planned)} runs are missing; the report is on the others", file=sys.stderr)
        options = [args.file, "--restarts", str(study.restarts), *options, *(["--set", *args.set] if args.set else [])]
        commands.append(shlex.join(["mixout", "study", "run", *options]))
        title, baseline = study.name, args.baseline or study.baseline
    else:
        check_no_file(args)
    for line in contents.remarks():
        print(line, file=sys.stderr)
    commands.append(command(args, *options))
    return report_on(
        planned,
        contents,
        folder,
        study=study,
        title=args.title or title,
        commands=commands,
        baseline=baseline,
        margin=args.margin,
    )
