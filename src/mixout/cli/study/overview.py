"""``mixout study plan``, ``status`` and ``prune``: what is to be run, and what the ledger holds."""

from __future__ import annotations

import argparse
import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from mixout._names import count
from mixout.cli.lines import aligned
from mixout.cli.study.runs import asked, check_no_file, command, declared, no_runs
from mixout.errors import InputError
from mixout.methods.text import reaches
from mixout.study.analysis.restarts import fewest_restarts
from mixout.study.analysis.runs import Run, grouped, text_of
from mixout.study.analysis.stats import smallest_p
from mixout.study.analysis.words import in_words
from mixout.study.grid import RATE, Axis, Clock, Study, wanted
from mixout.study.identity import PLACES, WATCHED, Inputs, Planned
from mixout.study.ledger import Contents, Ledger, not_writable
from mixout.study.reporting import best_again, located

_STATES = ("done", "failed", "missing")


def plan(args: argparse.Namespace) -> int:
    """Show the runs of a study, and how long the missing ones will take."""
    study = declared(args)
    contents = Ledger(args.ledger).read()
    inputs = Inputs()
    runs = wanted(study, study.runs(inputs), contents)
    left, failed = ([run for run in runs if _state(run, contents) == state] for state in ("missing", "failed"))
    clock = Clock.of(runs, contents)
    sizes = [(len(study.tasks), "task"), (len(study.methods), "method")]
    factors = [f"{len(values)} of {name}" for name, values in study.factors.items()]
    product = [*(count(*size) for size in sizes), *factors, count(study.restarts, "restart")]
    equals = " =" if study.rate is None else ", of"  # a search leaves some out
    print(f"{study.name}: {count(len(runs), 'run')}{equals} {' x '.join(product)}\n")
    print(_table(runs, contents, clock))
    seconds = clock.expect(left)
    print()
    if not left:
        print("nothing is missing" if not failed else "no other run is missing")
    elif seconds is None:
        print(
            f"{len(left)} to run. How long that takes is not known yet. This runs one restart of each cell:\n"
            f"  {command('run', args)} --pilot"
        )
    else:
        print(f"{len(left)} to run, about {in_words(seconds)} one after the other")
    if failed:
        print(f"{len(failed)} failed; try again: {command('retry', args)}")
    if study.rate is not None and left:
        print("the restarts that are compared follow at the best rate of each method, once the search has ended")
    reach_notes = dict.fromkeys(line for run in runs for line in reaches(run.settings.methods))
    notes = *_why_missing(left, contents), *contents.remarks(), *_shows_nothing(study), *_equal(runs, inputs)
    for line in (*notes, *reach_notes):
        print(line)
    return 0


def _shows_nothing(study: Study) -> list[str]:
    """A note if the study has too few restarts to show any difference."""
    searched = study.search if study.rate is not None else 0  # restarts and rates that are not compared
    factors = [values for name, values in study.factors.items() if not searched or name != RATE]
    family = sum(_compared(study, task) - 1 for task in study.tasks) * math.prod(map(len, factors))
    judged, needed = study.restarts - searched, fewest_restarts(max(1, family))
    if family < 1 or judged >= needed:
        return []
    return [
        f"with {count(judged, 'restart')} the test of {count(family, 'comparison')} cannot show a "
        f"difference, however large (the p-value is at least {smallest_p(judged):.2g} before correction); with "
        f"{needed} it can" + f", so set restarts to {needed + searched}" * bool(searched)
    ]


def _equal(runs: Sequence[Planned], inputs: Inputs) -> list[str]:
    """A note on methods that are plain fine-tuning of their model under two names."""
    plain = [run for run in runs if run.restart == 0 and inputs.is_plain(run.settings)]
    twins = grouped(plain, lambda run: (run.task, replace(run.settings, method="plain"))).values()
    labels = dict.fromkeys(
        " and ".join(dict.fromkeys(run.method for run in group)) for group in twins if len(group) > 1
    )
    return [f"{text} are the same here: the model's own dropouts have that p; one of them is enough" for text in labels]


def _compared(study: Study, task: Axis) -> int:
    """How many methods a report compares: models between start and end (``interpolate``) count as methods."""
    settings = ({**study.settings, **task.settings, **method.settings} for method in study.methods)
    points = (values.get("interpolate", ()) for values in settings)
    return sum(1 + len({*ts} - {1}) for ts in points)


def _why_missing(left: Sequence[Planned], contents: Contents) -> list[str]:
    """For missing runs that the ledger holds under the same names, but made from something else: what differs."""
    settings_by_place = {(entry.run.key, entry.run.restart): entry.settings for entry in contents.entries.values()}
    reasons: Counter[str] = Counter()
    for run in left:
        old = settings_by_place.get((run.key, run.restart))
        if old is None:
            continue
        new = {name: text_of(value) for name, value in asdict(run.settings).items() if name not in (*WATCHED, *PLACES)}
        changed = [name for name, value in new.items() if name in old and text_of(old[name]) != value]
        reasons[f"other {', '.join(changed)}" if changed else "other data, weights or version of mixout"] += 1
    return [f"{number} of these are in the ledger with {reason}" for reason, number in reasons.items()]


