"""Gives missing runs to an executor, and their results to a ledger. Only this file decides what is run or retried.

A run that raises is tried again a bounded number of times, then recorded as failed with its traceback, and the study
goes on. A run whose process or machine was lost is tried again more often, since that says nothing about the run.
Wrong input and a full disk end the study; runs that have ended are kept, as after an interrupt or a power cut.

Lines of progress that start with two spaces are from within a run; the others say that a run has ended, or are notes.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from filelock import FileLock

from mixout._names import count
from mixout.errors import InputError
from mixout.finetune.environment import NOTE
from mixout.finetune.record import RECORD_NAME
from mixout.study.analysis.runs import CellKey
from mixout.study.analysis.words import error_of, in_words
from mixout.study.entry import Entry
from mixout.study.executors import TENSORBOARD, Executor, Job, Outcome
from mixout.study.grid import Clock
from mixout.study.identity import Planned
from mixout.study.ledger import Contents, Ledger

Report = Callable[[str], None]

# Retries of a run whose worker was lost. Bounded, since the run itself may kill its process.
LOSSES = 3
_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What a call of :func:`run` did."""

    ran: int  # runs that ended in this call, with a record or as failed
    failed: int  # those of them that failed
    elsewhere: int = 0  # runs that another process is making

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def missing(planned: Sequence[Planned], contents: Contents, *, again: bool = False) -> list[Planned]:
    """The runs of a plan that a ledger lacks; ``again``: instead those that failed."""
    if again:
        return [run for run, entry in contents.pairs(planned) if entry.record is None]
    return [run for run in planned if contents.entry(run) is None]


def run(
    planned: Sequence[Planned],
    ledger: Ledger,
    executor: Executor,
    *,
    report: Report,
    retries: int = 1,
    again: bool = False,
    keep: str = "no",
) -> Tally:
    """Run what is missing, except for what another process is making.

    Args:
        planned: the runs of a study, in the order in which they are run.
        ledger: where runs are kept; each run is written into it as soon as it has ended.
        executor: where to run.
        report: called with one line of progress after each run, and with one every few seconds within it.
        retries: how often a run that raised is tried again.
        again: run those that failed, instead of those that were never run.
        keep: which trained models to keep: none, all, or of each cell (task, method and factors) that of its best run.
            Runs that the ledger holds already are not repeated for their models.

    Raises:
        InputError: the input is wrong, or a newer mixout has made some of these runs.
        WriteError: a disk is full; call it again to continue.
    """
    if retries < 0:
        raise InputError(f"expected retries >= 0, got {retries}")
    if keep not in ("no", "best", "all"):
        raise InputError(f"expected keep to be 'no', 'best' or 'all', got {keep!r}")
    contents = ledger.read()
    # A run that a newer version made must not be repeated: the results would conflict, or one would be lost.
    newer = {folder.name.partition(".")[0]: reason for folder, reason in contents.newer.items()}
    for plan in planned:
        if plan.id in newer:
            raise InputError(
                f"expected runs that this mixout can read, got one of a newer version ({plan}): {newer[plan.id]}; "
                "use that version, or another ledger"
            )
    queue = missing(planned, contents, again=again)
    course = Course(planned, queue, contents, report, executor)
    pairs = contents.pairs(planned)
    attempts = {run.id: entry.attempts for run, entry in pairs if again and entry.record is None}
    kept = dict[CellKey, Entry]()
    for run, entry in pairs if keep == "best" else ():
        if entry.record is not None and _is_better(entry, kept.get(run.key), run):
            kept[run.key] = entry
    if without := sum(not entry.has_model for entry in kept.values()):
        report(f"{count(without, 'cell')}: the best run was made before without a model; only a better one keeps one")
    loop = _Loop(ledger, course, retries, keep, attempts, kept)
    left = loop.recovered(queue)
    if left:
        with executor:
            loop.through(left, executor)
    elsewhere = sum(ledger.find(run) is None for run in loop.elsewhere)  # the others have ended since
    return Tally(ran=course.ended, failed=course.failed, elsewhere=elsewhere)


def _for_loggers(run: Planned, ledger: Ledger) -> dict[str, str]:
    """What W&B, MLflow and TensorBoard call the run, so that their own views group restarts and compare methods."""
    tags = {"mlflow.runName": str(run), "task": run.task, "method": run.method, "restart": str(run.restart)}
    parts = (part.replace("/", "_") for part in (run.task, run.label, f"restart {run.restart}"))
    return {
        "WANDB_NAME": str(run),
        "WANDB_RUN_GROUP": run.label,
        "WANDB_JOB_TYPE": run.task,
        "MLFLOW_TAGS": json.dumps({**run.factors, **tags}),
        TENSORBOARD: str(ledger.folder.joinpath("logs", *parts)),
    }


