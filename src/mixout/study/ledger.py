"""The runs that were made: one folder for each run, which appears whole or not at all.

::

    LEDGER/
      runs/<id>.<result>/     a run that ended: run.json (its place in the study), record.json (what it did), and
                              perhaps the trained model
      runs/<id>/              a run that failed: run.json and failure.json (status, attempts, traceback)
      work/<id>/              a run that is being made, or was cut off
      locks/<id>              held by the process that makes the run
      trash/<time>/           what was removed

``id`` is the run's identity and ``result`` a hash of what came out, without clocks and machine. So ledgers of several
machines are merged by copying their ``runs`` together: equal results fall into one folder, and different results of a
run lie side by side, as a conflict. Of these the one that finished first counts. Several processes, also of several
machines that share the folder, may work on one ledger: each run is made by the process that holds its lock.

It runs nothing and computes no statistics.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from mixout._names import count
from mixout.errors import InputError
from mixout.finetune.folder import CHECKPOINTS
from mixout.finetune.record import RECORD_NAME, sync_folder, write_atomically, writing
from mixout.finetune.settings import AUTO
from mixout.study.analysis.runs import Run, grouped, if_one
from mixout.study.entry import FAILURE_NAME, RUN_NAME, Entry, NewerError, describe, read_entry, result_of, told_apart
from mixout.study.identity import Planned

_RUN = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{12})?")
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything that lies in a ledger."""

    entries: dict[str, Entry] = field(default_factory=dict)  # one for each run, by id
    # id -> all its entries, where results differ; the first is the one that counts
    conflicts: dict[str, list[Entry]] = field(default_factory=dict)
    # folder -> what is wrong with it; such as a copy that was cut off
    damaged: dict[Path, str] = field(default_factory=dict)
    # folder -> what a newer mixout wrote there, which this one does not know
    newer: dict[Path, str] = field(default_factory=dict)
    # folders of runs that were cut off, or failed here and ended elsewhere
    leftovers: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)  # folders that are no runs

    def entry(self, planned: Planned) -> Entry | None:
        """The entry of a run, also under an identity that 0.1 gave it; None if the ledger lacks it."""
        return next((self.entries[id] for id in (planned.id, *planned.former) if id in self.entries), None)

    def pairs(self, planned: Sequence[Planned]) -> list[tuple[Planned, Entry]]:
        """The planned runs that the ledger holds, each with its entry."""
        return [(run, entry) for run in planned if (entry := self.entry(run)) is not None]

    def of(self, planned: Sequence[Planned]) -> list[Run]:
        """The planned runs that the ledger holds, under the names that the study gives them.

        Each is followed by the models between start and end that the study asks for.
        """
        seen = [(entry, entry.seen_as(plan), plan.settings.interpolate) for plan, entry in self.pairs(planned)]
        return [one for entry, run, ts in seen for one in (run, *entry.between(run, ts))]

    def runs(self, metric: str | None = None) -> list[Run]:
        """Every run, also the failed ones, sorted by task, method, factors and restart; by ``metric`` if it is given.

        Each is followed by the models between start and end that its own settings ask for.
        If runs have the same place, as in two studies with different settings, the settings that differ become factors.
        A label that is shared by several methods is followed by the method.
        """
        methods = grouped(self.entries.values(), lambda entry: entry.run.method)
        shared = {label for label, group in methods.items() if len({entry.settings["method"] for entry in group}) > 1}
        traits = told_apart(list(self.entries.values()))
        for label in [label for label in methods if label.split(",")[0] == AUTO]:
            shared.discard(label)  # one rule, which chooses by the rows of each run
            for entry in methods[label]:
                traits[entry.run.id].pop("method", None)
        runs = [
            replace(run, method=f"{run.method} ({traits[run.id]['method']})") if run.method in shared else run
            for run in self._by_one_metric(metric)
        ]
        names: set[str] = set()
        for group in grouped(runs, lambda run: (run.key, run.restart)).values():
            group.sort(key=lambda run: run.status == "failed")
            for index, run in enumerate(group):
                if traits[run.id] in [traits[earlier.id] for earlier in group[:index]]:  # e.g. failed on other data
                    traits[run.id]["inputs"] = run.id[:8]
                names |= {name for name, _ in traits[group[0].id].items() ^ traits[run.id].items()}
        factors = {id: {name: texts[name] for name in sorted(names) if name in texts} for id, texts in traits.items()}
        runs = [replace(run, factors=factors[run.id] | run.factors) for run in runs]
        runs.sort(key=lambda run: (run.key, run.restart))
        pairs = [(self.entries[run.id], run) for run in runs]
        return [one for entry, run in pairs for one in (run, *entry.between(run, entry.settings["interpolate"]))]

    def _by_one_metric(self, asked: str | None) -> list[Run]:
        """All runs; those of one task by one metric: the one most runs use, among those for which all have scores."""
        runs = []
        for entries in grouped(self.entries.values(), lambda entry: entry.run.task).values():
            counts = Counter(entry.run.metric for entry in entries)
            metrics = [entry.metrics for entry in entries if entry.record is not None]
            usable = (name for name, _ in counts.most_common() if all(name in names for names in metrics))
            if asked is not None and (lacking := [names for names in metrics if asked not in names]):
                raise InputError(
                    f"expected a metric that all runs of {entries[0].run.task} can be compared by, got {asked!r}; they "
                    f"have {', '.join(lacking[0])}"
                )
            metric = asked or next(usable, None)
            chances = {_data(e): e.run.chance for e in entries if e.run.metric == metric and e.run.chance is not None}
            chance = if_one(chances.values())
            for entry in entries:
                has_metric = metric is None or entry.run.metric == metric
                runs.append(entry.run if has_metric else entry.by(str(metric), chances.get(_data(entry), chance)))
        return runs

    def remarks(self) -> list[str]:
        """Sentences on the ledger that a reader of results has to know."""
        lines = [
            f"{entries[0].run} came out in {len(entries)} ways; the one that was finished first counts. They were made "
            f"with {'; '.join(dict.fromkeys(entry.origin for entry in entries))}."
            for entries in self.conflicts.values()
        ]
        unread = ((self.damaged, "damaged"), (self.newer, "of a newer mixout"))
        return lines + [f"{count(len(folders), 'run')} not read: {why}." for folders, why in unread if folders]


