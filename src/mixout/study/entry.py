"""One run in a ledger: its files are written from a plan and read here. Also finds what distinguishes runs.

Records of version 0.1 are read as well. A run of a newer version is not treated as damaged: it must not be run
again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from mixout.errors import InputError
from mixout.finetune.data import READ
from mixout.finetune.metrics import KNOWN
from mixout.finetune.record import RECORD_NAME, Record
from mixout.finetune.settings import CAUSAL, Settings
from mixout.finetune.tasks.files import TEXT_METRICS
from mixout.study.analysis.runs import Run, between_name, grouped, if_one, is_collapsed, text_of
from mixout.study.analysis.words import error_of
from mixout.study.identity import PLACES, WATCHED, Planned

RUN_NAME = "run.json"
FAILURE_NAME = "failure.json"
FORMAT = 2
RECORD_FORMAT = 1
# The result of a run, independent of the metric that counts and of how often it was evaluated. The fields are listed:
# a field that a later version adds must not make equal results differ.
_OUTCOME = ("status", "scores", "predictions", "steps", "distance")
# In 0.1 the metric, the evaluations and the training log were part of the result.
_OUTCOME_0_1 = ("status", "metric", "score", "scores", "evaluations", "training", "predictions", "steps", "distance")
# The score on text of the original domain, by type of model.
_ORIGINAL = ("original_similarity", "original_log_likelihood")
_PLACE = ("id", "task", "method", "restart", "factors")
# Settings that differ between the restarts of a cell, do not change the result, or are represented by their content.
_NO_FACTORS = ("seed", *WATCHED, *PLACES)
_DEFAULTS = json.loads(json.dumps({item.name: item.default for item in fields(Settings)}))  # as a plan holds them
# Content -> its name among a record's fingerprints, and the settings that determine it.
_DATA = tuple(name for name in READ if name not in WATCHED)
_SUBSET = tuple(name for name in (*_DATA, "train_size", "subset_seed") if name not in PLACES)
_CONTENT = {
    "train_data": ("train", (*_DATA, "train_size", "subset_seed")),
    "dev_data": ("dev", _DATA),
    "original_text": ("original", _DATA),
    "weights": ("weights", ("model",)),
}


class NewerError(InputError):
    """A newer version of mixout wrote this."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run as the ledger has it."""

    folder: Path
    run: Run  # for the analysis
    record: Record | None  # None for a run that failed
    settings: Mapping[str, Any]  # name to value, as in the plan; settings added by later versions have their default
    wall: float | None = None  # seconds from start to end, with loading and evaluations; None where unknown
    # the settings that say where data and model lie, where that is elsewhere now
    places: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 1  # how often a failed run was tried; 1 for one that ended

    @property
    def origin(self) -> str:
        """The version of mixout that made the run, and the GPU, or else the processor, that it ran on."""
        if self.record is None:
            return ""
        hardware = self.record.hardware
        machine = hardware.get("gpu") or hardware.get("processor", "an unknown machine")
        return f"mixout {self.record.versions.get('mixout', 'of an unknown version')} on {machine}"

    @property
    def has_model(self) -> bool:
        """Whether the trained model was kept."""
        return (self.folder / "config.json").exists()

    @property
    def metrics(self) -> list[str]:
        """The scores by which the run may be compared: those of each evaluation of which higher is better."""
        scores = {} if self.record is None else self.record.evaluations[-1].scores
        return [name for name in scores if name in (*KNOWN, *TEXT_METRICS)]

    def seen_as(self, planned: Planned) -> Run:
        """The run under the names of a study, with the score that counts there.

        Raises:
            InputError: the run has no such score.
        """
        if planned.metric == self.run.metric:
            return replace(self.run, **planned.key.named)
        if self.record is not None and planned.metric not in self.record.scores:
            metrics = ", ".join(self.record.scores)
            raise InputError(f"expected a score of {planned} among {metrics}, got {planned.metric!r}")
        return replace(self.by(planned.metric, planned.chance), **planned.key.named)

    def by(self, metric: str, chance: float | None) -> Run:
        """The run with another of its scores as the one that counts, and what a constant answer scores by it."""
        scored = {"metric": metric} if self.record is None else _scored(self.record, metric)
        return replace(self.run, **scored, chance=chance)

    def between(self, seen: Run, ts: Sequence[float]) -> list[Run]:
        """The models between start and end at ``ts`` (``interpolate``), as runs of methods of their own.

        ``seen`` is the run itself, under the names that count.

        Each has the scores that the record holds for the weights at u + t (w - u); t = 1 is the run itself. If the run
        failed, none has a score.
        """
        unscored = tuple({"t": t, seen.metric: math.nan} for t in dict.fromkeys(ts))
        points = unscored if self.record is None else self.record.interpolated
        return [
            replace(
                seen,
                method=between_name(seen.method, point["t"]),
                score=point[seen.metric],
                distance=None if self.run.distance is None else point["t"] * self.run.distance,
                original=_original(point),
                kl_to_base=point.get("kl_to_base"),
                evaluations=(),
                losses=(),
                predictions=(),
                standard_error=None,
                collapsed=False,
                between=True,
                id="",  # of the trained model alone
            )
            for point in points
            if point["t"] in ts and point["t"] != 1
        ]


