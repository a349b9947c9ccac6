"""Progress of a study: lines with counts, failures and the time left, and how long runs are expected to take.

Lines that start with two spaces are progress within a run; the others say that a run has ended, or are general notes.
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
    """Expected time of runs, from runs that have ended: those of the same cell, else of the same task, else all.

    Runs of one task may train on different numbers of examples for different numbers of epochs, so the time is taken to
    grow with the examples seen in training. It is an estimate: loading and evaluation do not grow with them.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[object, float] = defaultdict(float)
        self._work: defaultdict[object, float] = defaultdict(float)

    @classmethod
    def of(cls, planned: Sequence[Planned], contents: Contents) -> Clock:
        """A clock with the times of those of these runs that a ledger holds."""
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
    """The work of a run in the unit of each group that contains it, the closest group first."""
    # The number of examples of a whole task is unknown here: its runs are compared only with each other.
    epochs, size = run.settings.epochs, run.settings.train_size
    by_examples: dict[object, float] = {("examples",): epochs * size} if size else {}
    return {run.key: epochs, (run.task, size is None): epochs * (size or 1), **by_examples, None: 1.0}


class Course:
    """Reports the progress of a study; ``clock`` knows the times of earlier runs, and gets those of the new ones."""

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
            self._worked += wall
        suffix = ", diverged" if entry.run.status == "diverged" else ", at chance" if entry.run.failed else ""
        self._end(run, f"{entry.run.metric} {entry.run.score:.3f}{suffix} ({entry.run.seconds:.0f} s of training)")

    def gave_up(self, run: Planned, attempts: int, error: str) -> None:
        """A run has failed for good."""
        self.failed += 1
        self._end(run, f"failed after {attempts} attempts: {error}")

    def _end(self, run: Planned, result: str) -> None:
        self.ended += 1
        del self.left[run.id]
        failed = f", {self.failed} failed" if self.failed else ""
        work, left = self._clock.expect(list(self.left.values())), ""
        if self.left and work is not None and self._worked:
            # Several runs at a time: the work that is left, at the speed so far.
            speed = self._worked / (time.perf_counter() - self._began)
            left = f", about {in_words(work / speed)} left"
        self.report(f"[{self._total - len(self.left)}/{self._total}] {run}: {result}{failed}{left}")
