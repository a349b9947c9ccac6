"""Data and a budget -> a model, a report and one sentence.

::

    OUT/
      parts/          the training rows in five parts, see parts.py
      ledger/         every run, known by its content: what is there is never trained again
      model/          the final model, trained on all rows: a plain checkpoint with its card and record
      model.id        what it was trained from: settings, rows and weights
      report.md, choose.csv, choose.png
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mixout._names import count
from mixout.choose import parts, verdict
from mixout.choose.runs import Runs, check_budget
from mixout.choose.search import FEWEST, METHODS, PLAIN, Candidate, Search
from mixout.choose.verdict import Choice
from mixout.errors import InputError
from mixout.finetune import card, data
from mixout.finetune.cache import Cache
from mixout.finetune.environment import NOTE, own_streams, processes, quiet
from mixout.finetune.levels import apply_methods, reinitialise_
from mixout.finetune.outcome import has_learned
from mixout.finetune.record import RECORD_NAME, Record, write_atomically, writing
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Task
from mixout.finetune.train import finetune, fisher_rows
from mixout.study.identity import Inputs
from mixout.study.ledger import Ledger
from mixout.study.runner import Report

_UNITS = {"s": 1, "m": 60, "h": 3600}


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
    existed = folder.exists()
    try:
        return _choose(settings, folder, seconds, methods, tell)
    except InputError:
        if not existed and not any(folder.glob("ledger/*/*")):  # ours, and no run was made
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _choose(settings: Settings, folder: Path, seconds: float, methods: Sequence[str], tell: Report) -> Choice:
    task, own_dev = parts.training_rows(settings)
    if task.dotted:
        tell(f"{NOTE}{task.name}: {data.dotted(task.dotted)}")
    methods = [replace(settings, method=method).method for method in methods]
    inputs, ledger = Inputs(), Ledger(folder / "ledger")
    with writing(folder):
        rows = parts.split(task, settings.seed)
        *part_folders, all_folder = map(str, parts.write(task, rows, folder / "parts", settings))
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
    runs = Runs(base, part_folders, inputs, ledger, cache, tell)
    check_budget(seconds, default, runs)
    search = Search(runs, seconds, default, tell)
    ahead, worth, reason = _decide(search, search.through(methods, rates.__getitem__), task, rows)
    if reason:
        tell(reason)
    tell(f"{ahead} is chosen; it is trained on all {len(task.train)} rows")
    candidates = [ahead] if ahead == default or search.failed(default) else [ahead, default]
    tries = [
        replace(
            settings if own_dev else all_rows,
            method=candidate.method,
            learning_rate=candidate.rate,
            batch_size=complete.batch_size,
            epochs=complete.epochs,
            evaluate="end",
            save="no",
        )
        for candidate in candidates
    ]
    record = _final(tries, task, folder / "model", ledger, inputs, cache, tell)
    if record.verdict:
        tell(record.verdict)
    chosen = Candidate(record.settings.method, record.settings.learning_rate)
    if chosen != ahead:
        reason = f"{ahead} was ahead, but its training on all rows failed"
        worth = verdict.expected(search, [default], task, rows)
    tried = verdict.table(search, chosen)
    choice = Choice(
        method=chosen.method,
        learning_rate=chosen.rate,
        metric=task.metric,
        expected=None if worth is None else worth.value,
        default=None if worth is None else worth.default,
        gain=None if worth is None else worth.gain,
        judged_rows=0 if worth is None else worth.rows,
        table=tried,
        alike=tuple(str(row.candidate) for row in tried if row.verdict == "cannot be told apart"),
        runs=search.made,
        seconds=search.spent,
        dev=record.scores if own_dev else {},
        warning=record.verdict,
        model=folder / "model",
        sentence=verdict.sentence(task.metric, tried, default, worth, reason),
    )
    # The model card names the user's data, not the folder of all rows.
    shown = replace(record, settings=replace(record.settings, task=settings.task))
    shown = shown if own_dev else replace(shown, source=record.source | {"data": task.source})
    with writing(folder):
        write_atomically(choice.model / "README.md", card.write(shown, task=task, result=verdict.result(choice)))
        verdict.write(choice, search, folder)
    return choice


def _decide(
    search: Search, finalists: list[Candidate], task: Task, rows: list[list[int]]
) -> tuple[Candidate, verdict.Worth | None, str]:
    """What is chosen, what that is worth, and why the default is kept, if that is not the usual reason."""
    default, reason = search.default, ""
    if finalists[0] == default and not search.can_decide(finalists):
        finalists = [default]
        if len(search.runs) > 1:
            reason = f"with {count(search.made, 'run')} nothing can be chosen, it takes about {FEWEST}"
    worth = verdict.expected(search, finalists, task, rows)
    if finalists[0] != default and worth is not None and worth.gain.value < 0 and not search.failed(default):
        reason = (
            f"{finalists[0]} was ahead, but what is chosen without the rows that judge it is worse than the default, "
            f"by {worth.gain.points()}"
        )
        finalists, worth = [default], verdict.expected(search, [default], task, rows)
    return finalists[0], worth, reason


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
            model, _ = cache.model(settings, task)
            model = reinitialise_(model, settings.reinit_layers, settings.stream_seed("init"))
            apply_methods(model, settings, fisher_rows(settings, task, model, cache)[:1])


def _final(
    tries: Sequence[Settings], task: Task, folder: Path, ledger: Ledger, inputs: Inputs, cache: Cache, tell: Report
) -> Record:
    """The model on all rows: the first of ``tries`` that learns, or the last.

    One of an earlier call stays if it is the same, and else goes to the ledger's trash.
    """
    id_file = folder.with_suffix(".id")
    # The identity opens the dev file: it is asked for only where there is a final model, or after its training.
    if (folder / RECORD_NAME).exists() and id_file.exists() and id_file.read_text() == inputs.identity(tries[0]):
        return Record.read(folder)
    for settings in tries:
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
        if has_learned(record, task):  # by its training loss: the dev rows choose nothing
            break
        if settings is not tries[-1]:
            tell(f"{record.verdict or 'it has hardly learned'}\nthe default is trained in its place")
    with writing(folder.parent):
        write_atomically(id_file, inputs.identity(tries[0]))
    return record
