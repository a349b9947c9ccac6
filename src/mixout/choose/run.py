"""Data and a budget -> a model, a report and one sentence. The only file of this folder that trains and writes.

::

    OUT/
      parts/          the training rows in five parts, see parts.py
      ledger/         every run, known by its content: what is there is never trained again
      model/          the final model, trained on all rows: a plain checkpoint with its card and record
      model.id        what it was trained from: settings, rows and weights
      report.md, choose.csv, choose.png
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mixout._names import count
from mixout.choose import parts, verdict
from mixout.choose.search import FEWEST, METHODS, PLAIN, USEFUL, Candidate, Search, Trained
from mixout.choose.verdict import Choice
from mixout.errors import InputError
from mixout.finetune import card
from mixout.finetune.cache import Cache
from mixout.finetune.defaults import steps_per_epoch
from mixout.finetune.environment import NOTE, own_streams, processes, quiet
from mixout.finetune.levels import apply_methods, reinitialise_
from mixout.finetune.record import RECORD_NAME, Record, write_atomically, writing
from mixout.finetune.run_methods import MeasuredDecay
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Task
from mixout.finetune.train import finetune, fisher_rows
from mixout.study.analysis.runs import Restart
from mixout.study.analysis.words import in_words
from mixout.study.entry import Entry
from mixout.study.executors import LocalExecutor
from mixout.study.identity import Inputs, Planned
from mixout.study.ledger import Ledger
from mixout.study.runner import Report
from mixout.study.runner import run as run_missing

_UNITS = {"s": 1, "m": 60, "h": 3600}
_PROBE = 5  # steps by which the time of a run is estimated before the first one


def choose(
    settings: Settings,
    *,
    output_dir: str | Path,
    budget: str = "30m",
    methods: Sequence[str] = METHODS,
    report: Report | None = None,
) -> Choice:
    """Choose method and learning rate on the training rows, and train the model on all of them.

    Args:
        settings: of a single run, which is the default that the choice is compared with. ``task`` is a table, a folder
            or a name. Dev rows are not read before the final model is there.
        output_dir: for model, report and all runs. The same call goes on where an earlier one was cut off.
        budget: training time of all calls together, such as ``"90s"``, ``"30m"`` or ``"2h"``.
        methods: candidates beside plain fine-tuning, as ``method`` of the settings takes them.
        report: called with one line of progress now and then.

    Raises:
        InputError: data, settings or folder cannot be used, the model does not take a method, or the budget is too
            small for one run; nothing was trained then.
        WriteError: a disk is full; call it again to continue.
    """
    tell = report or (lambda _line: None)
    seconds, folder = seconds_of(budget), Path(output_dir)
    if settings.patience is not None or settings.keep_best:
        raise InputError(
            "expected no patience and no keep_best: they would look at the rows that a run is scored on; leave them out"
        )
    _check_place(folder, settings)
    if processes() > 1:
        raise InputError("expected one process, got a launch with several; start mixout choose without torchrun")
    task, own_dev = parts.training_rows(settings)
    methods = [replace(settings, method=method).method for method in methods]
    inputs, ledger = Inputs(), Ledger(folder / "ledger")
    with writing(folder):
        rows = parts.split(task, settings.seed)
        part_folders = parts.write(task, rows, folder / "parts", settings)
        all_folder = str(parts.write_all(task, folder / "parts", settings))
    all_rows = replace(settings, task=all_folder, data_dir=None, train_size=None, subset_seed=None, metric=task.metric)
    # Method, rate, batch size and epochs as for all rows, also in the parts.
    complete = inputs.complete(all_rows)
    default = Candidate(complete.method, complete.learning_rate)
    by_rule = [inputs.complete(replace(all_rows, method=method)) for method in (PLAIN, *methods)]
    rates = {candidate.method: candidate.learning_rate for candidate in by_rule}
    base = replace(complete, save="no", evaluate="end", interpolate=(), report_to=())
    for method in rates:
        inputs.check(replace(base, method=method))
    methods = [method for method in rates if not inputs.is_plain(replace(base, method=method))]
    for method in [method for method in rates if method not in (PLAIN, *methods)]:
        tell(f"{method} is not tried beside plain fine-tuning: the model's dropouts are set so already")
    cache = Cache()
    _check_methods([default.method, *methods], base, task, cache)
    runs = _Runs(base, part_folders, inputs, ledger, cache, tell)
    _check_budget(seconds, default, runs, tell)
    search = Search(runs, seconds, default, tell)
    finalists = search.through(methods, rates.__getitem__)
    chosen = finalists[0]
    final = replace(
        settings if own_dev else all_rows,
        method=chosen.method,
        learning_rate=chosen.rate,
        batch_size=complete.batch_size,
        epochs=complete.epochs,
        evaluate="end",
        save="no",
    )
    tell(f"{chosen} is chosen; it is trained on all {len(task.train)} rows")
    record = _final(final, folder / "model", ledger, inputs, cache, tell)
    if record.verdict:
        tell(record.verdict)
    expected, default_score, gain, judged = verdict.expected(search, finalists, task, rows) or (None, None, None, 0)
    tried = verdict.table(search, chosen)
    choice = Choice(
        method=chosen.method,
        learning_rate=chosen.rate,
        metric=task.metric,
        expected=expected,
        default=default_score,
        gain=gain,
        judged_rows=judged,
        table=tried,
        alike=tuple(str(row.candidate) for row in tried if row.verdict == "cannot be told apart"),
        runs=search.made,
        seconds=search.spent,
        dev=record.scores if own_dev else {},
        warning=record.verdict,
        model=folder / "model",
        sentence=verdict.sentence(task.metric, tried, default, expected, gain),
    )
    # The model card names the user's data, not the folder of all rows.
    shown = replace(record, settings=replace(record.settings, task=settings.task))
    shown = shown if own_dev else replace(shown, source=record.source | {"data": task.source})
    with writing(folder):
        write_atomically(choice.model / "README.md", card.write(shown, result=verdict.result(choice)))
        verdict.write(choice, search, folder)
    return choice


def seconds_of(budget: str) -> float:
    """The seconds of a text.

    Example:
        >>> seconds_of("30m"), seconds_of("1.5h"), seconds_of("90s")
        (1800.0, 5400.0, 90.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", budget.strip())
    if match is None or float(match[1]) == 0:
        raise InputError(f"expected a budget such as 90s, 30m or 2h, got {budget!r}")
    return float(match[1]) * _UNITS[match[2]]


def _check_place(folder: Path, settings: Settings) -> None:
    """Refuse a folder in which the final model would replace what choose has not made."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"expected a folder as output-dir, got the file {str(folder)!r}; choose another one")
    model, start = folder / "model", Path(os.path.expanduser(settings.model))
    problem = "which choose has not made" if model.exists() and not model.with_suffix(".id").exists() else ""
    if start.exists() and start.resolve() == model.resolve():
        problem = "which is the model to begin with"
    if problem:
        raise InputError(
            f"expected room for the final model in {str(model)!r}, got a folder there, {problem}; choose another "
            "output-dir, or move it away"
        )


def _check_methods(methods: Sequence[str], base: Settings, task: Task, cache: Cache) -> None:
    """Apply each method to the model once: one that it does not take shows now, not after a part of the budget."""
    for method in methods:
        settings = replace(base, method=method)
        with quiet(), own_streams():
            model, _ = cache.model_of(settings, task)
            model = reinitialise_(model, settings.reinit_layers, settings.stream_seed("init"))
            apply_methods(model, settings, fisher_rows(settings, task, model, cache)[:1])


class _Runs:
    """Makes the runs that the ledger lacks, in this process."""

    def __init__(
        self, base: Settings, places: Sequence[Path], inputs: Inputs, ledger: Ledger, cache: Cache, tell: Report
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
            task=str(self.places[part]),
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


def _check_budget(budget: float, default: Candidate, runs: _Runs, tell: Report) -> None:
    """Refuse a budget that is too small for one run, by the time that a few steps take."""
    first_run = runs.planned(default, 0, 0)
    entry = runs.ledger.find(first_run)
    cost = _estimate(first_run.settings, runs.cache) if entry is None else _seconds(entry)
    final = cost * parts.PARTS / (parts.PARTS - 1)
    if budget < cost + final:
        raise InputError(
            f"expected a budget for one run and the final training, about {in_words(math.ceil(cost + final))}, got "
            f"{in_words(budget)}; {in_words(USEFUL * cost)} would try everything. Shorter runs: --max-steps, "
            f"--train-size, or a smaller --model"
        )
    fit = math.floor((budget - final) / cost)
    few = f"with less than about {FEWEST} the default is kept, " if fit < FEWEST else ""
    good_for = f"the budget is good for {count(fit, 'run')}"
    tell(f"a run takes about {in_words(cost)}: {good_for}; {few}about {USEFUL} try everything")


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


def _final(settings: Settings, folder: Path, ledger: Ledger, inputs: Inputs, cache: Cache, tell: Report) -> Record:
    """The model on all rows; one of an earlier call stays if it is the same, and else goes to the ledger's trash."""
    id_file = folder.with_suffix(".id")
    # The identity opens the dev file: it is asked for only where there is a final model, or after its training.
    if (folder / RECORD_NAME).exists() and id_file.exists() and id_file.read_text() == inputs.identity(settings):
        return Record.read(folder)
    with writing(folder.parent):
        ledger.discard(folder)
        write_atomically(id_file, "")  # from now on what lies there is ours
    # Scores before the end are not shown: they may be on rows that it is trained on.
    record = finetune(
        settings,
        folder,
        report=lambda line: tell(line) if "  step" in line and "dev" not in line else None,
        cache=cache,
    )
    with writing(folder.parent):
        write_atomically(id_file, inputs.identity(settings))
    return record
