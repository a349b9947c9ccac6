"""A fine-tuned model's answers to the rows of a file: a class and the probability of each, a value, or words' tags.

The model is any folder that transformers loads for sequence or token classification. With a ``record.json`` in it the
columns and the longest text are those of its training, unless they are named; else texts may be as long as the model
takes them. If the file has labels too, the answers are scored.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mixout._names import count
from mixout.errors import InputError
from mixout.finetune import metrics, models
from mixout.finetune.batches import Example, answers, by_length, collator, cut_texts, encode
from mixout.finetune.data import dotted
from mixout.finetune.environment import quiet
from mixout.finetune.folder import elsewhere
from mixout.finetune.levels import check_limits
from mixout.finetune.record import RECORD_NAME, Record, writing
from mixout.finetune.settings import CAUSAL, TAGS, Settings
from mixout.finetune.tasks import Split
from mixout.finetune.tasks.cells import (
    OPTIONAL_PAIR,
    SEPARATORS,
    Columns,
    checked,
    spelled,
    split_of,
    texts_in,
    words_in,
)
from mixout.finetune.tasks.tables import Table, is_empty, read

_BATCH = 32
_NOT_CSV = (".parquet", ".json", ".jsonl", ".tsv", ".xlsx")
_ANSWER, _SHARE = "prediction", "probability of "
_LONGEST = 512  # tokens, for a model without a record and without a limit


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

    With several labels a row the prediction is a list of those above 0.5; of a tagger it is a list of one tag a word,
    null where the text was cut; lists and objects are JSON. If the file has the column of labels, the
    answers are scored. Columns and length are those of the training, unless they are named.

    Returns:
        What was done, and the scores, in words.

    Raises:
        InputError: model or file cannot be read, a column is missing or has the name of an answer, or the output has
            no place.
        WriteError: the output cannot be written.
    """
    folder, path = Path(model), Path(output)
    if path.is_dir() or not path.parent.is_dir() or path.resolve() == Path(file).resolve():
        raise InputError(
            f"expected a new file in a folder that exists as output, got {str(path)!r}; name another one, or make the "
            "folder"
        )
    if path.suffix.lower() in _NOT_CSV:
        raise InputError(f"expected output as CSV, got {path.name!r}; name a file that ends in .csv")
    record = Record.read(folder) if (folder / RECORD_NAME).is_file() else None
    if not (folder / "config.json").is_file():
        remedy = elsewhere(folder) or "name the one that mixout finetune wrote"
        raise InputError(
            f"expected the folder of a fine-tuned model, got {str(folder)!r} without config.json; {remedy}"
        )
    trained = Settings(task_type=models.task_type_of(str(folder))) if record is None else record.settings
    overrides: dict[str, Any] = {"text_column": text_column, "pair_column": pair_column, "label_column": label_column}
    overrides |= {"max_length": max_length, "model": str(folder)}
    settings = replace(trained, **{name: value for name, value in overrides.items() if value is not None})
    if record is not None and record.pairs is False and pair_column is not None:
        raise InputError(f"expected no pair_column for a model of single texts, got {pair_column!r}; leave it out")
    table, split = rows(file, settings, pairs=None if record is None else record.pairs)
    if label_column is not None:
        table.require([label_column], "name another with --label-column, or leave it out")
    with quiet():
        loaded = models.load_trained(str(folder), settings.task_type)
    if record is None and max_length is None:
        settings = replace(settings, max_length=models.longest_input(loaded) or _LONGEST)
    check_limits(settings, loaded)
    examples = encode(split, loaded.tokenizer, settings.max_length)
    config: Any = loaded.model.config
    names = [str(config.id2label[number]) for number in range(config.num_labels)]
    kinds = {"multi_label_classification": "labels", "regression": "values"}
    kind = kinds.get(config.problem_type, "values" if config.num_labels == 1 else "classes")
    kind = "tags" if settings.task_type == TAGS else kind
    outputs = _outputs(loaded, examples, collator(kind, loaded.tokenizer))
    predicted: list[Any]
    if kind == "tags":
        predicted = [_tags(*row) for row in zip(outputs, examples, split.text, strict=True)]
    else:
        predicted = answers(torch.stack(outputs).numpy(), kind).tolist()
    converters: dict[str, Callable[[Any], Any]] = {
        "classes": names.__getitem__,
        "labels": lambda row: [name for name, has in zip(names, row, strict=True) if has],
        "tags": lambda row: [None if tag is None else names[tag] for tag in row],
    }
    columns: dict[str, Sequence[Any]] = {**table.columns, _ANSWER: [*map(converters.get(kind, float), predicted)]}
    if kind in ("classes", "labels"):
        logits = torch.stack(outputs)
        probs = logits.sigmoid() if kind == "labels" else logits.softmax(dim=1)
        columns |= {f"{_SHARE}{name}": values for name, values in zip(names, probs.T.tolist(), strict=True)}
    with writing(path.parent), path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow(_json(cell) if isinstance(cell, (list, dict)) else cell for cell in row)
    cut = cut_texts(split, examples, loaded.tokenizer, settings.max_length)
    verb = "was" if cut == 1 else "were"
    cut_text = f"; {count(cut, 'text')} {verb} cut after {settings.max_length} tokens" if cut else ""
    return f"{count(len(predicted), 'prediction')}: {path}{_scores(table, settings, predicted, names, kind)}{cut_text}"


