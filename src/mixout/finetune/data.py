"""Settings -> the labelled task or the corpus that they name; and the part of its training data that is used.

What one type of task cannot use is refused here, where a run and the plan of a study both pass, and not by the
settings: a study's file says the type for all its tasks in one place, and the rest in others.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mixout.errors import InputError
from mixout.finetune.settings import CAUSAL, Settings
from mixout.finetune.tasks import Columns, Task, few_sample, files, is_path, load_task
from mixout.finetune.tasks import documents as text
from mixout.finetune.tasks.documents import Corpus

# What only labelled text has, and its value where there is none.
_OF_LABELS = {
    "data_dir": None,
    "pair_column": None,
    "label_column": "label",
    "head": "plain",
    "head_first": 0.0,
    "class_weights": "none",
}


def load(settings: Settings) -> Task | Corpus:
    """Load all of the data.

    Raises:
        InputError: the task, the metric, the files, or a setting that the type of task does not have.
        MissingExtraError: an optional dependency of the task is not installed.
    """
    if settings.task_type == CAUSAL:
        return _corpus(settings)
    columns = Columns(text=settings.text_column, pair=settings.pair_column, label=settings.label_column)
    task = load_task(settings.task, data_dir=settings.data_dir, columns=columns, metric=settings.metric)
    if settings.original is None:
        return task
    before = text.read_original(Path(settings.original), settings.text_column)
    return replace(task, original=before.text)


def subset(task: Task | Corpus, settings: Settings) -> Task | Corpus:
    """The data with as much training data as ``train_size`` says.

    Raises:
        InputError: there is less.
    """
    if settings.train_size is None:
        return task
    seed = settings.resolved().subset_seed or 0
    if isinstance(task, Corpus):
        return replace(task, train=few_sample(task.train, settings.train_size, seed))
    return replace(task, train=few_sample(task.train, settings.train_size, seed))


def _corpus(settings: Settings) -> Corpus:
    for name, default in _OF_LABELS.items():
        if getattr(settings, name) != default:
            raise InputError(
                f"expected {name} only with labelled text, got {getattr(settings, name)!r} with "
                f"task_type={CAUSAL!r}; leave it out"
            )
    # os.path.exists, unlike Path.exists, answers no to names that no file can have.
    if not is_path(settings.task) or not (os.path.exists(settings.task) or files.is_hub_name(settings.task)):
        raise InputError(
            f"expected a folder or file with text for task_type={CAUSAL!r} ({', '.join(text.ENDINGS)}), got "
            f"{settings.task!r}; check the path"
        )
    original = None if settings.original is None else Path(settings.original)
    return text.load(Path(settings.task), original=original, column=settings.text_column, metric=settings.metric)
