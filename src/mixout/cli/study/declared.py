"""The study that the command line describes: a file, with the changes that options make to it."""

from __future__ import annotations

import argparse
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import replace

from mixout.errors import InputError
from mixout.study.analysis.runs import Run
from mixout.study.analysis.table import read_scores
from mixout.study.declaration import read
from mixout.study.grid import Study, with_all_restarts
from mixout.study.identity import Inputs, Planned
from mixout.study.ledger import Contents


def declared(args: argparse.Namespace) -> Study:
    """The study of ``FILE``, ``--restarts`` and ``--set``; InputError if it is not valid."""
    study = read(args.file)
    if args.restarts is not None:
        study = replace(study, restarts=args.restarts)
    return study.with_settings(dict(map(_setting, args.set)))


def asked(args: argparse.Namespace, contents: Contents) -> tuple[Study, list[Planned]]:
    """The study, with all restarts that the ledger holds unless ``--restarts`` is given, and its runs."""
    study, inputs = declared(args), Inputs()
    try:
        if args.restarts is None:
            study = with_all_restarts(study, contents, inputs)
        return study, study.runs(inputs)
    except InputError as error:
        absent = "no such" in str(error) or "exists" in str(error)
        if args.step not in ("retry", "prune") and contents.entries and absent:
            raise InputError(
                f"{error}. Without data and model: leave FILE out, for all that the ledger holds"
            ) from error
        raise


def check_no_file(args: argparse.Namespace) -> None:
    """Refuse options that change a study if no study is named."""
    if args.restarts is not None or args.set:
        raise InputError("expected --restarts and --set only with a study file, got none; name the FILE")


def known(args: argparse.Namespace, planned: Sequence[Planned]) -> dict[str, Run]:
    """The runs of the tables that ``--known`` names, by identity, without those that failed.

    A run that failed on one machine may end on another, so it is run again. A run that was exported under an identity
    of 0.1 is found under that of ``planned``.

    Raises:
        InputError: a table cannot be read, a run has no identity or another metric than planned, or two tables disagree
            on one.
    """
    metrics = {run.id: run.metric for run in planned}
    current_ids = {id: run.id for run in planned for id in run.former}
    runs: dict[str, Run] = {}
    for path in args.known:
        for run in read_scores(path):
            name = f"{run.task}, {run.method}, restart {run.restart}"
            if not run.id:
                raise InputError(f"expected {path} as mixout study export writes it, got {name} without an id")
            if run.status == "failed":
                continue
            id = current_ids.get(run.id, run.id)
            if run.metric != (metric := metrics.get(id, run.metric)):
                raise InputError(
                    f"expected {metric} as the metric in {path}, got {run.metric} of {name}; leave the table out, or "
                    f"export it again with --set metric={metric}"
                )
            # nan, the score of a run that diverged, differs from itself.
            if id in runs and repr(runs[id].score) != repr(run.score):
                raise InputError(
                    f"expected one score of each run, got {runs[id].score} and, in {path}, {run.score} of {name}; "
                    f"leave one of the tables out"
                )
            runs.setdefault(id, run)
    return runs


def options_of(args: argparse.Namespace, restarts: int | None) -> list[str]:
    """The options that name a study's ledger and runs."""
    restart_options = [] if restarts is None else ["--restarts", str(restarts)]
    return [*restart_options, "--ledger", args.ledger, *(["--set", *args.set] if args.set else [])]


def command(step: str, args: argparse.Namespace) -> str:
    """The command to call next, on the same study and ledger."""
    tables = ["--known", *args.known] if getattr(args, "known", []) and step in ("plan", "run", "export") else []
    return shlex.join(["mixout", "study", step, args.file or "FILE", *options_of(args, args.restarts), *tables])


def _setting(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"expected --set NAME=VALUE, got {text!r}")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        # Text without quotation marks, which a shell would remove anyway.
        return name, value
