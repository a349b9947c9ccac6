"""``mixout study report`` and ``export``: the results of a ledger, or of a table of scores, as a page or a table.

A report on a table of scores needs no torch, which takes longer to load than the report takes to write. So modules are
imported where they are used.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from mixout._names import count
from mixout.cli.lines import Lines
from mixout.cli.options import unclaimed
from mixout.cli.study import LEDGER
from mixout.errors import InputError, needs
from mixout.finetune.record import WriteError, write_atomically, writing
from mixout.study.analysis.table import read_scores, to_csv_rows


def report(args: argparse.Namespace) -> int:
    """Write a report on a study, on all that a ledger holds, or on a table of scores."""
    folder = Path(args.output_dir)
    make = _on_ledger if args.scores is None else _on_scores
    return _written(lambda: f"report {make(args, folder)}", folder, "--output-dir")


def export(args: argparse.Namespace) -> int:
    """Write all runs as one table."""
    path = unclaimed(args.output, "runs.csv")
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"expected --output as a file that ends in .csv or .parquet, got {args.output!r}")
    from mixout.cli.study.runs import asked, check_no_file, no_runs
    from mixout.study.ledger import Ledger

    contents = Ledger(args.ledger).read()
    runs = contents.runs(check_no_file(args)) if args.file is None else contents.of(asked(args, contents)[1])
    if not runs:
        raise InputError(f"expected runs to export, got {no_runs(args)}; run the study first, or name its --ledger")
    with needs("hf", "tables"):
        import pandas
    rows = to_csv_rows(runs)

    def write() -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            write_atomically(path, pandas.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n"))
        else:
            with needs("data", "Parquet files"):
                import pyarrow  # noqa: F401  without it pandas refuses, and in other words
            write_atomically(path, pandas.DataFrame(rows).to_parquet(index=False))
        return f"{count(len(rows), 'run')} in {path}"

    return _written(write, path.parent, "--output")


def _written(make: Callable[[], str], folder: Path, option: str) -> int:
    """Make files in a folder and print what was made, or what to do where they could not be written."""
    try:
        with writing(folder):
            print(make())
    except WriteError as error:
        print(f"mixout: error: {error}; choose another {option}, or call it again", file=sys.stderr)
        return 1
    return 0


def _on_ledger(args: argparse.Namespace, folder: Path) -> Path:
    from mixout.cli.study.runs import asked, check_no_file, no_runs, options_of
    from mixout.study.grid import wanted
    from mixout.study.ledger import Ledger
    from mixout.study.reporting import report_on

    for name in ("direction", "unit"):
        if getattr(args, name) is not None:
            raise InputError(f"expected --{name} only with --scores CSV; a ledger knows it")
    contents = Ledger(args.ledger).read()
    study, planned, metric, options = None, None, None, ["--ledger", args.ledger]
    title, baseline, commands = Path(os.path.abspath(args.ledger)).name, args.baseline, []
    if args.file is not None:
        study, grid = asked(args, contents)
        planned = wanted(study, grid, contents)
        missing = sum(contents.entry(run) is None for run in planned)
        if missing:
            print(f"{missing} of {len(planned)} runs are missing; the report is on the others", file=sys.stderr)
        options = [args.file, *options_of(args, study.restarts)]
        commands.append(shlex.join(["mixout", "study", "run", *options]))
        title, baseline = study.title or study.name, args.baseline or study.baseline
    elif (metric := check_no_file(args)) is not None:
        options += ["--set", f"metric={metric}"]
    if not contents.entries:
        raise InputError(f"expected runs to report on, got {no_runs(args)}; run the study first, or name its --ledger")
    for line in contents.remarks():
        print(line, file=sys.stderr)
    return report_on(
        planned,
        contents,
        folder,
        study=study,
        metric=metric,
        title=args.title or title,
        commands=[*commands, _command(args, *options)],
        baseline=baseline,
        margin=args.margin,
    )


def _on_scores(args: argparse.Namespace, folder: Path) -> Path:
    from mixout.study.report import write_report

    if args.file is not None:
        raise InputError("expected either a study FILE or --scores CSV, got both")
    of_ledgers = {"--restarts": args.restarts is not None, "--set": args.set, "--ledger": args.ledger != LEDGER}
    if given := [name for name, is_given in of_ledgers.items() if is_given]:
        raise InputError(f"expected either --scores or {given[0]}, got both: the table holds all runs; leave one out")
    if Path(args.scores).resolve().parent == folder.resolve():
        raise InputError(f"expected --output-dir beside the table, got {args.output_dir!r}, which holds it")
    return write_report(
        read_scores(args.scores, report=Lines(), direction=args.direction, unit=args.unit),
        folder,
        title=args.title or Path(args.scores).stem,
        baseline=args.baseline,
        margin=args.margin,
        commands=[_command(args, "--scores", args.scores)],
    )


def _command(args: argparse.Namespace, *options: str) -> str:
    """The call that makes this report, with the options for its comparisons, its title and its folder."""
    words = ["mixout", "study", "report", *options]
    for name in ("direction", "unit", "baseline", "title", "output_dir"):
        if getattr(args, name) is not None:
            words += [f"--{name.replace('_', '-')}", getattr(args, name)]
    return shlex.join([*words, *([] if args.margin == 1.0 else ["--margin", f"{args.margin:g}"])])
