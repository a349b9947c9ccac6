"""The scores of a fine-tuned model while its task delta is dropped, or scaled down.

MODEL is a folder that ``mixout finetune`` wrote: its record knows the task, the base model, which is the anchor, and
which parameters were new and so have none. Scores are those of the dev set in float32. Nothing is trained or written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixout.anchor import old_fingerprint
from mixout.dare.delta import Delta, Unit
from mixout.dare.scores import INTERPOLATION, Score
from mixout.errors import InputError
from mixout.finetune import models
from mixout.finetune.batches import DevSet, Example, encode
from mixout.finetune.extras import needs
from mixout.finetune.isolation import quiet
from mixout.finetune.models import Loaded
from mixout.finetune.record import RECORD_NAME, Record
from mixout.finetune.settings import CAUSAL
from mixout.finetune.tasks import Columns, Task, load_task

with needs("hf", "scoring"):
    from transformers import DataCollatorWithPadding

UNITS: tuple[Unit, ...] = ("element", "input")
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which points are scored.

    Args:
        rates: drop rates p, each in [0, 1].
        interpolate: shares t of the delta that are kept without any drawing, each in [0, 1].
        units: what shares a coin.
        draws: scores at each rate; one at 0 and at 1, where nothing is random.
        seed: of the first draw; the next ones count on.

    Raises:
        InputError: if a value is out of its range, or nothing is left to score.

    Example:
        >>> [(one[0], one[1]) for one in Plan(rates=(0.5,), interpolate=(1.0,), units=("element",), draws=1).points()]
        [('element', 0.5), ('interpolation', 0.0)]
    """

    rates: Sequence[float]
    interpolate: Sequence[float]
    units: Sequence[Unit] = UNITS
    draws: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rates", "interpolate"):
            for value in getattr(self, name):
                if not 0 <= value <= 1:
                    raise InputError(f"expected {name} in [0, 1], got {value}")
        if self.draws < 1:
            raise InputError(f"expected draws as a whole number >= 1, got {self.draws}")
        if not self.points():
            raise InputError("expected a drop rate or a point of the interpolation, got none; give --rates")

    def points(self) -> list[tuple[str, float, int | None]]:
        """(curve, removed, seed) of every score."""
        found: list[tuple[str, float, int | None]] = []
        for unit in dict.fromkeys(self.units):
            for rate in sorted(set(self.rates)):
                random = 0 < rate < 1
                found += [(unit, rate, self.seed + draw) for draw in range(self.draws if random else 1)]
        # Rounded: 1 - 0.9 is one of the rates, and belongs under it.
        return found + [(INTERPOLATION, round(1 - t, 12), None) for t in sorted(set(self.interpolate), reverse=True)]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is scored.

    Args:
        record: of the run that made the model.
        task: whose dev set scores.
        delta: the model, with w and u.
        dev: the dev set in the model's tokens.
        loaded: the model with its tokenizer.
        constants: what the scores depend on beside their points, as columns of a table.
    """

    record: Record
    task: Task
    delta: Delta
    dev: DevSet
    loaded: Loaded
    constants: dict[str, str]


def load(folder: str, *, anchor: str | None, task: str | None, data_dir: str | None) -> Subject:
    """Load model, anchor and task, and check that they belong together.

    Args:
        folder: what ``mixout finetune`` wrote.
        anchor: base model; None for the one that the record names.
        task: another task than the record's, of the same labels; None for that.
        data_dir: of a GLUE task; None for the record's.

    Raises:
        InputError: there is no such model, anchor or task, they do not fit each other, or it is a language model.
    """
    place = Path(folder).expanduser()
    if not (place / RECORD_NAME).is_file():
        raise InputError(
            f"expected a folder that mixout finetune wrote, got {folder!r} without {RECORD_NAME}; train one first"
        )
    record = Record.read(place)
    if record.settings.task_type == CAUSAL:
        raise InputError(
            f"expected a run whose model gives labels, got {folder!r} of task type {CAUSAL!r}, which mixout dare "
            "cannot score; set the weights in Python with mixout.dare.delta.Delta, and score them there"
        )
    chosen = _task(record, task, data_dir)
    with quiet():
        loaded = models.load(str(place), labels=record.labels, init_seed=0)
        if loaded.new:
            raise InputError(f"expected a whole model in {folder!r}, got one without {', '.join(sorted(loaded.new))}")
        base = anchor or record.settings.model
        anchors = _anchors(loaded, base, record)
        examples = encode(chosen.dev, loaded.tokenizer, record.settings.max_length)
    if torch.accelerator.is_available():
        loaded.model.to(torch.accelerator.current_accelerator())  # type: ignore[arg-type]
    loaded.model.train(False)
    delta = Delta.of(loaded.model, anchors)
    return Subject(
        record=record,
        task=chosen,
        delta=delta,
        dev=DevSet(chosen, examples),
        loaded=loaded,
        constants={
            "task": task or record.settings.task,
            "metric": chosen.metric,
            "method": record.settings.method,
            "weights": old_fingerprint(dict(loaded.model.named_parameters()))[:12],
            "anchor": old_fingerprint(anchors)[:12],
            "dev": chosen.dev.fingerprint()[:12],
        },
    )


def measure(subject: Subject, points: Sequence[tuple[str, float, int | None]]) -> Iterator[Score]:
    """The score at each of ``points``, one after the other; the model ends as it began."""
    try:
        for curve, removed, seed in points:
            if curve == INTERPOLATION:
                subject.delta.interpolate_(1 - removed)
            else:
                subject.delta.drop_(removed, unit="input" if curve == "input" else "element", seed=seed or 0)
            yield Score(curve=curve, removed=removed, seed=seed, score=score(subject))
    finally:
        subject.delta.interpolate_(1.0)


@torch.no_grad()
def score(subject: Subject) -> float:
    """The dev set's score with the model's weights of this moment."""
    model, examples = subject.loaded.model, subject.dev.sorted()
    device = next(model.parameters()).device
    collate: Callable[[list[Example]], dict[str, Tensor]] = DataCollatorWithPadding(subject.loaded.tokenizer)
    outputs = []
    for start in range(0, len(examples), _BATCH):
        batch = collate([dict(one) for one in examples[start : start + _BATCH]])
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        outputs.append(model(**inputs)["logits"].float().cpu())
    return subject.dev.score(torch.cat(outputs).numpy())[subject.task.metric]


def _task(record: Record, name: str | None, data_dir: str | None) -> Task:
    settings = record.settings
    if name is None:
        columns = Columns(text=settings.text_column, pair=settings.pair_column, label=settings.label_column)
        place = data_dir or settings.data_dir
        task = load_task(settings.task, data_dir=place, columns=columns, metric=settings.metric)
    else:
        task = load_task(name, data_dir=data_dir)
    if task.labels != record.labels:
        raise InputError(
            f"expected a task with the model's labels {record.labels}, got {name or settings.task!r} with {task.labels}"
        )
    return task


def _anchors(loaded: Loaded, base: str, record: Record) -> dict[str, Tensor]:
    """The base model's weights by the names of ``loaded``, without those that the run began anew."""
    pretrained = models.load(base, labels=record.labels, init_seed=0)
    known = dict(pretrained.model.named_parameters())
    new = pretrained.new | set(record.new_parameters)
    found = {
        name: known[name].detach()
        for name, parameter in loaded.model.named_parameters()
        if name in known and name not in new and known[name].shape == parameter.shape
    }
    missing = [name for name, _ in loaded.model.named_parameters() if name not in found and name not in new]
    if missing or not found:
        raise InputError(
            f"expected an anchor that the model was fine-tuned from, got {base!r} without "
            f"{', '.join(missing[:3]) or 'any of its weights'}; name the base model with --anchor"
        )
    return found
