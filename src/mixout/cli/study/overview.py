"""``mixout study plan`` and ``status``: what there is to run, and what there is."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Collection, Sequence

from mixout.cli.study.declared import declared, known, planned
from mixout.study.analysis.runs import Run
from mixout.study.grid import Planned
from mixout.study.ledger import Contents, Ledger
from mixout.study.progress import Clock, in_words
from mixout.study.runner import missing

_STATES = ("done", "failed", "missing")


def plan(args: argparse.Namespace) -> int:
    """Show the runs of a study, and how long those that are missing will take."""
    study = declared(args)
    runs = study.runs()
    contents = Ledger(args.ledger).read()
    done = known(args)
    left = [run for run in missing(runs, contents) if run.id not in done]
    clock = Clock.of(runs, contents)
    sizes = [(len(study.tasks), "task"), (len(study.methods), "method")]
    factors = [f"{len(values)} of {name}" for name, values in study.factors.items()]
    product = [*(_count(*size) for size in sizes), *factors, _count(study.restarts, "restart")]
    print(f"{study.name}: {_count(len(runs), 'run')} = {' x '.join(product)}\n")
    print(_table(runs, contents, clock, done=done))
    seconds = clock.expect(left)
    if not left:
        print("\nnothing is missing")
    elif seconds is None:
        print(
            f"\n{len(left)} to run. How long that takes is not known yet: "
            f"'{_command('run', args)} --pilot' runs one restart of each cell"
        )
    else:
        print(f"\n{len(left)} to run, about {in_words(seconds)} one after the other")
    return 0


def status(args: argparse.Namespace) -> int:
    """Show what a ledger holds, of one study or at all."""
    ledger = Ledger(args.ledger)
    contents = ledger.read()
    asked = planned(args)
    runs = ledger.runs() if asked is None else asked
    print(_table(runs, contents) if runs else f"no runs in {args.ledger}")
    shown = {run.id for run in runs}
    for id, entry in contents.entries.items():
        if id in shown and entry.record is None:
            print(f"\nfailed after {entry.attempts} attempts: {_name(entry.run)}: {entry.run.error}")
            print(f"  traceback: {entry.folder}; try again: {_command('retry', args)}")
    for id, entries in contents.conflicts.items():
        if id in shown:
            scores = ", ".join(f"{entry.run.metric} {entry.run.score:.4f}" for entry in entries)
            print(f"\nconflict: {_name(entries[0].run)} came out in {len(entries)} ways: {scores}")
            print("  the first counts, since it was finished first; mixout study prune removes the others")
            print("\n".join(f"  {entry.folder}" for entry in entries))
    for folder, why in contents.damaged.items():
        print(f"\ndamaged: {folder}: {why}\n  copy it again, or remove it: mixout study prune")
    if contents.leftovers:
        print(f"\n{len(contents.leftovers)} folders of runs that were cut off; a running study may be at work there")
    return 0


def _table(
    runs: Sequence[Planned] | Sequence[Run],
    contents: Contents,
    clock: Clock | None = None,
    *,
    done: Collection[str] = (),
) -> str:
    """One row a cell: its runs by state, and with a clock how long the missing ones take.

    Args:
        runs: of a study, or those that were run.
        contents: of the ledger.
        clock: knows how long runs take.
        done: identities of runs that ended elsewhere.
    """
    cells: dict[tuple[str, str], list[Planned | Run]] = {}
    for run in runs:
        factors = "".join(f", {name} {value}" for name, value in sorted(run.factors.items()))
        cells.setdefault((run.task, run.method + factors), []).append(run)
    rows = [["task", "method", "runs", *_STATES, *(["time"] if clock else [])]]
    for (task, method), members in cells.items():
        states = [_state(run.id, contents, done) for run in members]
        row = [task, method, str(len(members)), *(str(states.count(state)) for state in _STATES)]
        if clock:
            seconds = clock.expect(
                [
                    run
                    for run, state in zip(members, states, strict=True)
                    if isinstance(run, Planned) and state == "missing"
                ]
            )
            row.append("?" if seconds is None else in_words(seconds))
        rows.append(row)
    return aligned(rows)


def _state(id: str, contents: Contents, done: Collection[str]) -> str:
    entry = contents.entries.get(id)
    if id in done or (entry is not None and entry.record is not None):
        return "done"
    return "missing" if entry is None else "failed"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first two to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )


def _count(number: int, what: str) -> str:
    """As in "1 task", "2 tasks"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _command(step: str, args: argparse.Namespace) -> str:
    """What to call next, on the same study and ledger."""
    settings = ["--set", *args.set] if args.set else []
    restarts = [] if args.restarts is None else ["--restarts", str(args.restarts)]
    tables = ["--known", *args.known] if getattr(args, "known", []) else []
    options = ["--ledger", args.ledger, *restarts, *settings, *tables]
    return shlex.join(["mixout", "study", step, args.file or "FILE", *options])


def _name(run: Run) -> str:
    factors = "".join(f", {name} {value}" for name, value in run.factors.items())
    return f"{run.task}, {run.method}{factors}, restart {run.restart}"
