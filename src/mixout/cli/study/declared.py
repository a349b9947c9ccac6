"""The study that the command line means: a file, with the changes that options make to it."""

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
from mixout.study.grid import Planned, Study


def declared(args: argparse.Namespace) -> Study:
    """The study of ``FILE``, ``--restarts`` and ``--set``; InputError where it cannot be."""
    study = read(args.file)
    if args.restarts is not None:
        study = replace(study, restarts=args.restarts)
    return study.with_settings(dict(map(_setting, args.set)))


def check_no_file(args: argparse.Namespace) -> None:
    """Refuse what changes a study where none is named."""
    if args.restarts is not None or args.set:
        raise InputError("expected --restarts and --set only with a study file, got none; name the FILE")


def known(args: argparse.Namespace, planned: Sequence[Planned]) -> dict[str, Run]:
    """The runs of the tables that ``--known`` names, by identity, without those that failed.

    What failed on one machine may not on another, so it is run again. A run that was exported under an identity of 0.1
    is found under that of ``planned``.

    Raises:
        InputError: a table cannot be read, a run has no identity, or two tables disagree on one.
    """
    now = {id: run.id for run in planned for id in run.former}
    found: dict[str, Run] = {}
    for path in args.known:
        for run in read_scores(path):
            name = f"{run.task}, {run.method}, restart {run.restart}"
            if not run.id:
                raise InputError(f"expected {path} as mixout study export writes it, got {name} without an id")
            if run.status == "failed":
                continue
            id = now.get(run.id, run.id)
            # nan, the score of a run that diverged, differs from itself.
            if id in found and repr(found[id].score) != repr(run.score):
                raise InputError(
                    f"expected one score of each run, got {found[id].score} and, in {path}, {run.score} of {name}; "
                    f"leave one of the tables out"
                )
            found.setdefault(id, run)
    return found


def command(step: str, args: argparse.Namespace) -> str:
    """What to call next, on the same study and ledger."""
    settings = ["--set", *args.set] if args.set else []
    restarts = [] if args.restarts is None else ["--restarts", str(args.restarts)]
    tables = ["--known", *args.known] if getattr(args, "known", []) and step in ("plan", "run", "export") else []
    options = ["--ledger", args.ledger, *restarts, *settings, *tables]
    return shlex.join(["mixout", "study", step, args.file or "FILE", *options])


def _setting(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"expected --set NAME=VALUE, got {text!r}")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        # A text without quotation marks, which a shell would take away anyway.
        return name, value