def result_of(values: Mapping[str, Any], names: tuple[str, ...] = _OUTCOME) -> str:
    """sha256 of what came out of a run: scores and predictions, not clocks, machine or paths.

    Args:
        values: the JSON of a record, in which numbers that are not finite are written so that they compare as equal.
        names: the fields that count.
    """
    return hashlib.sha256(json.dumps([values[name] for name in names]).encode()).hexdigest()


def describe(run: Planned, wall: float | None) -> str:
    """The text of ``run.json``: the settings of the run, and its names in the study."""
    values = {name: getattr(run, name) for name in (*_PLACE, "metric", "chance", "looks")}
    return json.dumps({"format": FORMAT, **values, "settings": asdict(run.settings), "wall": wall}, indent=1) + "\n"


def read_entry(folder: Path) -> Entry:
    """The run in a folder: one that ended if the folder's name contains a result, otherwise one that failed.

    Raises:
        NewerError: a newer mixout wrote it.
        OSError, ValueError, KeyError, TypeError, AttributeError: a file or a field is missing or malformed.
    """
    values: dict[str, Any] = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
    if values.get("format", 1) > FORMAT:
        raise NewerError(f"expected a run of format {FORMAT} at most, got {values['format']}")
    if values["id"] != folder.name.partition(".")[0]:
        raise InputError(f"expected the run {folder.name}, got that of {values['id']}")
    place = {name: values[name] for name in _PLACE} | {"looks": values.get("looks", 1)}
    settings = _DEFAULTS | values["settings"]
    known: dict[str, Any] = {"folder": folder, "settings": settings}
    if "." not in folder.name:
        failure = json.loads((folder / FAILURE_NAME).read_text(encoding="utf-8"))
        goal = {"metric": values["metric"], "chance": values["chance"]}
        run = Run(**place, **goal, score=math.nan, status="failed", error=error_of(str(failure["traceback"])))
        return Entry(**known, run=run, record=None, attempts=failure["attempts"])
    record = _record(folder)
    memory = record.peak_memory
    run = Run(
        **place,
        **_scored(record, record.metric),
        chance=record.chance,
        status=record.status,
        error=None if record.status == "finished" else "the loss got out of hand",
        seconds=float(record.seconds),
        peak_memory=memory.get("host") if memory.get("device") is None else memory["device"],
        distance=float(record.distance),
        original=_original(record.scores),
        kl_to_base=record.scores.get("kl_to_base"),
        losses=tuple((log.step, log.loss) for log in record.training),
        predictions=() if record.nested else record.predictions,
        dev_size=record.dev_size,
        collapsed=_collapsed(record),
    )
    return Entry(**known, run=run, record=record, wall=values["wall"])


def _record(folder: Path) -> Record:
    text = (folder / RECORD_NAME).read_text(encoding="utf-8")
    values = json.loads(text)
    # A field that this version does not know was written by a newer version.
    unknown = [name for name in values if name not in {"format", *(item.name for item in fields(Record))}]
    unknown += [name for name in values["settings"] if name not in {item.name for item in fields(Settings)}]
    if values["format"] > RECORD_FORMAT or unknown:
        version = values.get("versions", {}).get("mixout", "?")
        unsupported = f"{unknown[0]!r}" if unknown else f"format {values['format']}"
        raise NewerError(f"expected a record that this version knows, got {unsupported}, of mixout {version}")
    result = folder.name.partition(".")[2]
    if result not in (result_of(values)[:12], result_of(values, _OUTCOME_0_1)[:12]):
        raise InputError("expected the result that the folder is named after, got another; the record was changed")
    return Record.from_json(text)


