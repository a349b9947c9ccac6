"""What has been run: one folder a run, each of which appears whole or not at all.

::

    LEDGER/
      runs/<id>.<result>/     a run that ended: run.json (its place in the study) and record.json (what it did)
      runs/<id>/              a run that failed: run.json and failure.json (status, attempts, traceback)
      work/<id>/              a run that is being made, or was cut off
      lock                    held while a study runs

``id`` is the run's identity and ``result`` a hash of what came out, without clocks and machine. So ledgers of several
machines are merged by copying their ``runs`` together: equal results fall into one folder, and a run that came out
differently stands beside the other, a conflict. Of those the one that was finished first counts.

It runs nothing and computes no statistics.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mixout.errors import InputError
from mixout.finetune.disk import writing
from mixout.finetune.folder import CHECKPOINTS
from mixout.finetune.record import Record, sync_folder, write_atomically
from mixout.study.analysis.runs import Run
from mixout.study.entry import FAILURE_NAME, RUN_NAME, Entry, describe, read_ended, read_failed, result_of
from mixout.study.grid import Planned


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything that lies in a ledger.

    Args:
        entries: one for each run, by id.
        conflicts: id -> all its entries, where results differ; the first is the one that counts.
        damaged: folder -> what is wrong with it; such as a copy that was cut off.
        leftovers: folders of runs that were cut off, and what else is of no use.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    conflicts: dict[str, list[Entry]] = field(default_factory=dict)
    damaged: dict[Path, str] = field(default_factory=dict)
    leftovers: list[Path] = field(default_factory=list)

    def of(self, planned: Sequence[Planned]) -> list[Run]:
        """The runs that a study asks for, as far as they are there, under the names that the study gives them."""
        return [
            replace(self.entries[one.id].run, task=one.task, method=one.method, factors=one.factors)
            for one in planned
            if one.id in self.entries
        ]


class Ledger:
    """The runs in a folder, which need not exist yet.

    Args:
        folder: of the ledger.

    Raises:
        InputError: ``folder`` is a file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"expected a folder as the ledger, got the file {str(folder)!r}; choose another one")

    def runs(self) -> list[Run]:
        """Every run, also the failed ones, sorted by task, method, factors and restart."""
        found = [entry.run for entry in self.read().entries.values()]
        return sorted(found, key=lambda run: (run.task, run.method, sorted(run.factors.items()), run.restart))

    def read(self) -> Contents:
        """Everything that is there. What cannot be read is listed, never skipped in silence."""
        ended: dict[str, list[Entry]] = {}
        failed: dict[str, Entry] = {}
        contents = Contents(leftovers=_folders(self.folder / "work"))
        for folder in _folders(self.folder / "runs"):
            id, dot, _ = folder.name.partition(".")
            if not dot and not (folder / FAILURE_NAME).exists():
                contents.leftovers.append(folder)
                continue
            try:
                entry = read_ended(folder) if dot else read_failed(folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                contents.damaged[folder] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                continue
            if dot:
                ended.setdefault(id, []).append(entry)
            else:
                failed[id] = entry
        for id, entries in ended.items():
            entries.sort(key=lambda entry: (entry.record.finished_at if entry.record else "", entry.folder.name))
            contents.entries[id] = entries[0]
            if len(entries) > 1:
                contents.conflicts[id] = entries
        for id, entry in failed.items():
            if id in ended:
                contents.leftovers.append(entry.folder)
            contents.entries.setdefault(id, entry)
        return contents

    def work(self, run: Planned) -> Path:
        """Where this run is to be made; the folder need not exist."""
        return self.folder / "work" / run.id

    def commit(self, run: Planned, wall: float | None) -> Record:
        """Take over the run that lies finished in its work folder: a rename, before which nothing of it shows.

        Args:
            run: what was run.
            wall: seconds that it took; None where that is unknown.

        Raises:
            WriteError: the disk is full.
        """
        place = self.work(run)
        record = Record.read(place)
        target = self.folder / "runs" / f"{run.id}.{result_of(record)[:12]}"
        with writing(self.folder):
            remove(place / CHECKPOINTS)
            write_atomically(place / RUN_NAME, describe(run, wall))
            target.parent.mkdir(exist_ok=True)
            # The same result, but damaged: what can be read is never run again.
            remove(target)
            place.rename(target)
            sync_folder(target.parent)
            remove(self.folder / "runs" / run.id)
        return record

    def fail(self, run: Planned, attempts: int, traceback: str) -> None:
        """Record that a run failed for good; a later success replaces it.

        Raises:
            WriteError: the disk is full.
        """
        place = self.folder / "runs" / run.id
        failure = {"status": "failed", "attempts": attempts, "traceback": traceback}
        with writing(self.folder):
            place.mkdir(parents=True, exist_ok=True)
            write_atomically(place / RUN_NAME, describe(run, None))
            write_atomically(place / FAILURE_NAME, json.dumps(failure, indent=1) + "\n")
            remove(self.work(run))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time runs into a ledger; the lock goes with the process, however it ends.

        Raises:
            InputError: another one does, or the folder cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = (self.folder / "lock").open("a")
        except OSError as error:
            raise InputError(f"expected a ledger that can be written to, got {str(self.folder)!r}: {error}") from error
        with handle:
            try:
                _lock(handle.fileno())
            except BlockingIOError as error:
                raise InputError(
                    f"expected a ledger that nobody else runs into, got {str(self.folder)!r}, which another process "
                    f"uses; wait for it, or choose another ledger and copy the runs together afterwards"
                ) from error
            yield


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has no locks that end with the process
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