def status(args: argparse.Namespace) -> int:
    """Show what a ledger holds, of one study or in total."""
    contents = Ledger(args.ledger).read()
    runs: Sequence[Planned | Run]
    if args.file is None:
        check_no_file(args)
        entries = [*contents.entries.values()]
        runs = named = [run for run in contents.runs() if not run.between]
        shown = {run.id for run in named}
    else:
        runs = planned = wanted(*asked(args, contents), contents)
        entries, named = located(planned, contents), contents.of(planned)
        shown = {entry.run.id for _, entry in contents.pairs(planned)}
    print(_table(runs, contents) if runs else no_runs(args))
    for id, entry in contents.entries.items():
        if id in shown and entry.record is None:
            print(f"\nfailed after {count(entry.attempts, 'attempt')}: {entry.run}: {entry.run.error}")
            print(f"  traceback: {entry.folder}; try again: {command('retry', args)}")
    prune = f"mixout study prune --ledger {shlex.quote(args.ledger)} --yes"
    for id, entries in contents.conflicts.items():
        if id in shown:
            scores = ", ".join(f"{entry.run.metric} {entry.run.score:.4f}" for entry in entries)
            print(f"\nconflict: {entries[0].run} came out in {len(entries)} ways: {scores}")
            print(f"  the first counts, since it was finished first; {prune} moves the others to the trash")
            print("\n".join(f"  {entry.folder}, {entry.origin}" for entry in entries))
    for folder, why in contents.damaged.items():
        print(f"\ndamaged: {folder}: {why}\n  copy it again, or move it to the trash: {prune}")
    for folder, why in contents.newer.items():
        print(f"\nnewer: {folder}: {why}\n  read it with that version")
    for folder in contents.foreign:
        print(f"\nno run: {folder}; it is left alone")
    if contents.leftovers:
        folders = count(len(contents.leftovers), "folder")
        print(f"\n{folders} of runs that were cut off, or are being made by another process")
    if again := best_again(named, entries):
        print("\n" + "\n".join(again))
    return 0


def prune(args: argparse.Namespace) -> int:
    """List folders that were cut off, are damaged or do not count; with ``--yes`` move them to the trash."""
    if not Path(args.ledger).is_dir():
        raise InputError(f"expected --ledger as a folder with runs, got {args.ledger!r}, which does not exist")
    ledger = Ledger(args.ledger)
    contents, not_asked = ledger.read(), []
    if args.file is None:
        check_no_file(args)
    else:
        asked_ids = {id for run in asked(args, contents)[1] for id in (run.id, *run.former)}
        not_asked = [entry for id, entry in contents.entries.items() if id not in asked_ids]
    ids = {folder: folder.name.partition(".")[0] for folder in contents.leftovers}
    try:
        # Held until all is moved, so that nobody begins such a run meanwhile; None of what another process is making.
        locks = {id: ledger.claim(id) for id in {*ids.values()}}
    except InputError:
        if args.yes:
            raise
        locks = {}  # a list is made of a ledger that cannot be written to, too
    taken = {id for id, lock in locks.items() if lock is None}
    useless = {folder: "cut off, or failed and ended elsewhere" for folder, id in ids.items() if id not in taken}
    useless |= {folder: f"damaged: {why}" for folder, why in contents.damaged.items()}
    for entries in contents.conflicts.values():
        useless |= {entry.folder: f"another result of {entries[0].folder.name}" for entry in entries[1:]}
    useless |= {entry.folder: f"not in {args.file}: {entry.run.task}, {entry.run.method}" for entry in not_asked}
    for folder, why in useless.items():
        print(f"{folder}: {why}")
        if args.yes:
            try:
                ledger.discard(folder)
            except OSError as error:
                raise not_writable(ledger.folder, error) from error
    for lock in locks.values():
        if lock is not None:
            ledger.release(lock)
    done = f"moved to {ledger.folder / 'trash'}" if args.yes else "would be moved to the trash; do so with --yes"
    print(f"{count(len(useless), 'folder')} {done if useless else 'to remove'}")
    return 0


def _table(runs: Sequence[Planned | Run], contents: Contents, clock: Clock | None = None) -> str:
    """One row for each cell: its runs by state, and with a clock how long the missing ones take."""
    rows = [["task", "method", "runs", *_STATES, *(["time"] if clock else [])]]
    for (task, method), members in grouped(runs, lambda run: (run.task, run.label)).items():
        states = [_state(run, contents) for run in members]
        row = [task, method, str(len(members)), *(str(states.count(state)) for state in _STATES)]
        if clock:
            pairs = zip(members, states, strict=True)
            seconds = clock.expect([run for run, state in pairs if isinstance(run, Planned) and state == "missing"])
            row.append("?" if seconds is None else in_words(seconds))
        rows.append(row)
    return aligned(rows)


def _state(run: Planned | Run, contents: Contents) -> str:
    entry = contents.entry(run) if isinstance(run, Planned) else contents.entries.get(run.id)
    return "missing" if entry is None else "failed" if entry.record is None else "done"
