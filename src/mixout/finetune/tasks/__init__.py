"""Tasks by name: GLUE, the embedded ``docstrings``, a data set of the hub, or a path to the user's own files."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

from mixout._names import nearest
from mixout.errors import InputError
from mixout.finetune import metrics
from mixout.finetune.tasks import files, glue
from mixout.finetune.tasks.base import Split as Split
from mixout.finetune.tasks.base import Task as Task
from mixout.finetune.tasks.base import few_sample as few_sample
from mixout.finetune.tasks.cells import Columns as Columns
from mixout.finetune.tasks.tables import read_tsv

EMBEDDED = "docstrings"
_NAMES = {key: layout.name for key, layout in glue.LAYOUTS.items()} | {EMBEDDED: EMBEDDED}


def load_task(
    name: str, *, data_dir: str | Path | None = None, columns: Columns | None = None, metric: str | None = None
) -> Task:
    """Load a task.

    Args:
        name: a GLUE task (RTE, MRPC, CoLA, STS-B, SST-2, QNLI, QQP, MNLI, WNLI, in any spelling), ``"docstrings"``, or
            a path to a folder or file, or a data set of the hub, see :mod:`.files`. A name wins over a folder of that
            name; write ``./rte`` for the folder.
        data_dir: where GLUE's TSV files are; ``None`` for the hub.
        columns: the columns of the user's own files.
        metric: the primary metric instead of the task's own.

    Raises:
        InputError: the name, the metric, the files, or an option that the task does not have.
        MissingExtraError: an optional dependency of the task is not installed.
    """
    if metric is not None:
        metrics.check(metric)
    key, external = glue.key_of(name), is_path(name)
    # os.path.exists, unlike Path.exists, returns False for names that no file can have. A name close to one of our
    # tasks counts as mistyped: it is not looked for on the hub, unless it names a split.
    if external and not os.path.exists(name) and (not files.is_hub_name(name) or (":" not in name and _hint(name))):
        raise InputError(
            f"expected a file or folder that exists, or a task ({', '.join(_NAMES.values())}), got {name!r}"
            f"{_hint(name) or _beside(name) or '; check the path'}"
        )
    if data_dir is not None and key not in glue.LAYOUTS:
        raise InputError(f"expected data_dir only with a GLUE task, got it with the task {name!r}; leave it out")
    if external:
        return files.load(name, columns=columns or Columns(), metric=metric)
    if columns not in (None, Columns()):
        raise InputError(
            f"expected column names and kinds of labels only with files of your own, got them with the task {name!r}; "
            "leave them out"
        )
    task = docstrings() if key == EMBEDDED else glue.load(key, data_dir=data_dir)
    if metric is None:
        return task
    metrics.check(metric, metrics.REGRESSION if task.labels is None else metrics.CLASSIFICATION)
    return dataclasses.replace(task, metric=metric, metrics=tuple(dict.fromkeys([metric, *task.metrics])))


def is_path(name: str) -> bool:
    """Whether a task's name means a folder or file, which need not exist, rather than a task that we know."""
    return glue.key_of(name) not in _NAMES


def _hint(name: str) -> str:
    # Compare the last part: whoever mistypes a task's name may well write it as a path.
    key = glue.key_of(Path(name).name)
    return "" if key in _NAMES else nearest(key, _NAMES)


def _beside(name: str) -> str:
    """A hint at the most similar name in the same folder."""
    try:
        return nearest(os.path.basename(name), os.listdir(os.path.dirname(name) or "."))
    except (OSError, ValueError):
        return ""


@functools.cache
def docstrings() -> Task:
    """The embedded task: which of eight libraries does this sentence come from?

    Its 7,200 sentences are first sentences of docstrings, with the names of libraries masked and without those that two
    libraries share, in docstrings.tsv beside this file, with their licences.
    """
    table = read_tsv(Path(__file__).with_name("docstrings.tsv"))
    sides = table.columns["split"]
    tables = [table.take([row for row, side in enumerate(sides) if side == split]) for split in ("train", "dev")]
    source = "First sentences of docstrings of eight libraries; docstrings.LICENSES.txt has their versions."
    task = files.task_of(tables, source, name="docstrings", columns=Columns(), metric="accuracy")
    return dataclasses.replace(task, metrics=("accuracy", "f1"))
