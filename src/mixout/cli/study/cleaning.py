"""``mixout study prune``: what is of no use in a ledger is listed, and with ``--yes`` removed."""

from __future__ import annotations

import argparse

from mixout.cli.study.declared import planned
from mixout.study.ledger import Ledger, remove


def prune(args: argparse.Namespace) -> int:
    """List, and with ``--yes`` remove, what was cut off, is damaged or does not count, or is not in FILE."""
    ledger, asked = Ledger(args.ledger), planned(args)
    # Not while a study runs: its work would look like a leftover.
    with ledger.locked():
        contents = ledger.read()
        doomed = {folder: "cut off" for folder in contents.leftovers}
        doomed |= {folder: f"damaged: {why}" for folder, why in contents.damaged.items()}
        for entries in contents.conflicts.values():
            doomed |= {entry.folder: f"another result of {entries[0].folder.name}" for entry in entries[1:]}
        if asked is not None:
            wanted = {run.id for run in asked}
            others = [entry for id, entry in contents.entries.items() if id not in wanted]
            doomed |= {entry.folder: f"not in {args.file}: {entry.run.task}, {entry.run.method}" for entry in others}
        for folder, why in doomed.items():
            print(f"{folder}: {why}")
            if args.yes:
                remove(folder)
    done = "removed" if args.yes or not doomed else "would be removed; do so with --yes"
    print(f"{len(doomed)} folders {done}")
    return 0
