"""Settings -> the labelled task or the corpus that they name, the part of it that is used, and its description.

Settings that one type of task cannot use are refused here, both for a run and for the plan of a study.

The description comes before a run trains: how many rows and classes, and what often goes wrong with them. A line that
begins with "note: " asks for a second look at the data. It refuses nothing: all of this can be intended.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixout._names import count
from mixout.errors import InputError
from mixout.finetune.defaults import steps_per_epoch
from mixout.finetune.environment import NOTE
from mixout.finetune.settings import CAUSAL, TAGS, Settings
from mixout.finetune.tasks import Columns, Task, cells, few_sample, files, is_path, load_task
from mixout.finetune.tasks.tables import number
from mixout.methods import OutputAnchor
from mixout.schedule import last_step_begins

# The settings that decide which data are read, and how.
READ = (
    *("task", "task_type", "original", "data_dir", "metric", "multi_label"),
    *("text_column", "pair_column", "label_column"),
)
# Settings of labelled text alone.
_OF_LABELS = ("data_dir", "pair_column", "label_column", "multi_label", "head", "head_first", "class_weights")
_FEW = 0.02  # a share of rows
_NAMED = 6  # most classes that are named one by one
_MISSING = ("na", "n/a", "nan", "none", "null", "unknown", "?", "-")


def load(settings: Settings) -> Task:
    """Load all of the data; raises as :func:`load_task`, or for a setting that the type of task does not have."""
    original = None if settings.original is None else Path(settings.original)
    if settings.task_type == CAUSAL:
        _check_text(settings)
        task = files.load_text(settings.task, original=original, column=settings.text_column, metric=settings.metric)
    else:
        columns = columns_of(settings)
        task = load_task(settings.task, data_dir=settings.data_dir, columns=columns, metric=settings.metric)
        if original is not None:
            task = replace(task, original=files.read_original(original, settings.text_column))
    if settings.assistant_only_loss and not task.train.chat:
        raise InputError(
            "expected assistant_only_loss only with conversations for task_type='causal-lm', got other data; leave it "
            "out: of a prompt and its completion only the completion is learned in any case"
        )
    return task


def columns_of(settings: Settings) -> Columns:
    """The columns of labelled text, and what they hold."""
    holds: Any = "tags" if settings.task_type == TAGS else "labels" if settings.multi_label else "label"
    return Columns(text=settings.text_column, pair=settings.pair_column, label=settings.label_column, holds=holds)


def check_kind(settings: Settings, task: Task) -> None:
    """Refuse, by an InputError, a loss that is undefined for these labels, and a run that trains the head alone."""
    described = {"values": "labels that are values", "labels": "several labels a row", "tags": "tags of words"}
    for name, default, kinds in (
        ("label_smoothing", 0.0, ("values", "labels")),
        ("class_weights", "none", ("values", "labels", "tags")),
    ):
        value = getattr(settings, name)
        if value != default and task.kind in kinds:
            raise InputError(f"expected {name}={default} for {described[task.kind]}, got {value}; leave it out")
    if task.kind == "labels" and any(isinstance(m, OutputAnchor) and m.on == "logits" for m in settings.methods):
        raise InputError(
            f"expected output_anchor with on=hidden for several labels a row, got {settings.method!r}: its divergence "
            "is of one class a row"
        )
    if not settings.head_first:
        return
    in_epoch = steps_per_epoch(settings.train_size or len(task.train), settings)
    steps = settings.max_steps or math.ceil(settings.epochs * in_epoch)
    batches = math.ceil((settings.train_size or len(task.train)) / settings.batch_size)
    if settings.head_first > last_step_begins(steps, batches, settings.accumulation):
        raise InputError(
            f"expected head_first below the {count(steps / in_epoch, 'epoch')} of the run, with a step for all weights "
            f"left, got {settings.head_first:g}; train longer, or lower it"
        )


def subset(task: Task, settings: Settings) -> Task:
    """The data with as much training data as ``train_size`` says; InputError where there is less."""
    if settings.train_size is None:
        return task
    return replace(task, train=few_sample(task.train, settings.train_size, settings.subset_seed or 0))


def _check_text(settings: Settings) -> None:
    """Refuse, by an InputError, settings of labelled text, and a task that is no text for a language model."""
    for name in _OF_LABELS:
        if getattr(settings, name) != getattr(Settings, name):
            raise InputError(
                f"expected {name} only with labelled text, got {getattr(settings, name)!r} with "
                f"task_type={CAUSAL!r}; leave it out"
            )
    # os.path.exists, unlike Path.exists, returns False for names that no file can have.
    if not is_path(settings.task) or not (os.path.exists(settings.task) or files.is_hub_name(settings.task)):
        raise InputError(
            f"expected a folder or file with text for task_type={CAUSAL!r} ({', '.join(files.TEXT_ENDINGS)}), got "
            f"{settings.task!r}; check the path"
        )


def describe(task: Task, *, cut: tuple[int, int] = (0, 0), max_length: int = 0) -> list[str]:
    """Describe the data in a few lines; ``cut`` counts the training and dev texts longer than ``max_length`` tokens.

    Example:
        >>> from mixout.finetune.tasks import Split
        >>> split = Split(text=("a", "b", "c", "d"), label=(0, 1, 0, 1))
        >>> words = {"name": "t", "labels": ("no", "yes"), "metrics": ("accuracy",), "metric": "accuracy", "source": ""}
        >>> task = Task(train=split, dev=split.select([0, 1]), **words)
        >>> for line in describe(task, cut=(3, 0), max_length=8):
        ...     print(line)
        t: 4 training rows, 2 dev rows (95 % interval of an accuracy: ±69.3 points)
        2 classes: 'no' (2 training rows), 'yes' (2); always answering 'no' is right in 50 % of the dev rows
        note: t: 3 of 4 training texts and 0 of 2 dev texts are cut: they are longer than max_length, 8 tokens
        note: t: 2 of 2 dev rows are also training rows: the score on new texts will be lower; remove them from one side
    """
    unit = "document" if task.kind == "text" else "row"
    held_out = " held out of the same table" * (files.SPLIT in task.source)
    lines = [
        f"{task.name}: {count(len(task.train), f'training {unit}')}, {count(len(task.dev), f'dev {unit}')}{held_out}"
    ]
    notes = []
    if task.kind in ("labels", "tags"):
        lines.append(_several(task, task.labels or ()))
    elif task.labels is not None:
        # 1.96 standard errors, sqrt(p (1 - p) / n), at p = 0.5, where they are largest.
        margin = 196 * math.sqrt(0.25 / len(task.dev))
        lines[0] += f" (95 % interval of an accuracy: ±{margin:.1f} points)"
        lines.append(_classes(task, task.labels))
        notes += _labels(task, task.labels)
    elif task.kind == "values":
        values, comma = task.train.label, ", read with the comma as decimal sign" * task.comma
        lines.append(f"the labels are values from {min(values):g} to {max(values):g} (regression){comma}")
    if task.dotted:
        notes.append(dotted(task.dotted))
    if any(cut):
        notes.append(
            f"{cut[0]} of {len(task.train)} training texts and {cut[1]} of {len(task.dev)} dev texts are cut: they are "
            f"longer than max_length, {max_length} tokens"
        )
    asked, dev_asked = task.train.questions(), task.dev.questions()
    questions = set(asked)
    repeated = sum(question in questions for question in dev_asked)
    if repeated:
        notes.append(
            f"{repeated} of {len(task.dev)} dev {unit}s are also training {unit}s: the score on new texts will be "
            "lower; remove them from one side"
        )
    classes = task.kind == "classes"
    notes += _repeats("training", asked, task.train.label if classes else ())
    notes += _repeats("dev", dev_asked, task.dev.label if classes else ())
    return lines + [f"{NOTE}{task.name}: {note}" for note in notes]


def dotted(label: str) -> str:
    """What is said of labels such as 1.050 in a file with semicolons, which may be meant as 1050."""
    return (
        f"the label {label!r} is read as {float(label):g}; if its dot is a thousands sign, remove the dots of the "
        f"column: {label.replace('.', '')}"
    )


def _repeats(side: str, asked: Sequence[str], labels: Sequence[object]) -> list[str]:
    """Rows that say the same, or with ``labels`` the contrary; a few are in most data."""
    notes, different = [], len(set(asked))
    if len(asked) - different > _FEW * len(asked):
        notes.append(f"the {len(asked)} {side} rows have {different} different texts; the others add little")
    if labels:
        contrary = Counter(text for text, _ in {*zip(asked, labels, strict=True)})
        several = sum(times > 1 for times in contrary.values())
        if several > _FEW * different:
            have = "has" if several == 1 else "have"
            notes.append(f"{several} of {different} {side} texts {have} several labels: rows contradict each other")
    return notes


def _classes(task: Task, names: Sequence[str]) -> str:
    counts = Counter(task.train.label)
    answer, correct = Counter(task.dev.label).most_common(1)[0]
    share = 100 * correct / len(task.dev)
    if len(names) <= _NAMED:
        first = f"{names[0]!r} ({count(counts[0], 'training row')})"
        listing = ", ".join([first, *(f"{name!r} ({counts[label]})" for label, name in enumerate(names) if label)])
    else:
        listing = f"{min(counts.values())} to {max(counts.values())} training rows each"
    name = names[int(answer)]
    of_f1 = f"; f1 is of {names[1]!r}" if len(names) == 2 and "f1" in task.metrics else ""
    return (
        f"{len(names)} classes: {listing}; always answering {name!r} is right in {share:.0f} % of the dev rows{of_f1}"
    )


def _several(task: Task, names: Sequence[str]) -> str:
    """The line on classes where a row has several labels, or each word a tag."""
    rows = [task.of_row(label) for label in task.train.label]
    counts = Counter(number for row in rows for number in row)
    largest = [f"{names[label]!r} ({rows_with})" for label, rows_with in counts.most_common(_NAMED)]
    listing = ", ".join([*largest, *["..."][: len(names) - _NAMED]])
    if task.kind == "tags":
        return f"{count(len(names), 'tag')} of {counts.total():,} training words: {listing}"
    origin = f", read from cells with {task.separator!r} between them" if task.separator else ""
    return f"{count(len(names), 'label')}, {counts.total() / len(rows):.1f} a row{origin}; in training rows: {listing}"


def _labels(task: Task, names: Sequence[str]) -> list[str]:
    """Signs that the labels do not mean classes."""
    notes = []
    present = sorted(set(task.dev.label))
    if len(present) == 1:
        notes.append(
            f"the dev rows have one class only, {names[int(present[0])]!r}: a constant answer is right in all of them, "
            "so the dev score says nothing; give a dev file with rows of every class"
        )
    elif len(present) < len(names):
        lacking = [repr(name) for label, name in enumerate(names) if label not in present]
        notes.append(f"no dev row has the class {', '.join(lacking[:_NAMED])}{', ...' if lacking[_NAMED:] else ''}")
    written = any(map(cells.is_written, names))  # few of these may be sizes or ranks, such as 2nd
    if len(names) > (_NAMED if written else 2) and (hint := cells.if_values(names)):
        notes.append(f"the labels are numbers ({names[0]} to {names[-1]}), and each is a class{hint}")
    elif parts := _parts(names):
        notes.append(
            f"labels such as {max(names, key=len)!r} look like several in one cell, and each combination is a class: "
            f"{len(names)} classes of {len(parts)} labels; if each may be right, --multi-label"
        )
    folded = Counter(name.casefold() for name in names)
    alike = [repr(name) for name in names if folded[name.casefold()] > 1]
    if alike:
        notes.append(f"the labels {', '.join(alike[:_NAMED])} differ in capitals alone, and are different classes")
    missing = [repr(name) for name in names if name.casefold() in _MISSING]
    if missing:
        notes.append(f"the label {', '.join(missing)} is a class like any other; remove its rows if it means no label")
    return notes


def _parts(names: Sequence[str]) -> set[str]:
    """The single labels in classes that look like combinations, such as "0,3" or "joy|fear"; empty for other classes.

    In combinations some labels occur in several classes. The name of one class may have blanks and slashes too: then
    the labels must also be fewer than the classes, and with blanks all be numbers.
    """
    for separator in (*cells.SEPARATORS, " "):
        split = [cells.several(name, separator) or () for name in names]
        parts = {part for row in split for part in row}
        combined = max(map(len, split)) > 1 and sum(map(len, split)) > len(parts)
        plausible = separator in ",;|" or len(parts) < len(names)
        if combined and plausible and (separator != " " or all(number(part) is not None for part in parts)):
            return parts
    return set()