class Ledger:
    """The runs in a folder, which need not exist yet; a file there is an :class:`mixout.errors.InputError`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"expected a folder as the ledger, got the file {str(folder)!r}; choose another one")

    def runs(self) -> list[Run]:
        """Every run, see :meth:`Contents.runs`."""
        return self.read().runs()

    def read(self) -> Contents:
        """Everything that is there. What cannot be read is listed, never skipped in silence."""
        loaded = []
        contents = Contents(leftovers=_folders(self.folder / "work"))
        for folder in _folders(self.folder / "runs"):
            if not _RUN.fullmatch(folder.name):
                contents.foreign.append(folder)
            elif "." not in folder.name and not (folder / FAILURE_NAME).exists():
                contents.leftovers.append(folder)
            else:
                try:
                    loaded.append(read_entry(folder))
                except NewerError as error:
                    contents.newer[folder] = str(error)
                except _UNREADABLE as error:
                    contents.damaged[folder] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        for id, entries in grouped(loaded, lambda entry: entry.run.id).items():
            ended = [entry for entry in entries if entry.record is not None]
            failed = [entry for entry in entries if entry.record is None]
            ended.sort(key=lambda entry: (entry.record.finished_at if entry.record else "", entry.folder.name))
            contents.entries[id] = (ended or failed)[0]
            if len(ended) > 1:
                contents.conflicts[id] = ended
            contents.leftovers.extend(entry.folder for entry in failed if ended)
        return contents

    def find(self, run: Planned) -> Entry | None:
        """The run, if it has ended by now, also if another process has made it since the ledger was read."""
        for id in (run.id, *run.former):
            for folder in (self.folder / "runs").glob(f"{id}.*"):
                with suppress(*_UNREADABLE):  # a damaged run is made again
                    return read_entry(folder)
        return None

    def work(self, run: Planned) -> Path:
        """Where this run is to be made; the folder need not exist."""
        return self.folder / "work" / run.id

    def claim(self, id: str) -> FileLock | None:
        """The lock of a run, now held; None while another process makes the run. It is released with the process.

        Raises:
            InputError: the folder cannot be written to.
        """
        lock = FileLock(self.folder / "locks" / id)
        try:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            return None
        except OSError as error:
            raise not_writable(self.folder, error) from error
        return lock

    def release(self, lock: FileLock) -> None:
        """Release a lock. Its file is deleted first: a process that has it open sees the run as it is now."""
        with suppress(OSError):  # Windows does not delete open files
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()

    def commit(self, run: Planned, wall: float | None) -> Entry:
        """Move a finished run from its work folder to the ledger, by a rename, so that it appears whole.

        ``wall`` is the seconds that it took, None where that is unknown. WriteError where the disk is full.
        """
        work_dir = self.work(run)
        values = json.loads((work_dir / RECORD_NAME).read_text(encoding="utf-8"))
        target = self.folder / "runs" / f"{run.id}.{result_of(values)[:12]}"
        with writing(self.folder):
            if (work_dir / CHECKPOINTS).exists():
                shutil.rmtree(work_dir / CHECKPOINTS)
            write_atomically(work_dir / RUN_NAME, describe(run, wall))
            target.parent.mkdir(exist_ok=True)
            # A damaged copy of the same result; a readable one would not have been run again.
            self.discard(target)
            work_dir.rename(target)
            sync_folder(target.parent)
            self.discard(self.folder / "runs" / run.id)
        return read_entry(target)

    def fail(self, run: Planned, attempts: int, traceback: str) -> None:
        """Record that a run failed for good; a later success replaces it. WriteError where the disk is full."""
        run_dir = self.folder / "runs" / run.id
        failure = {"status": "failed", "attempts": attempts, "traceback": traceback}
        with writing(self.folder):
            run_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(run_dir / RUN_NAME, describe(run, None))
            write_atomically(run_dir / FAILURE_NAME, json.dumps(failure, indent=1) + "\n")
            if self.work(run).exists():
                shutil.rmtree(self.work(run))

    def count_looks(self, entry: Entry, looks: int) -> None:
        """Record in a run that was there already how often its study is looked at. WriteError where that fails."""
        path = entry.folder / RUN_NAME
        values = json.loads(path.read_text(encoding="utf-8")) | {"looks": looks}
        with writing(self.folder):
            write_atomically(path, json.dumps(values, indent=1) + "\n")

    def discard(self, folder: Path) -> None:
        """Move a folder to the trash, if it is there."""
        if not folder.exists():
            return
        trash = self.folder / "trash" / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S-%f")
        trash.mkdir(parents=True)
        folder.rename(trash / folder.name)

    def forget_model(self, entry: Entry) -> None:
        """Remove the trained model of a run; its record stays."""
        for path in entry.folder.iterdir():
            if path.name not in (RUN_NAME, RECORD_NAME):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def not_writable(folder: Path, error: OSError) -> InputError:
    """The error that a ledger cannot be changed."""
    return InputError(f"expected a ledger that can be written to, got {str(folder)!r}: {error}")


def _data(entry: Entry) -> str | None:
    """The fingerprint of the data that an entry was scored on, if known."""
    return None if entry.record is None else entry.record.fingerprints.get("dev")


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
