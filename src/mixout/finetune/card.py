"""The model card, README.md: how a model was trained, what it scores, and what that is worth.

Made by card.md.j2 from the record, and from the task the number of rows of each class. ``push`` uploads it with the
model.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from mixout._names import count
from mixout.errors import InputError, needs
from mixout.finetune.record import Record
from mixout.finetune.settings import CAUSAL, TAGS
from mixout.finetune.tasks import Task

with needs("hf", "model cards"):
    from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCardData
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

_TAGS = {CAUSAL: "text-generation", TAGS: TAGS}  # of a model, and of the pipeline that answers with it
_CLASSES = 20  # most classes that are named
# The settings that the card lists; the rest is in record.json.
_TOLD = (
    "method where head optimizer learning_rate schedule warmup weight_decay layer_decay reinit_layers epochs max_steps "
    "patience keep_best head_first batch_size batching accumulation label_smoothing class_weights max_grad_norm "
    "max_length assistant_only_loss precision init_seed data_seed mask_seed subset_seed"
)


def write(record: Record, *, task: Task | None = None, result: str = "") -> str:
    """The card's text, Markdown with the header that model hubs read.

    ``task`` adds how often each class occurs, which no record holds; ``result`` is in place of the record's scores.
    """
    settings, first = record.settings, record.evaluations[0]
    rows = task.train.label if task is not None and record.labels else ()
    counts = Counter(number for row in rows for number in task.of_row(row))  # type: ignore[union-attr]
    names = [f"`{name}` {counts[number]:,}" for number, name in enumerate(record.labels or ())]
    loaders = {CAUSAL: "AutoModelForCausalLM", TAGS: "AutoModelForTokenClassification"}
    return rendered(
        "mixout.finetune",
        "card.md.j2",
        record=record,
        settings=settings,
        header=_header(record),
        fitted=record.fitted,
        loader=loaders.get(settings.task_type, "AutoModelForSequenceClassification"),
        classes=", ".join([*names[:_CLASSES], *["..."][: len(names) - _CLASSES]]) if counts else "",
        pipeline=_TAGS.get(settings.task_type, "text-classification"),
        before=first.scores if first.step == 0 else {},
        result=result,
        told=_TOLD.split(),
        short=_short,
        count=count,
    )


def rendered(package: str, name: str, **values: Any) -> str:  # noqa: ANN401
    """A template of a package with these values in it."""
    text = resources.files(package).joinpath(name).read_text("utf-8")
    environment = Environment(trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    return environment.from_string(text).render(**values)


def _header(record: Record) -> str:
    """YAML, with the scores as model hubs list them."""
    settings = record.settings
    tag = _TAGS.get(settings.task_type, "text-classification")
    task, on_hub = settings.task.partition(":")[0], "on the hub" in record.source["data"]
    results = [
        EvalResult(
            task_type=tag,
            dataset_type=task if on_hub else re.sub(r"[^\w.-]", "-", _short(task)),
            dataset_name=_short(task),
            dataset_split="dev",
            metric_type=name,
            metric_value=round(value, 4),
        )
        for name, value in record.scores.items()
        if math.isfinite(value) and not record.fitted
    ]
    name = f"{_short(settings.model)} on {_short(settings.task)}"
    data = ModelCardData(
        pipeline_tag=tag,
        library_name="transformers",
        tags=["mixout"],
        metrics=list(record.scores),
        base_model=settings.model if "on the hub" in record.source["model"] else None,
        datasets=[task] if on_hub else None,
        # An empty list would be no valid index.
        model_name=name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _short(path: str) -> str:
    """The last part of a path: the folders of the training machine stay private."""
    return path.rstrip("/").rpartition("/")[2] or path


def prepare(name: str) -> None:
    """Make the repository on the hub before a run begins; InputError where that cannot be."""
    with _hub(name):
        HfApi().create_repo(name, exist_ok=True)


def push(folder: Path, name: str) -> str:
    """Upload a finished run without the paths of this machine; InputError where the hub refuses it."""
    settings = Record.read(folder).settings
    paths = [settings.model, settings.task, settings.data_dir, settings.original, str(folder)]
    existing = [Path(path) for path in paths if path and Path(path).exists()]
    local = {str(spelling) for path in existing for spelling in (path, path.resolve())}
    # A table is not part of the run: it holds answers to the user's own rows.
    files = sorted(
        path for path in folder.iterdir() if path.is_file() and path.suffix != ".csv" and path.name[0] != "."
    )
    operations = [CommitOperationAdd(path.name, _without(path, local)) for path in files]
    with _hub(name):
        commit = HfApi().create_commit(name, operations, commit_message="Fine-tuned with mixout")
    return str(commit.repo_url)


def _without(path: Path, local_paths: Collection[str]) -> bytes | Path:
    """A text file with the last part of each path alone; other files as they are."""
    if path.suffix not in (".json", ".md"):
        return path
    text = path.read_text(encoding="utf-8")
    # The longest first, since others may be a part of it.
    for local_path in sorted(local_paths, key=len, reverse=True):
        if "/" in local_path:
            text = text.replace(json.dumps(local_path)[1:-1], _short(local_path))
    return text.encode()


@contextmanager
def _hub(name: str) -> Iterator[None]:
    try:
        yield
    except (HTTPError, HFValidationError, OSError) as error:
        # What the hub answers is an OSError too; a hub that is not reached answers nothing.
        answered = isinstance(error, (HFValidationError, OSError))
        raise InputError(
            f"expected a repository of the hub that can be written to, got {name!r}: {' '.join(str(error).split())}; "
            + ("log in with: hf auth login" if answered else "is this machine connected to the hub?")
        ) from error
