"""One run as it lies in a ledger: the files of its folder, written from a plan and read into an entry."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixout.errors import InputError
from mixout.finetune.record import Record
from mixout.study.analysis.runs import Run
from mixout.study.grid import Planned

RUN_NAME = "run.json"
FAILURE_NAME = "failure.json"
# What came out of a run. Named one by one: a field that a later version adds must not turn equal results into others.
_OUTCOME = ("status", "metric", "score", "scores", "evaluations", "training", "predictions", "steps", "distance")
# What a model still knows of its original domain, by type of model.
_ORIGINAL = ("original_similarity", "original_log_likelihood")
_PLACE = ("id", "task", "method", "restart", "factors")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run as the ledger has it.

    Args:
        folder: where.
        run: for the analysis.
        record: None for a run that failed.
        wall: seconds from start to end, with loading and evaluations; None where unknown.
        attempts: how often a failed run was tried; 1 for one that ended.
        traceback: of the last attempt of a failed run.
    """

    folder: Path
    run: Run
    record: Record | None
    wall: float | None = None
    attempts: int = 1
    traceback: str | None = None


def result_of(record: Record) -> str:
    """sha256 of what came out of a run: scores, predictions and curves, not clocks, machine or paths."""
    # From the text, in which numbers that are not finite have a form that compares.
    values = json.loads(record.to_json())
    return hashlib.sha256(json.dumps([values[name] for name in _OUTCOME]).encode()).hexdigest()


def describe(run: Planned, wall: float | None) -> str:
    """The text of ``run.json``: what is run, and under which names."""
    values = {name: getattr(run, name) for name in (*_PLACE, "metric", "chance")}
    return json.dumps({**values, "settings": asdict(run.settings), "wall": wall}, indent=1) + "\n"


def read_ended(folder: Path) -> Entry:
    """The run in a folder that holds a record.

    Raises:
        OSError, ValueError, KeyError, TypeError: it does not hold what it should.
    """
    place, record = _place(folder), Record.read(folder)
    if folder.name.partition(".")[2] != result_of(record)[:12]:
        raise InputError("expected the result that the folder is named after, got another; the record was changed")
    memory = record.peak_memory
    run = Run(
        **{name: place[name] for name in _PLACE},
        score=record.score,
        metric=record.metric,
        chance=record.chance,
        status=record.status,
        error=None if record.status == "finished" else "a loss was not finite",
        seconds=record.seconds,
        peak_memory=memory.get("host") if memory.get("device") is None else memory["device"],
        distance=record.distance,
        original=next((record.scores[name] for name in _ORIGINAL if name in record.scores), None),
        distance_by_layer=record.distance_by_layer,
        evaluations=tuple((entry.step, entry.scores[record.metric]) for entry in record.evaluations),
        predictions=record.predictions,
    )
    return Entry(folder=folder, run=run, record=record, wall=place["wall"])


def read_failed(folder: Path) -> Entry:
    """The run in a folder that holds a failure.

    Raises:
        OSError, ValueError, KeyError, TypeError: it does not hold what it should.
    """
    place = _place(folder)
    failure = json.loads((folder / FAILURE_NAME).read_text(encoding="utf-8"))
    traceback = str(failure["traceback"])
    run = Run(
        **{name: place[name] for name in _PLACE},
        score=math.nan,
        metric=place["metric"],
        chance=place["chance"],
        status="failed",
        error=traceback.strip().rpartition("\n")[2],
    )
    return Entry(folder=folder, run=run, record=None, attempts=failure["attempts"], traceback=traceback)


def _place(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
    if values["id"] != folder.name.partition(".")[0]:
        raise InputError(f"expected the run {folder.name}, got that of {values['id']}")
    return values
