"""The training rows in five parts: a run is trained on four of them and scored on the fifth.

Parts are stratified, and rows with the same text are in the same part. They are written as folders with ``train.jsonl``
and ``dev.jsonl``, so a run on one is an ordinary run that is known by its content. The dev file of a folder is not
opened here.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixout.errors import InputError, needs
from mixout.finetune import data
from mixout.finetune.record import write_atomically
from mixout.finetune.settings import CAUSAL, Settings
from mixout.finetune.tasks import Task, files, is_path
from mixout.finetune.tasks.cells import OPTIONAL_PAIR, if_values

with needs("hf", "choosing"):
    from sklearn.model_selection import StratifiedGroupKFold

PARTS = 5
# Below 8 rows in a part a score says next to nothing.
FEWEST = 8 * PARTS


def training_rows(settings: Settings) -> tuple[Task, bool]:
    """The task with its training rows alone, and whether it has dev rows; InputError if they are too few."""
    if settings.task_type == CAUSAL:
        raise InputError(f"expected labelled texts to choose by, got task_type={CAUSAL!r}; use mixout study for it")
    path, own_dev = Path(settings.task), True
    if is_path(settings.task) and os.path.exists(settings.task):
        task = files.load(path, columns=data.columns_of(settings), metric=settings.metric, dev=False)
        if settings.original is not None:
            files.read_original(Path(settings.original), settings.text_column)  # a faulty file shows now
        own_dev = files.has_dev(path)
        if own_dev:
            files.members(path, files.DEV)  # two of them, or an unreadable one, would show at the very end
    else:
        task = data.load(settings)
    train = data.subset(task, settings).train
    task = replace(task, train=train, dev=train)
    _check(task)
    return task, own_dev


def _check(task: Task) -> None:
    if len(task.train) < FEWEST:
        raise InputError(
            f"expected at least {FEWEST} training rows to choose by, got {len(task.train)}; label more rows, or take "
            "the default: mixout finetune"
        )
    rows = zip(task.train.questions(), task.train.label, strict=True)
    texts = Counter(number for _, number in {(text, number) for text, label in rows for number in task.of_row(label)})
    for number, name in enumerate(task.labels or ()):
        if texts[number] < PARTS:
            raise InputError(
                f"expected at least {PARTS} different texts of each class, one for each part, got {texts[number]} of "
                f"{name!r}; label more of them, or leave the class out{if_values(task.labels or ())}"
            )


def split(task: Task, seed: int) -> list[list[int]]:
    """The rows of each part, stratified by the rarest class of each row, so that no part lacks a class."""
    classes = [{*task.of_row(label)} for label in task.train.label]
    counts = Counter(number for row in classes for number in row)
    strata = [min(row, key=lambda number: (counts[number], number), default=-1) for row in classes]
    sizes = Counter(strata)
    strata = [stratum if sizes[stratum] >= PARTS else sizes.most_common(1)[0][0] for stratum in strata]
    splitter = StratifiedGroupKFold(PARTS, shuffle=True, random_state=seed)
    return [rows.tolist() for _, rows in splitter.split(strata, strata, groups=task.train.questions())]


def write(task: Task, parts: Sequence[Sequence[int]], folder: Path, settings: Settings) -> list[Path]:
    """Write the folder of each part, with the numbers of the classes as labels, so that these keep their order.

    The last folder has all rows as training and as dev rows, with the names of the classes. Columns are called as in
    the settings, so that the final model knows those of the user's files.
    """
    named, folders = task.kind != "classes", []
    for number, held_out in enumerate(parts):
        train_rows = sorted(row for part in parts if part is not held_out for row in part)
        folders.append(_write(folder / f"part-{number}", task, train_rows, held_out, settings, named=named))
    rows = range(len(task.train))
    return [*folders, _write(folder / "all", task, rows, rows, settings, named=True)]


def _write(
    folder: Path, task: Task, train: Sequence[int], dev: Sequence[int], settings: Settings, *, named: bool
) -> Path:
    labels: Sequence[Any] = task.train.label
    if named and task.labels is not None:
        labels = [[task.labels[number] for number in task.of_row(label)] for label in labels]
        labels = labels if task.kind in ("labels", "tags") else [name for [name] in labels]
    columns: dict[str, Sequence[object]] = {settings.text_column: task.train.text, settings.label_column: labels}
    if task.train.pair is not None:
        columns[settings.pair_column or OPTIONAL_PAIR] = task.train.pair
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("dev", dev)):
        write_atomically(folder / f"{name}.jsonl", "".join(f"{lines[row]}\n" for row in rows))
    return folder
