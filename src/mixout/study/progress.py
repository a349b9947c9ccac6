"""How far a study is: lines with counts, failures, the time left, and how long runs are expected to take.

Lines that start with two spaces say where a run stands; the others say that one has ended, or are notes for all runs.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from mixout.finetune.environment import NOTE
from mixout.study.analysis.words import in_words
from mixout.study.entry import Entry
from mixout.study.identity import Planned
from mixout.study.ledger import Contents

Report = Callable[[str], None]

_SECONDS_BETWEEN_LINES = 5.0


class Clock:
    """What runs take, from those that have ended: those of the cell, else of the task, else all.

    Runs of one task may train on different numbers of examples for different numbers of epochs, so the time is taken to
    grow with the examples seen in training. It is an estimate: loading and evaluation do not grow with them.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[object, float] = defaultdict(float)
        self._work: defaultdict[object, float] = defaultdict(float)

    @classmethod
    def of(cls, planned: Sequence[Planned], contents: Contents) -> Clock:
        """With what a ledger knows about these runs."""
        clock = cls()
        for run, entry in contents.pairs(planned):
            if entry.wall is not None:
                clock.add(run, entry.wall)
        return clock

    def add(self, run: Planned, seconds: float) -> None:
        """One more run has ended."""
        for key, work in _sizes(run).items():
            self._seconds[key] += seconds
            self._work[key] += work

    def expect(self, runs: Sequence[Planned]) -> float | None:
        """Seconds that these runs take one after the other; None where no run has ended yet."""
        if not self._work:
            return None
        closest = (next((key, work) for key, work in _sizes(run).items() if key in self._work) for run in runs)
        return math.fsum(work * self._seconds[key] / self._work[key] for key, work in closest)


def _sizes(run: Planned) -> dict[object, float]:
    """How much work a run is, in a unit of each group that it is in, the closest group first."""
    # How many examples a whole task has is not known here: such runs of one task compare with each other alone.
    epochs, size = run.settings.epochs, run.settings.train_size
    among: dict[object, float] = {("examples",): epochs * size} if size else {}
    return {run.key: epochs, (run.task, size is None): epochs * (size or 1), **among, None: 1.0}


class Course:
    """The lines of a study that runs: ``clock`` knows what earlier runs took, and learns from the present ones."""

    def __init__(
        self, planned: Sequence[Planned], missing: Sequence[Planned], contents: Contents, clock: Clock, report: Report
    ) -> None:
        self.ended = self.failed = 0
        self.left = {run.id: run for run in missing}
        self.report = report
        self._total = len(planned)
        self._clock = clock
        self._notes: set[str] = set()
        self._began = self._told = time.perf_counter()
        self._worked = 0.0
        there = contents.pairs(planned)
        failed = sum(entry.record is None for _, entry in there)
        if len(there) > failed:
            report(f"{len(there) - failed} of {self._total} runs are there already")
        if failed > sum(run.id in self.left for run, _ in there):
            report(f"{failed} of {self._total} runs failed before; mixout study retry runs them again")
        for line in contents.remarks():
            report(line)

    def within(self, id: str, line: str) -> None:
        """Pass on where a run stands, but not every line: short runs say nothing, long ones that they are alive.

        A note on the machine is passed on once, whichever runs say it.
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
            self._worked += wall
        how = ", diverged" if entry.run.status == "diverged" else ", at chance" if entry.run.failed else ""
        self._end(run, f"{entry.run.metric} {entry.run.score:.3f}{how} ({entry.run.seconds:.0f} s of training)")

    def gave_up(self, run: Planned, attempts: int, error: str) -> None:
        """A run has failed for good."""
        self.failed += 1
        self._end(run, f"failed after {attempts} attempts: {error}")

    def _end(self, run: Planned, how: str) -> None:
        self.ended += 1
        del self.left[run.id]
        failed = f", {self.failed} failed" if self.failed else ""
        work, left = self._clock.expect(list(self.left.values())), ""
        if self.left and work is not None and self._worked:
            # Several at a time: so much work a second so far, so much is left.
            speed = self._worked / (time.perf_counter() - self._began)
            left = f", about {in_words(work / speed)} left"
        self.report(f"[{self._total - len(self.left)}/{self._total}] {run}: {how}{failed}{left}")
