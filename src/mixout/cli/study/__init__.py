"""``mixout study``: declare a study in a file, run it, look at it, report on it."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

LEDGER = "out/ledger"

# Subcommand -> the module with its function of the same name, and its help.
SUBCOMMANDS = {
    "plan": ("overview", "check a study and show its runs: done, missing, expected time"),
    "run": ("runs", "run what is missing"),
    "retry": ("runs", "run the failed runs again"),
    "status": ("overview", "what is done, failed, in conflict or damaged"),
    "report": ("results", "write tables, figures and one page for a study, a whole ledger, or a table of scores"),
    "export": ("results", "write all runs as CSV or Parquet, one row a run"),
    "prune": ("overview", "move what was cut off, is damaged or does not count to the ledger's trash"),
}


def add(commands: Any) -> None:  # noqa: ANN401  argparse hides the class
    """Add the command and its subcommands to the parser's ``commands``."""
    parser = commands.add_parser(
        "study",
        help="compare methods over tasks and restarts: plan, run, status, retry, report, export, prune",
        description=(
            "A study is a TOML file: tasks x methods x restarts, and settings. Runs are kept in a ledger and never "
            "repeated: ask for more restarts, and only the new ones run."
        ),
    )
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    made = {}
    for name, (_, text) in SUBCOMMANDS.items():
        made[name] = steps.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        made[name].set_defaults(parser=made[name])
        made[name].add_argument("--ledger", default=LEDGER, metavar="DIR", help="where runs are (default: %(default)s)")
    for name in ("plan", "run", "retry"):
        _add_file(made[name])
    for name in ("status", "export", "report"):
        _add_file(made[name], nargs="?")
    made["prune"].add_argument(
        "--not-in", dest="file", metavar="FILE", help="also every run that this study does not ask for"
    )
    _add_changes(made["prune"])
    for name in ("plan", "run", "export"):
        made[name].add_argument(
            "--known",
            nargs="+",
            action="extend",
            default=[],
            metavar="CSV",
            help="tables of earlier exports: runs that ended there count as done, and are exported again",
        )
    made["run"].add_argument(
        "--pilot", action="store_true", help="only the first restart of each cell, to see how long it takes"
    )
    _add_width(made["run"])
    for name in ("run", "retry"):
        _add_executor(made[name])
    made["export"].add_argument("--output", default="runs.csv", metavar="FILE", help="ends in .csv or .parquet")
    made["prune"].add_argument("--yes", action="store_true", help="do it; without it only list")
    _add_report(made["report"])


def run(args: argparse.Namespace) -> int:
    """Run the subcommand."""
    module, _ = SUBCOMMANDS[args.step]
    return int(getattr(importlib.import_module(f"mixout.cli.study.{module}"), args.step)(args))


def _add_file(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="study file, or the name of one that comes with mixout", nargs=nargs
    )
    _add_changes(parser)


def _add_changes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--restarts",
        type=int,
        metavar="N",
        help="runs of each cell; default: as the study says, and of what is shown all that are there",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="shared settings other than the study's, e.g. model=minilm train_size=500 data_dir=glue",
    )


def _add_executor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--executor", choices=("local", "ray"), help="this machine (default), or a Ray cluster")
    parser.add_argument("--workers", type=int, metavar="N", help="runs at a time, each in a process of its own")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="of a running cluster, or 'auto'")
    parser.add_argument("--cpus-per-run", type=float, metavar="X", help="cores for each run, with ray")
    parser.add_argument("--gpus-per-run", type=float, metavar="X", help="GPUs for each run, with ray; also fractions")
    parser.add_argument(
        "--keep",
        choices=("no", "best", "all"),
        default="no",
        help="trained models in the ledger: none, of each cell the best one, or all (default: %(default)s)",
    )
    parser.add_argument(
        "--retries", type=int, default=1, metavar="N", help="new attempts of a run that raises (default: %(default)s)"
    )


def _add_width(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--until-width",
        type=float,
        metavar="W",
        help="add batches of restarts until every difference from the baseline is known to an interval of W points",
    )
    parser.add_argument(
        "--looks", type=int, default=5, metavar="N", help="most batches, with --until-width (default: %(default)s)"
    )


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scores", metavar="CSV", help="a table of scores instead: task, method, restart, score")
    parser.add_argument(
        "--direction", choices=("higher", "lower"), help="which scores of the table are better (default: higher)"
    )
    parser.add_argument("--unit", choices=("percent", "fraction"), help="of the table's scores; default: as they look")
    parser.add_argument(
        "--margin", type=float, default=1.0, metavar="POINTS", help="within which methods are as good (default: 1)"
    )
    parser.add_argument("--output-dir", default="report", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--baseline", metavar="LABEL", help="method that the others are compared with")
    parser.add_argument("--title", help="default: the study's name")
