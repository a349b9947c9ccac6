"""What a fine-tuned model answers to the rows of a file: a class and the probability of each, or a value.

The model is any folder that transformers loads for sequence classification. Beside a ``record.json`` its columns and
its longest text are those of its training, unless they are named. Where the file has labels too, they are scored.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mixout.errors import InputError
from mixout.finetune import metrics
from mixout.finetune.batches import encode
from mixout.finetune.disk import writing
from mixout.finetune.extras import needs
from mixout.finetune.record import RECORD_NAME, Record
from mixout.finetune.settings import CAUSAL, Settings
from mixout.finetune.tasks import Split
from mixout.finetune.tasks.files import OPTIONAL_PAIR, texts_in
from mixout.finetune.tasks.tables import Table, number, read

with needs("hf", "predictions"):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

_BATCH = 32


def predict(
    model: str | Path,
    file: str | Path,
    output: str | Path,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    max_length: int | None = None,
) -> str:
    """Write ``output``, CSV: the columns of ``file``, ``prediction``, and ``probability of ...`` for each class.

    The file is CSV, TSV, JSONL or Parquet; where it has the column of labels, they are scored. Columns and length are
    those of the training, unless they are named.

    Returns:
        What was done, and the scores, in words.

    Raises:
        InputError: model or file cannot be read, or a column is missing.
        WriteError: the output cannot be written.
    """
    folder = Path(model)
    settings = _settings(folder)
    table = read(Path(file))
    text = text_column or settings.text_column
    pair = pair_column or settings.pair_column or (OPTIONAL_PAIR if OPTIONAL_PAIR in table.columns else None)
    table.require([text, *([] if pair is None else [pair])], "name yours with --text-column or --pair-column")
    split = Split(
        text=texts_in(table, text), pair=None if pair is None else texts_in(table, pair), label=(0,) * len(table.lines)
    )
    network, tokenizer = _load(folder)
    outputs = _outputs(network, tokenizer, split, max_length or settings.max_length)
    names = _names(network.config)
    answers = outputs[:, 0].tolist() if names is None else [names[int(row)] for row in outputs.argmax(1)]
    columns: dict[str, Sequence[Any]] = {**table.columns, "prediction": answers}
    if names is not None:
        shares = torch.softmax(outputs, dim=1).T.tolist()
        columns |= {f"probability of {name}": share for name, share in zip(names, shares, strict=True)}
    place = Path(output)
    with writing(place.parent), place.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    label = label_column or settings.label_column
    scores = [f"{name} {value:.4f}" for name, value in _scores(table, label, answers, names).items()]
    return "; ".join(filter(None, [f"{len(answers)} predictions: {place}", ", ".join(scores)]))


def _settings(folder: Path) -> Settings:
    """Those of the training, where they are known."""
    settings = Record.read(folder).settings if (folder / RECORD_NAME).is_file() else Settings()
    if settings.task_type == CAUSAL:
        raise InputError(f"expected a model for classes or values, got {str(folder)!r}, a causal language model")
    return settings


def _load(folder: Path) -> tuple[Any, Any]:
    if not (folder / "config.json").is_file():
        raise InputError(f"expected the folder of a fine-tuned model, got {str(folder)!r} without config.json")
    network = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return network.eval().to(device), AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def _outputs(network: Any, tokenizer: Any, split: Split, max_length: int) -> torch.Tensor:  # noqa: ANN401
    """The model's outputs, ``(rows, classes)``, float64 on the CPU, in the order of the rows."""
    examples = encode(split, tokenizer, max_length)
    # Batches of like lengths hold little padding.
    order = sorted(range(len(examples)), key=lambda row: len(examples[row]["input_ids"]))
    collate: Any = DataCollatorWithPadding(tokenizer)
    found: list[torch.Tensor] = []
    for start in range(0, len(order), _BATCH):
        batch: Any = collate([examples[row] for row in order[start : start + _BATCH]]).to(network.device)
        del batch["labels"]
        found.append(network(**batch).logits.double().cpu())
    outputs = torch.cat(found)
    outputs[order] = outputs.clone()
    return outputs


def _names(config: Any) -> list[str] | None:  # noqa: ANN401
    """The classes by number; None for a regression."""
    if config.problem_type == "regression" or config.num_labels == 1:
        return None
    return [str(config.id2label[number]) for number in range(config.num_labels)]


def _scores(table: Table, column: str, answers: list[Any], names: list[str] | None) -> dict[str, float]:
    """Scores of the answers, where every row has a label that the model knows."""
    truth: list[Any] = [str(cell).strip() for cell in table.columns.get(column, ())]
    if names is None:
        truth = [value for label in truth if (value := number(label)) is not None]
        return metrics.compute(metrics.REGRESSION, answers, truth, classes=None) if len(truth) == len(answers) else {}
    if not truth or not set(truth) <= set(names):
        return {}
    numbers = {name: index for index, name in enumerate(names)}
    got, expected = ([numbers[label] for label in labels] for labels in (answers, truth))
    return metrics.compute(metrics.CLASSIFICATION, got, expected, classes=len(names))
