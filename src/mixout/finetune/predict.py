"""What a fine-tuned model answers to the rows of a file: a class and the probability of each, or a value.

The model is any folder that transformers loads for sequence classification. Beside a ``record.json`` its columns and
its longest text are those of its training, unless they are named; else texts may be as long as the model takes them.
Where the file has labels too, they are scored.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mixout.errors import InputError
from mixout.finetune import metrics, models
from mixout.finetune.batches import Dev, Example, cut_texts, encode
from mixout.finetune.disk import writing
from mixout.finetune.environment import quiet
from mixout.finetune.extras import needs
from mixout.finetune.levels import check_limits
from mixout.finetune.record import RECORD_NAME, Record
from mixout.finetune.settings import CAUSAL, Settings
from mixout.finetune.tasks import Split
from mixout.finetune.tasks.files import OPTIONAL_PAIR, spelled, texts_in
from mixout.finetune.tasks.tables import Table, number, read

with needs("hf", "predictions"):
    from transformers import DataCollatorWithPadding

_BATCH = 32
_LONGEST = 512  # tokens, of a model that neither says how long its texts were nor has a limit


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

    The file is CSV, TSV, JSONL or Parquet; where it has the column of labels, the answers are scored. Columns and
    length are those of the training, unless they are named.

    Returns:
        What was done, and the scores, in words.

    Raises:
        InputError: model or file cannot be read, or a column is missing.
        WriteError: the output cannot be written.
    """
    folder = Path(model)
    record = Record.read(folder) if (folder / RECORD_NAME).is_file() else None
    named: dict[str, Any] = {"text_column": text_column, "pair_column": pair_column, "label_column": label_column}
    named |= {"max_length": max_length, "model": str(folder)}
    trained = Settings() if record is None else record.settings
    settings = replace(trained, **{name: value for name, value in named.items() if value is not None})
    table, split = rows(file, settings, pairs=None if record is None else record.pairs)
    if not (folder / "config.json").is_file():
        raise InputError(f"expected the folder of a fine-tuned model, got {str(folder)!r} without config.json")
    with quiet():
        loaded = models.load_trained(str(folder))
    if record is None and max_length is None:
        settings = replace(settings, max_length=models.longest_input(loaded) or _LONGEST)
    check_limits(settings, loaded)
    examples = encode(split, loaded.tokenizer, settings.max_length)
    outputs, names = _outputs(loaded, examples), _names(loaded.model.config)
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
    cut = cut_texts(split, examples, loaded.tokenizer, settings.max_length)
    told = f"; {cut} texts were cut after {settings.max_length} tokens" if cut else ""
    return f"{len(answers)} predictions: {place}{_scores(table, settings.label_column, answers, names)}{told}"


def rows(file: str | Path, settings: Settings, *, pairs: bool | None = None) -> tuple[Table, Split]:
    """The rows of a file, and what is asked of a model that ``settings`` trained, on ``pairs`` of texts or not.

    Raises:
        InputError: the file cannot be read, a column is missing, or the model is a language model.
    """
    if settings.task_type == CAUSAL:
        raise InputError("expected a model for classes or values to predict with, got a causal language model")
    table = read(Path(file))
    if pairs is None:  # not known: as in training, where the files have it
        pairs = OPTIONAL_PAIR in table.columns
    pair = settings.pair_column or (OPTIONAL_PAIR if pairs else None)
    table.require(
        [settings.text_column, *([] if pair is None else [pair])], "name yours with --text-column or --pair-column"
    )
    seconds = None if pair is None else texts_in(table, pair)
    return table, Split(text=texts_in(table, settings.text_column), pair=seconds, label=(0,) * len(table.lines))


@torch.no_grad()
def _outputs(loaded: models.Loaded, examples: list[Example]) -> torch.Tensor:
    """The model's outputs, ``(rows, classes)``, float64 on the CPU, in the order of the rows."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    network: Any = loaded.model
    network.eval().to(device)
    collate: Any = DataCollatorWithPadding(loaded.tokenizer)
    order, found = Dev(), []
    order.arrange(examples)
    ordered = order.sorted()
    for start in range(0, len(ordered), _BATCH):
        batch: Any = collate(ordered[start : start + _BATCH]).to(network.device)
        del batch["labels"]
        found.append(network(**batch).logits.double().cpu())
    return torch.from_numpy(order.restored(torch.cat(found).numpy()))


def _names(config: Any) -> list[str] | None:  # noqa: ANN401
    """The classes by number; None for a regression."""
    if config.problem_type == "regression" or config.num_labels == 1:
        return None
    return [str(config.id2label[number]) for number in range(config.num_labels)]


def _scores(table: Table, column: str, answers: list[Any], names: list[str] | None) -> str:
    """Scores of the answers in words, or why there are none; nothing without a column of labels."""
    if column not in table.columns:
        return ""
    labels = [spelled(cell) for cell in table.columns[column]]
    truth = (
        [number(label) for label in labels]
        if names is None
        else [names.index(label) if label in names else None for label in labels]
    )
    unknown = truth.count(None)
    if unknown:
        kind = "no number" if names is None else "none that the model knows"
        return f"; not scored: in {unknown} of {len(truth)} rows {column!r} holds {kind}"
    known = metrics.REGRESSION if names is None else metrics.CLASSIFICATION
    got = answers if names is None else list(map(names.index, answers))
    scores = metrics.compute(known, got, truth, classes=names and len(names))  # type: ignore[arg-type]
    return f"; {', '.join(f'{name} {value:.4f}' for name, value in scores.items())}"
