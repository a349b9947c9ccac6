"""The report of a study from its runs in a ledger: results under the study's names, and how they were made."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mixout._names import count
from mixout.errors import InputError, MissingExtraError
from mixout.finetune.data import load
from mixout.finetune.record import Record
from mixout.finetune.settings import CAUSAL, Settings
from mixout.finetune.tasks import Split
from mixout.study.analysis.compare import MARGIN
from mixout.study.analysis.runs import Run, grouped, if_one
from mixout.study.entry import RUN_NAME, Entry
from mixout.study.grid import Study, judged
from mixout.study.identity import COLUMNS, PLACES, Planned
from mixout.study.ledger import Contents
from mixout.study.report import Data, write_report

# Settings that the results themselves state, or paths on one machine.
_NOT_SHARED = ("task", "method", "data_dir", "original", "report_to", "seed", "init_seed", "data_seed", "mask_seed")


def report_on(
    planned: Sequence[Planned] | None,
    contents: Contents,
    folder: str | Path,
    *,
    study: Study | None = None,
    metric: str | None = None,
    title: str,
    commands: Sequence[str],
    baseline: str | None = None,
    margin: float = MARGIN,
) -> Path:
    """Write the report on a study, as far as it has been run, or on everything that a ledger holds.

    ``planned`` are the runs of the study; None for all of the ledger, under their own names, which needs neither
    data nor model, and by ``metric`` where it is given. ``study`` is needed if it searches for the best rate. The other
    arguments and the errors are those of :func:`mixout.study.report.write_report`.
    """
    rates: list[str] = []
    if planned is None:
        runs, entries = contents.runs(metric), list(contents.entries.values())
    else:
        runs, rates = (contents.of(planned), []) if study is None else judged(study, planned, contents)
        entries = located(planned, contents)
    records = [entry.record for entry in entries if entry.record is not None]
    return write_report(
        runs,
        folder,
        title=title,
        baseline=baseline,
        margin=margin,
        notes=[*rates, *_without_points(planned or (), contents), *_origins(entries), *contents.remarks()],
        commands=[*commands, *best_again(runs, entries)],
        environment=environment(records),
        settings=shared([entry.settings for entry in entries]),
        data=known_data(runs, entries, read=planned is not None),
    )


def located(planned: Sequence[Planned], contents: Contents) -> list[Entry]:
    """The entries of the planned runs, with where the plan found data and model: the ledger may come from elsewhere."""
    entries = []
    for plan, entry in contents.pairs(planned):
        now = {name: getattr(plan.settings, name) for name in (*PLACES, *COLUMNS)}
        moved = {name: value for name, value in now.items() if value != entry.settings[name]}
        entries.append(replace(entry, places=moved))
    return entries


def _without_points(planned: Sequence[Planned], contents: Contents) -> list[str]:
    """A note on runs that were made before the study asked for models between start and end."""
    lacking = sum(
        not set(plan.settings.interpolate) <= {1, *(point["t"] for point in entry.record.interpolated)}
        for plan, entry in contents.pairs(planned)
        if entry.record is not None
    )
    return [f"{count(lacking, 'run')} without scores for some t of interpolate, which was set later."] * bool(lacking)


def _origins(entries: Sequence[Entry]) -> list[str]:
    """A note on runs of several versions or machines, which are compared as if they were of one."""
    origins = Counter(entry.origin for entry in entries if entry.record is not None)
    if len(origins) < 2:
        return []
    made = "; ".join(f"{count(number, 'run')} with {origin}" for origin, number in origins.most_common())
    return [f"These runs are not all of one version and machine, which may change results: {made}."]


def known_data(runs: Sequence[Run], entries: Sequence[Entry], *, read: bool) -> dict[str, Data]:
    """What each task was trained and tested on, according to its records.

    ``read``: also the texts, if the data are available and unchanged since the runs were tested on them.
    """
    records = {entry.run.id: entry.record for entry in entries if entry.record is not None}
    places = {entry.run.id: entry.places for entry in entries}
    data_by_task = {}
    for task, task_runs in grouped((run for run in runs if run.id in records), lambda run: run.task).items():
        record, size = records[task_runs[0].id], if_one(records[run.id].train_size for run in task_runs)
        source = record.source.get("data", "")
        data = Data(source=source, train_size=size, dev_size=record.dev_size, labels=record.labels)
        data_by_task[task] = _with_texts(data, record, places[task_runs[0].id]) if read else data
    return data_by_task


def _with_texts(data: Data, record: Record, places: Mapping[str, Any]) -> Data:
    if record.settings.task_type == CAUSAL or record.nested:  # a corpus is not read for three examples
        return data
    try:
        dev = load(replace(record.settings, **places)).dev
    except (InputError, MissingExtraError, OSError):
        return data
    if not isinstance(dev, Split) or dev.fingerprint() != record.fingerprints.get("dev"):
        return data
    pairs = dev.pair or [""] * len(dev)
    texts = tuple(f"{text} \u2014 {pair}" if pair else text for text, pair in zip(dev.text, pairs, strict=True))
    return replace(data, texts=texts, answers=tuple(data.name(float(label)) for label in dev.label))


def best_again(runs: Sequence[Run], entries: Sequence[Entry]) -> list[str]:
    """For each task a comment, and the command that repeats its best run and keeps the model; and one for any run.

    Where data and model were found elsewhere than recorded, the commands name these places.
    """
    settings = {entry.run.id: {**entry.settings, **entry.places} for entry in entries if entry.record is not None}
    scored = (run for run in runs if run.id in settings and not math.isnan(run.score))
    lines = []
    for task, task_runs in grouped(scored, lambda run: run.task).items():
        run = max(task_runs, key=lambda candidate: candidate.score)
        lines.append(f"# the best run on {task}: {run.method}, restart {run.restart}, {run.metric} {run.score:.4f}")
        lines.append(command(settings[run.id], f"out/{run.id[:8]}"))
    moves = grouped(entries if lines else (), lambda entry: tuple(entry.places.items()))
    for places, group in moves.items():
        of = f" on {', '.join(dict.fromkeys(entry.run.task for entry in group))}" if len(moves) > 1 else ""
        lines.append(f"# any other run{of}, with the first letters of its id, its folder's name, for ID")
        runs_folder = shlex.quote(entries[0].folder.parent.as_posix())
        lines.append(f"{command(dict(places), 'out/again')} --config {runs_folder}/ID*/{RUN_NAME}")
    return lines


def command(settings: Mapping[str, Any], folder: str) -> str:
    """The command line that makes a run, and keeps its model in ``folder``.

    Example:
        >>> command({"task": "rte", "method": "mixout(0.7)", "epochs": 3.0, "report_to": []}, "out/1f")
        "mixout finetune --output-dir out/1f --task rte --method 'mixout(0.7)' --epochs 3.0"
    """
    words = ["mixout", "finetune", "--output-dir", folder]
    for item in fields(Settings):
        value = settings.get(item.name, item.default)
        if value == item.default or value in (None, [], ()):
            continue
        words.append(f"--{item.name.replace('_', '-')}")
        words += map(str, value) if isinstance(value, (list, tuple)) else [] if value is True else [str(value)]
    return shlex.join(words)


def shared(settings: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """The settings that all runs have in common.

    Example:
        >>> shared([{"epochs": 1, "batch_size": 32}, {"epochs": 2, "batch_size": 32}])
        {'batch_size': 32}
    """
    return {
        name: value
        for name, value in (settings[0].items() if settings else ())
        if name not in _NOT_SHARED and all(run_settings.get(name) == value for run_settings in settings)
    }


def environment(records: Sequence[Record]) -> dict[str, str]:
    """Versions, hardware and sources of the runs; several values where runs differ."""
    facts = ({**record.source, "gradient": record.gradient, **record.versions, **record.hardware} for record in records)
    pairs = grouped((pair for values in facts for pair in values.items() if pair[1] is not None), lambda pair: pair[0])
    return {name: "; ".join(dict.fromkeys(str(value) for _, value in group)) for name, group in pairs.items()}