class Course:
    """Reports the progress of a study of ``planned`` runs, of which the ``missing`` ones are to be made."""

    def __init__(
        self,
        planned: Sequence[Planned],
        missing: Sequence[Planned],
        contents: Contents,
        report: Report,
        executor: Executor,
    ) -> None:
        self.ended = self.failed = 0
        self.left = {run.id: run for run in missing}
        self.report = report
        self._total = len(planned)
        self._clock = Clock.of(planned, contents)
        self._notes: set[str] = set()
        self._told = time.perf_counter()
        self._executor, self._timed = executor, False
        pairs = contents.pairs(planned)
        failed = sum(entry.record is None for _, entry in pairs)
        if len(pairs) > failed:
            report(f"{len(pairs) - failed} of {self._total} runs are there already")
        if failed > sum(run.id in self.left for run, _ in pairs):
            report(f"{failed} of {self._total} runs failed before; mixout study retry runs them again")
        for line in contents.remarks():
            report(line)

    def within(self, id: str, line: str) -> None:
        """Report progress within a run, but not every line: short runs stay silent, long ones show that they are alive.

        A note on the machine is reported once, even if several runs send it.
        """
        if line.startswith(NOTE):
            if line not in self._notes:
                self._notes.add(line)
                self.report(line)
            return
        now = time.perf_counter()
        if now - self._told >= _SECONDS_BETWEEN_LINES and id in self.left:
            self._told = now
            self.report(f"  {self.left[id]}: {line.strip()}")

    def finished(self, run: Planned, entry: Entry, wall: float | None) -> None:
        """A run has ended with a record."""
        if wall is not None:
            self._clock.add(run, wall)
            self._timed = True
        suffix = ", diverged" if entry.run.status == "diverged" else ", at chance" if entry.run.failed else ""
        self._end(run, f"{entry.run.metric} {entry.run.score:.3f}{suffix} ({entry.run.seconds:.0f} s of training)")

    def gave_up(self, run: Planned, attempts: int, error: str) -> None:
        """A run has failed for good."""
        self.failed += 1
        self._end(run, f"failed after {count(attempts, 'attempt')}: {error}")

    def _end(self, run: Planned, result: str) -> None:
        self.ended += 1
        del self.left[run.id]
        failed = f", {self.failed} failed" if self.failed else ""
        work, left = self._clock.expect(list(self.left.values())), ""
        if self.left and work is not None and self._timed:  # before the first run the executor may not have begun
            left = f", about {in_words(work / min(len(self.left), self._executor.at_once))} left"
        self.report(f"[{self._total - len(self.left)}/{self._total}] {run}: {result}{failed}{left}")


def _is_better(entry: Entry, other: Entry | None, run: Planned) -> bool:
    """Whether a run of the cell of ``run`` has a higher score than another; nan, of one that diverged, is below all."""
    if other is None:
        return True
    score, other_score = (one.seen_as(run).score for one in (entry, other))
    return score > other_score or (math.isnan(other_score) and not math.isnan(score))


@dataclass
class _Loop:
    """The runs that are under way, and how often each was tried."""

    ledger: Ledger
    course: Course
    retries: int
    keep: str
    before: Mapping[str, int]  # id -> attempts in earlier calls
    kept: dict[CellKey, Entry]  # with keep="best" the best run of each cell
    tries: Counter[tuple[str, bool]] = field(default_factory=Counter)  # attempts that raised, and that were lost
    locks: dict[str, FileLock] = field(default_factory=dict)
    elsewhere: list[Planned] = field(default_factory=list)  # claimed, or made since, by another process

    def recovered(self, queue: Sequence[Planned]) -> deque[Planned]:
        """Commit runs that were finished, but not yet in the ledger, when a process was killed. Returns the others."""
        for run in queue:
            if (self.ledger.work(run) / RECORD_NAME).exists() and self.claimed(run):
                with suppress(ValueError, KeyError, TypeError):  # the record cannot be read: the run is made again
                    self.finish(run, None)
        return deque(run for run in queue if run.id in self.course.left)

    def through(self, queue: deque[Planned], executor: Executor) -> None:
        """Execute runs until the queue is empty."""
        running = 0
        while queue or running:
            while queue and running < executor.slots:
                if self.claimed(run := queue.popleft()):
                    executor.start(self.job(run))
                    running += 1
            if running:
                outcome = executor.wait(self.course.within)
                running -= 1
                run = self.course.left[outcome.job.id]
                if not self.settled(run, outcome):
                    queue.appendleft(run)

    def job(self, run: Planned) -> Job:
        """The next attempt at a run."""
        return Job(
            id=run.id,
            settings=run.settings,
            folder=self.ledger.work(run),
            again=(run.id, True) in self.tries or (run.id, False) in self.tries,
            keep_model=self.keep != "no",
            environment=_for_loggers(run, self.ledger) if run.settings.report_to else {},
        )

    def claimed(self, run: Planned) -> bool:
        """Whether this process may make the run: no other one makes it, or has made it since the ledger was read."""
        if run.id in self.locks:  # another attempt
            return True
        if (lock := self.ledger.claim(run.id)) is not None:
            if self.ledger.find(run) is None:
                self.locks[run.id] = lock
                return True
            self.ledger.release(lock)
        self.elsewhere.append(run)
        del self.course.left[run.id]
        return False

    def settled(self, run: Planned, outcome: Outcome) -> bool:
        """Record the outcome. Whether the run is settled; otherwise it must be tried again."""
        if outcome.error is None:
            self.finish(run, outcome.seconds)
            return True
        self.tries[run.id, outcome.lost] += 1
        attempts = self.tries[run.id, True] + self.tries[run.id, False]
        error = error_of(outcome.error)
        if self.tries[run.id, outcome.lost] <= (LOSSES if outcome.lost else self.retries):
            self.course.report(f"{run}: attempt {attempts} failed, trying again: {error}")
            return False
        attempts += self.before.get(run.id, 0)
        self.ledger.fail(run, attempts, outcome.error)
        self.ledger.release(self.locks.pop(run.id))
        self.course.gave_up(run, attempts, error)
        return True

    def finish(self, run: Planned, seconds: float | None) -> None:
        """The run has ended with a record."""
        entry = self.ledger.commit(run, seconds)
        self.ledger.release(self.locks.pop(run.id))
        if self.keep == "best" and entry.has_model:
            worse = before = self.kept.get(run.key)
            if _is_better(entry, before, run):
                self.kept[run.key] = entry
            else:
                worse = entry
            if worse is not None and worse.has_model:
                self.ledger.forget_model(worse)
        self.course.finished(run, entry, seconds)