def _json(value: object) -> str:
    """A list or an object as JSON, which has no nan: null stands for it."""
    return json.dumps(json.loads(json.dumps(value, default=str), parse_constant=lambda _: None))


def rows(file: str | Path, settings: Settings, *, pairs: bool | None = None) -> tuple[Table, Split]:
    """The rows of a file, and what is asked of a model that ``settings`` trained, on ``pairs`` of texts or not.

    InputError where a column is missing or has the name of an answer, or the model is a language model.
    """
    if settings.task_type == CAUSAL:
        raise InputError("expected a model for classes or values to predict with, got a causal language model")
    table = read(Path(file))
    if pairs is None:  # not recorded: as in training, if the file has them
        pairs = OPTIONAL_PAIR in table.columns
    pair = settings.pair_column or (OPTIONAL_PAIR if pairs else None)
    table.require(
        [settings.text_column, *([] if pair is None else [pair])], "name yours with --text-column or --pair-column"
    )
    if taken := [name for name in table.columns if name == _ANSWER or name.startswith(_SHARE)]:
        raise InputError(
            f"{table.name}: expected no column {taken[0]!r}, which is to hold answers, got one; rename or remove it"
        )
    if settings.task_type == TAGS:
        words = tuple(words_in(table, settings.text_column))
        # The labels are word numbers, so that each token knows its word.
        return table, Split(text=words, label=tuple(tuple(range(len(row))) for row in words))
    second_texts = None if pair is None else texts_in(table, pair)
    return table, Split(text=texts_in(table, settings.text_column), pair=second_texts)


@torch.no_grad()
def _outputs(loaded: models.Loaded, examples: list[Example], pad: Any) -> list[torch.Tensor]:  # noqa: ANN401
    """The model's outputs for each row, ``([tokens,] classes)``, float64 on the CPU."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    network: Any = loaded.model
    network.eval().to(device)
    order = by_length(examples)
    output_by_row: dict[int, torch.Tensor] = {}
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        batch = {name: value.to(device) for name, value in pad([examples[row] for row in rows]).items()}
        del batch["labels"]
        output_by_row |= dict(zip(rows, network(**batch).logits.double().cpu(), strict=True))
    return [output_by_row[row] for row in range(len(examples))]


def _tags(output: torch.Tensor, example: Example, words: Sequence[str]) -> list[int | None]:
    """The tag of each word, by the words' numbers at their first tokens; None for what was cut."""
    tag_by_word = dict(zip(example["labels"], output.argmax(-1).tolist(), strict=False))
    return [tag_by_word.get(word) for word in range(len(words))]


def _scores(table: Table, settings: Settings, preds: list[Any], names: list[str], kind: str) -> str:
    """Scores of the answers to rows with a label, in words, or why there are none; nothing without such rows."""
    cells = table.columns.get(settings.label_column, ())
    labelled = [row for row, cell in enumerate(cells) if not is_empty(cell)]
    if not labelled:
        return ""
    which = "rows with a label"
    known = [row for row in labelled if spelled(cells[row]) in names] if kind == "classes" else labelled
    if len(labelled) / 2 < len(known) < len(labelled):
        labelled, which = known, f"{which} that the model knows"
    some = f" of the {len(labelled):,} {which}" * (len(labelled) < len(cells))
    table, preds = table.take(labelled), [preds[row] for row in labelled]
    holds: Any = kind if kind in ("labels", "tags") else "label"
    columns = Columns(text=settings.text_column, label=settings.label_column, holds=holds)
    labels = None if kind == "values" else tuple(names)
    # The separator of several labels is not recorded: it is the one that leaves only known labels.
    for separator in (*SEPARATORS, " ") if kind == "labels" else ("",):
        try:
            read_as = checked(table, columns, None, separator)
            truth: Any = split_of(read_as, labels, 0).label
            break
        except InputError as error:
            reason = error
    else:
        return f"; not scored: {reason}"
    if kind == "tags":  # a word that was cut has no tag
        pairs = [[pair for pair in zip(*r, strict=True) if pair[0] is not None] for r in zip(preds, truth, strict=True)]
        preds, truth = ([[pair[side] for pair in row] for row in pairs] for side in (0, 1))
    classes, tags = None if labels is None else len(labels), labels if kind == "tags" else None
    scores = metrics.compute(metrics.of_kind(kind, names), preds, truth, classes=classes, tags=tags)
    note = f"; {dotted(read_as.dotted)}" if read_as.dotted else ""
    return f"; {', '.join(f'{name} {value:.4f}' for name, value in scores.items())}{some}{note}"
