"""Runs that are missing -> executor -> ledger. The only file that decides what is run, and what becomes of a failure.

A run that raises is tried again a bounded number of times, then recorded as failed with its traceback, and the study
goes on. A run whose process or machine was lost is tried again a little more often, since that says nothing about it.
Wrong input and a full disk end the study; every run that has ended is kept then, as under an interrupt or a power cut.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from mixout.errors import InputError
from mixout.finetune.record import RECORD_NAME
from mixout.study.executors import Executor, Job, Outcome
from mixout.study.grid import Planned
from mixout.study.ledger import Contents, Ledger
from mixout.study.progress import Clock, Course, Report

RETRIES = 1
# Of a run whose worker was lost. Not without end: a run may itself be what kills its process.
LOSSES = 3


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What a call of :func:`run` did.

    Args:
        ran: runs that ended in this call, with a record or as failed.
        failed: those of them that failed.
    """

    ran: int
    failed: int


def missing(planned: Sequence[Planned], contents: Contents, *, again: bool = False) -> list[Planned]:
    """The runs that a ledger lacks.

    Args:
        planned: what a study asks for.
        contents: of the ledger.
        again: instead those that failed.
    """
    if again:
        return [run for run in planned if run.id in contents.entries and contents.entries[run.id].record is None]
    return [run for run in planned if run.id not in contents.entries]


def run(
    planned: Sequence[Planned],
    ledger: Ledger,
    executor: Executor,
    *,
    report: Report,
    retries: int = RETRIES,
    again: bool = False,
) -> Tally:
    """Run what is missing.

    Args:
        planned: what a study asks for, in the order in which it is run.
        ledger: what is there; each run is written into it as soon as it has ended.
        executor: where to run.
        report: called with one line of progress after each run, and with one every few seconds within it.
        retries: how often a run that raised is tried again.
        again: run those that failed, instead of those that were never run.

    Returns:
        What was done.

    Raises:
        InputError: the input is wrong, or another process runs into the ledger.
        WriteError: a disk is full; call it again to continue.
    """
    if retries < 0:
        raise InputError(f"expected retries >= 0, got {retries}")
    with ledger.locked():
        contents = ledger.read()
        queue = deque(missing(planned, contents, again=again))
        course = Course(planned, list(queue), Clock.of(planned, contents), report)
        loop = _Loop(ledger, course, retries, {run.id: run for run in queue})
        if again:
            loop.before = {run.id: contents.entries[run.id].attempts for run in queue}
        queue = loop.recovered(queue)
        if queue:
            with executor:
                loop.through(queue, executor)
    return Tally(ran=course.ended, failed=course.failed)


class _Loop:
    """The runs that are under way, and how often each was tried."""

    def __init__(self, ledger: Ledger, course: Course, retries: int, runs: dict[str, Planned]) -> None:
        self.ledger = ledger
        self.course = course
        self.retries = retries
        self.runs = runs
        self.before: dict[str, int] = {}
        self.raised: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()

    def recovered(self, queue: deque[Planned]) -> deque[Planned]:
        """Take over runs that were finished when a process was killed, but not yet in the ledger."""
        rest: deque[Planned] = deque()
        for run in queue:
            if (self.ledger.work(run) / RECORD_NAME).exists():
                self.course.finished(run, self.ledger.commit(run, None), None)
            else:
                rest.append(run)
        return rest

    def through(self, queue: deque[Planned], executor: Executor) -> None:
        """Until nothing is left."""
        flying = 0
        while queue or flying:
            while queue and flying < executor.slots:
                run = queue.popleft()
                again = run.id in self.raised or run.id in self.lost
                executor.start(Job(id=run.id, settings=run.settings, folder=self.ledger.work(run), again=again))
                flying += 1
            outcome = executor.wait(self.course.within)
            flying -= 1
            if not self.settled(outcome):
                queue.appendleft(self.runs[outcome.job.id])

    def settled(self, outcome: Outcome) -> bool:
        """Whether the run is done with; otherwise it is to be tried again."""
        run = self.runs[outcome.job.id]
        if outcome.error is None:
            self.course.finished(run, self.ledger.commit(run, outcome.seconds), outcome.seconds)
            return True
        tries, bound = (self.lost, LOSSES) if outcome.lost else (self.raised, self.retries)
        tries[run.id] += 1
        attempts = self.raised[run.id] + self.lost[run.id]
        error = outcome.error.strip().rpartition("\n")[2]
        if tries[run.id] <= bound:
            self.course.retries(run, attempts, error)
            return False
        attempts += self.before.get(run.id, 0)
        self.ledger.fail(run, attempts, outcome.error)
        self.course.gave_up(run, attempts, error)
        return True
