"""The model card, README.md: how a model was trained, what it scores, and what that is worth.

Made from the record alone, so it says nothing that the record does not. ``push`` uploads it with the model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from mixout._names import count
from mixout.errors import InputError, needs
from mixout.finetune.record import Record
from mixout.finetune.settings import CAUSAL, TAGS

with needs("hf", "model cards"):
    from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCardData
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

# What a reader of the card asks first; the rest is in record.json.
_TOLD = (
    "method where head optimizer learning_rate weight_decay layer_decay reinit_layers warmup epochs head_first "
    "batch_size batching accumulation class_weights max_grad_norm max_length precision init_seed data_seed mask_seed "
    "subset_seed"
)


_FAILED = "- **This run is not better than a constant answer.** It failed; try another seed.\n"
_CAVEATS = (
    "- One run is one draw: other seeds give other scores, on small data by several points. Compare methods over many "
    "seeds.\n- The scores are on the dev set. Where settings were chosen by it, they are too good."
)


def write(record: Record, *, result: str = "") -> str:
    """The card's text, Markdown with the header that model hubs read; ``result`` in place of the record's scores."""
    settings = record.settings
    loader = {CAUSAL: "AutoModelForCausalLM", TAGS: "AutoModelForTokenClassification"}.get(
        settings.task_type, "AutoModelForSequenceClassification"
    )
    rows = [f"| {name} | `{getattr(settings, name)}` |" for name in _TOLD.split()]
    failed = _FAILED if record.score <= record.chance else ""
    parts = [
        _header(record),
        f"# {_short(settings.model)} on {_short(settings.task)}",
        f"Fine-tuned with [mixout](https://arxiv.org/abs/1909.11299) {record.versions['mixout']}, "
        f"method `{settings.method}` ({_kind(record)}). It is a plain checkpoint: "
        f"`{loader}.from_pretrained` loads it, and mixout is not needed to use it.",
        "## Result",
        *([result] if result else [_result(record), "## What this number is worth", failed + _CAVEATS]),
        "## How it was trained",
        _training(record),
        "\n".join(["| setting | value |", "|---|---|", *rows]),
        "Everything else, with every evaluation and every prediction, is in `record.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _kind(record: Record) -> str:
    if record.settings.task_type == CAUSAL:
        return "causal language model"
    if record.labels is None:
        return "regression"
    many = "tags" if record.settings.task_type == TAGS else "labels, several a row"
    return f"{len(record.labels)} {many if record.nested else 'classes'}"


def _header(record: Record) -> str:
    """YAML, with the scores as model hubs list them."""
    settings = record.settings
    tag = {CAUSAL: "text-generation", TAGS: TAGS}.get(settings.task_type, "text-classification")
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
        if math.isfinite(value)
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
    return f"---\n{data.to_yaml()}\n---"


def _result(record: Record) -> str:
    first = record.evaluations[0]
    started = first.scores if first.step == 0 else {}
    before = {name: f" {value:.4f} |" for name, value in started.items()}
    rows = [
        f"| {name} |{before.get(name, ' |' if started else '')} {value:.4f} |" for name, value in record.scores.items()
    ]
    head = ["| | before training | after |", "|---|---|---|"] if started else ["| dev set | score |", "|---|---|"]
    chance = f"A constant answer scores {record.metric} {record.chance:.4f}."
    status = "" if record.status == "finished" else " **The loss was not finite at some point: this run diverged.**"
    return "\n".join([*head, *rows, "", chance + status])


def _training(record: Record) -> str:
    new = ", ".join(f"`{name}`" for name in record.new_parameters) or "none"
    mixed, layers = record.coverage["parameters_mixed"], record.coverage["layers_mixed"]
    share = f"{count(layers, 'layer')} mixed, {mixed:.1%} of the parameters" if mixed else "nothing mixed"
    gradient = f"; gradient convention `{record.gradient}`" if record.gradient else ""
    hardware = record.hardware
    machine = hardware["gpu"] or f"{hardware['cores']} cores of {hardware['processor']}"
    lines = [
        f"- Model: {record.source['model']}; {record.parameters:,} parameters; new, without pretrained weights: {new}.",
        f"- Data: {record.source['data']} {record.train_size:,} training examples, {record.dev_size:,} in the dev set.",
        f"- Method: `{record.settings.method}` on `{record.settings.where}`: {share}{gradient}. Distance from the "
        f"pretrained weights: {record.distance:.4g}.",
        f"- {count(record.steps, 'step')} in {count(round(record.seconds), 'second')} on {machine}.",
    ]
    return "\n".join(lines)


def _short(place: str) -> str:
    """The last part of a path: where it lay on the machine that trained is nobody's business."""
    return place.rstrip("/").rpartition("/")[2] or place


def prepare(name: str) -> None:
    """Make the repository on the hub before a run begins; InputError where that cannot be."""
    with _hub(name):
        HfApi().create_repo(name, exist_ok=True)


def push(folder: Path, name: str) -> str:
    """Upload a finished run without the paths of this machine; InputError where the hub refuses it."""
    settings = Record.read(folder).settings
    places = [settings.model, settings.task, settings.data_dir, settings.original, str(folder)]
    used = [Path(place) for place in places if place and Path(place).exists()]
    local = {str(form) for place in used for form in (place, place.resolve())}
    # A table is not the run's: answers to rows of the user's own.
    files = sorted(
        path for path in folder.iterdir() if path.is_file() and path.suffix != ".csv" and path.name[0] != "."
    )
    operations = [CommitOperationAdd(path.name, _without(path, local)) for path in files]
    with _hub(name):
        found = HfApi().create_commit(name, operations, commit_message="Fine-tuned with mixout")
    return str(found.repo_url)


def _without(path: Path, places: Collection[str]) -> bytes | Path:
    """A text file with the last part of each path alone; other files as they are."""
    if path.suffix not in (".json", ".md"):
        return path
    text = path.read_text(encoding="utf-8")
    # The longest first: others may be a part of it.
    for place in sorted(places, key=len, reverse=True):
        if "/" in place:
            text = text.replace(json.dumps(place)[1:-1], _short(place))
    return text.encode()


@contextmanager
def _hub(name: str) -> Iterator[None]:
    try:
        yield
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        raise InputError(
            f"expected a repository of the hub that can be written to, got {name!r}: {' '.join(str(error).split())}; "
            "log in with: hf auth login"
        ) from error
