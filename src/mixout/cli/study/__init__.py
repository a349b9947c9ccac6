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
    parser.set_defaults(run=run)
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, (_, text) in SUBCOMMANDS.items():
        step = steps.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        step.set_defaults(parser=step)
        step.add_argument("--ledger", default=LEDGER, metavar="DIR", help="folder of the runs (default: %(default)s)")

    def option(names: str, *flags: str, **options: Any) -> None:  # noqa: ANN401  as argparse takes them
        for name in names.split():
            steps.choices[name].add_argument(*flags, **options)

    study = "study file, or the name of one that comes with mixout"
    option("plan run retry", "file", metavar="FILE", help=study)
    option("status export report", "file", metavar="FILE", help=study, nargs="?")
    help = "also every run that this study does not ask for"
    option("prune", "--not-in", dest="file", metavar="FILE", help=help)
    help = "runs of each method on each task; default: the file's; for status, report, export and prune all there are"
    option(" ".join(SUBCOMMANDS), "--restarts", type=int, metavar="N", help=help)
    help = "settings in place of those under [settings] in the file, e.g. model=minilm train_size=500"
    option(" ".join(SUBCOMMANDS), "--set", metavar="NAME=VALUE", help=help, nargs="+", action="extend", default=[])
    help = "run only the first restart of each method on each task, to see how long it takes"
    option("run", "--pilot", action="store_true", help=help)
    help = "add batches of restarts until the interval of every difference from the baseline is at most W points wide"
    option("run", "--until-width", type=float, metavar="W", help=help)
    help = "add at most N batches, with --until-width (default: %(default)s)"
    option("run", "--looks", type=int, default=5, metavar="N", help=help)
    executing = "run retry"
    option(executing, "--workers", type=int, metavar="N", help="runs at a time, each in a process of its own")
    help = "run on this Ray cluster; 'auto' finds the one of this machine"
    option(executing, "--ray-address", metavar="ADDRESS", help=help)
    option(executing, "--cpus-per-run", type=float, metavar="X", help="cores for each run, on Ray")
    option(executing, "--gpus-per-run", type=float, metavar="X", help="GPUs for each run, on Ray; may be a fraction")
    help = "keep no trained model, that of the best run of each method, task and factor, or all (default: %(default)s)"
    option(executing, "--keep", choices=("no", "best", "all"), default="no", help=help)
    help = "new attempts of a run that raises (default: %(default)s)"
    option(executing, "--retries", type=int, default=1, metavar="N", help=help)
    option("export", "--output", metavar="FILE", help=".csv or .parquet; default: runs.csv, if there is none yet")
    option("prune", "--yes", action="store_true", help="move them; without --yes they are only listed")
    help = "report on a table of scores, with the columns task, method, restart, score"
    option("report", "--scores", metavar="CSV", help=help)
    help = "whether higher or lower scores of the table are better (default: higher)"
    option("report", "--direction", choices=("higher", "lower"), help=help)
    help = "unit of the table's scores; default: guessed from them"
    option("report", "--unit", choices=("percent", "fraction"), help=help)
    help = "methods within this difference count as equally good (default: 1)"
    option("report", "--margin", type=float, default=1.0, metavar="POINTS", help=help)
    option("report", "--output-dir", default="report", metavar="DIR", help="default: %(default)s")
    option("report", "--baseline", metavar="LABEL", help="method that the others are compared with")
    option("report", "--title", help="default: the study's title, or its name")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand."""
    return int(getattr(importlib.import_module(f"mixout.cli.study.{SUBCOMMANDS[args.step][0]}"), args.step)(args))
