"""The runs of a search: found in the ledger or trained now, and the time that one takes."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mixout._names import count
from mixout.choose.parts import PARTS
from mixout.choose.search import FEWEST, USEFUL, Candidate, Trained
from mixout.errors import InputError
from mixout.finetune.cache import Cache
from mixout.finetune.defaults import steps_per_epoch
from mixout.finetune.environment import NOTE
from mixout.finetune.run_methods import MeasuredDecay
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune
from mixout.study.analysis.runs import Restart
from mixout.study.analysis.words import in_words
from mixout.study.entry import Entry
from mixout.study.executors import LocalExecutor
from mixout.study.identity import Inputs, Planned
from mixout.study.ledger import Ledger
from mixout.study.runner import Report
from mixout.study.runner import run as run_missing

_PROBE = 5  # steps by which the time of a run is estimated before the first one


class Runs:
    """Makes the runs that the ledger lacks, in this process."""

    def __init__(
        self, base: Settings, places: Sequence[str], inputs: Inputs, ledger: Ledger, cache: Cache, tell: Report
    ) -> None:
        self.base, self.places, self.inputs, self.ledger, self.tell = base, places, inputs, ledger, tell
        self.cache, self.executor = cache, LocalExecutor(cache)
        self.noted = False

    def __call__(self, candidate: Candidate, part: int, repeat: int) -> Trained:
        """Make the run, or find it."""
        planned = self.planned(candidate, part, repeat)
        entry = self.ledger.find(planned)
        new = entry is None
        if entry is None:
            # What failed in an earlier call is tried again.
            failed = (self.ledger.folder / "runs" / planned.id).exists()
            tally = run_missing([planned], self.ledger, self.executor, report=self._within, again=failed)
            if tally.elsewhere:
                raise InputError(f"expected {self.ledger.folder} for this call alone, got another process that uses it")
            entry, self.noted = self.ledger.find(planned), True
        if entry is None or entry.record is None:
            raise InputError(f"expected {candidate} to train, got a run that failed, see above; leave the method out")
        score = entry.seen_as(planned).counted
        return Trained(score=score, predictions=entry.record.predictions, seconds=_seconds(entry), new=new)

    def planned(self, candidate: Candidate, part: int, repeat: int) -> Planned:
        """The run, as the ledger knows it."""
        settings = replace(
            self.base,
            task=self.places[part],
            method=candidate.method,
            learning_rate=candidate.rate,
            seed=self.base.seed + repeat,
        )
        # The original texts matter only where a method measures the Fisher information on them.
        if not any(isinstance(method, MeasuredDecay) and method.fisher for method in settings.methods):
            settings = replace(settings, original=None)
        place = Restart(task=f"part {part}", method=str(candidate), restart=repeat, factors={})
        return self.inputs.planned(place, settings, check=False)

    def _within(self, line: str) -> None:
        """Progress of a run, failures, and the first run's notes; the end of a run is reported elsewhere."""
        if line.startswith("  ") or "failed" in line or (line.startswith(NOTE) and not self.noted):
            self.tell(line)


def check_budget(budget: float, default: Candidate, runs: Runs) -> None:
    """Refuse a budget that is too small for one run, by the time that a few steps take."""
    first_run = runs.planned(default, 0, 0)
    entry = runs.ledger.find(first_run)
    cost = _estimate(first_run.settings, runs.cache) if entry is None else _seconds(entry)
    final = cost * PARTS / (PARTS - 1)
    if budget < cost + final:
        raise InputError(
            f"expected a budget for one run and the final training, about {in_words(math.ceil(cost + final))}, got "
            f"{in_words(budget)}; {in_words(USEFUL * cost)} would try everything. Shorter runs: --max-steps, "
            f"--train-size, or a smaller --model"
        )
    fit = math.floor((budget - final) / cost)
    few = f"with less than about {FEWEST} the default is mostly kept, " if fit < FEWEST else ""
    good_for = f"the budget is good for {count(fit, 'run')}"
    runs.tell(f"a run takes about {in_words(cost)}: {good_for}; {few}about {USEFUL} try everything")


def _seconds(entry: Entry) -> float:
    # If its process was killed at its end, the times of its record.
    recorded = 0.0 if entry.record is None else entry.record.seconds + entry.record.evaluation_seconds
    return recorded if entry.wall is None else entry.wall


def _estimate(settings: Settings, cache: Cache) -> float:
    """The seconds that a run will take, by a few steps after a first one, which is slow."""
    with tempfile.TemporaryDirectory() as folder:
        for steps in (1, _PROBE):
            began = time.perf_counter()
            short = replace(settings, max_steps=min(steps, settings.max_steps or steps), head_first=0.0)
            record = finetune(short, Path(folder) / str(steps), keep_model=False, cache=cache)
    steps = settings.max_steps or math.ceil(steps_per_epoch(record.train_size, settings) * settings.epochs)
    return time.perf_counter() - began + record.seconds * (steps / record.steps - 1)