def _scored(record: Record, metric: str) -> dict[str, Any]:
    """What a run has to say of one of its scores."""
    return {
        "metric": metric,
        "score": record.scores[metric],
        "standard_error": record.standard_errors.get(metric),
        "evaluations": tuple((evaluation.step, evaluation.scores[metric]) for evaluation in record.evaluations),
    }


def _original(scores: Mapping[str, float]) -> float | None:
    return next((scores[name] for name in _ORIGINAL if name in scores), None)


def _collapsed(record: Record) -> bool:
    if not record.evaluations or record.settings.task_type == CAUSAL or record.nested:
        return False
    return is_collapsed(
        record.predictions,
        record.evaluations[-1].loss,
        accuracy=record.scores.get("accuracy"),
        classes=None if record.labels is None else len(record.labels),
        correlation=record.scores.get("pearson", 0.0),
    )


def told_apart(entries: Sequence[Entry]) -> dict[str, dict[str, str]]:
    """For each id the values that distinguish the run from others in its place: settings, and hashes of the content."""
    traits = {
        entry.run.id: {name: text_of(value) for name, value in entry.settings.items() if name not in _NO_FACTORS}
        for entry in entries
    }
    names = {name for values in traits.values() for name in values}
    for name, (fingerprint, keys) in _CONTENT.items():
        ended = [(entry.run.id, entry.record) for entry in entries if entry.record is not None]
        content = {id: (record.fingerprints.get(fingerprint) or "unknown")[:8] for id, record in ended}
        # The content of a failed run is that of ended runs with equal settings: with equal paths first, then with any.
        for key_group in (keys, [key for key in keys if key not in PLACES]):
            for similar in _alike(entries, key_group):
                digest = if_one(content[entry.run.id] for entry in similar if entry.run.id in content)
                if digest is not None:
                    content = dict.fromkeys((entry.run.id for entry in similar), digest) | content
        for entry in entries:
            traits[entry.run.id][name] = content.get(entry.run.id, "unknown")
    _name_own_subsets(entries, names - {"method", "subset_seed"}, traits)
    return traits


def _name_own_subsets(entries: Sequence[Entry], names: Collection[str], traits: dict[str, dict[str, str]]) -> None:
    """With own_subsets restarts differ in their training data: call these "own" among runs with equal ``names``."""
    own: dict[str, list[Entry]] = {}
    for group in _alike(entries, names):
        subsets = grouped(group, lambda entry: entry.settings.get("subset_seed"))
        # With own_subsets, subset k occurs in restart k only.
        own_subsets = [subset for seed, subset in subsets.items() if {entry.run.restart for entry in subset} == {seed}]
        if len(own_subsets) > 1:
            own.setdefault(group[0].run.task, []).extend(chain(*own_subsets))
    for of_task in own.values():
        # Several contents of one subset are several versions of the data, which are known by their paths.
        contents: dict[tuple[str, ...], set[str]] = {}
        for entry in of_task:
            same_subset = [text_of(entry.settings.get(name)) for name in _SUBSET]
            for location in ("", _location(entry)):
                contents.setdefault((location, *same_subset), set()).add(traits[entry.run.id]["train_data"])
        varied = {location for (location, *_), digests in contents.items() if len(digests - {"unknown"}) > 1}
        for entry in of_task:
            # Which subsets belong together is not known of data that were changed in place: they keep their content.
            if (location := _location(entry)) not in varied:
                data = f"own, {location}" if "" in varied else "own"
                traits[entry.run.id] |= {"subset_seed": "own", "train_data": data}


def _location(entry: Entry) -> str:
    return " in ".join(entry.settings[name] for name in ("task", "data_dir") if entry.settings.get(name))


def _alike(entries: Sequence[Entry], names: Collection[str]) -> Iterable[list[Entry]]:
    """Groups of entries of one task that have equal values of these settings."""
    return grouped(entries, lambda e: (e.run.task, *(text_of(e.settings.get(name)) for name in names))).values()
