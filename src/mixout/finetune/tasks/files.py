"""A task from the user's own CSV, TSV, JSONL, Parquet or CoNLL files: labelled text, or text for a language model.

A folder holds ``train.*`` and ``dev.*`` (or ``validation.*``); a single file is split 80/20 by a hash of its
text, so that a text never stands on both sides and the split never moves. Everything is checked before a task
exists. What files and names of data sets may be is in docs/finetune.md and docs/causal-lm.md. Splits of the hub called
"test" are left alone unless they are named.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixout._names import nearest
from mixout.errors import InputError, needs
from mixout.finetune import metrics
from mixout.finetune.tasks.base import Split, Task
from mixout.finetune.tasks.cells import (
    OPTIONAL_PAIR,
    Columns,
    are_values,
    checked,
    in_order,
    in_two,
    is_written,
    labels_in,
    separator_of,
    split_of,
    texts_in,
    with_all_classes,
)
from mixout.finetune.tasks.tables import READERS, Table, number, read, read_text

# Such as imdb, stanfordnlp/imdb, org/name:train[:1000] and org/name:train,test.
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?(:\S+)?")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)")
DEV = ("dev", "validation")
SPLIT = "split 80/20 by a hash of the text"  # a part of a task's source
TEXT_ENDINGS = (".txt", *READERS)
# Higher is better in both; perplexities, which are their exponentials, are reported beside them.
TEXT_METRICS = ("log_likelihood", "original_log_likelihood")
_PROMPT, _COMPLETION = "prompt", "completion"


def load(path: str | Path, *, columns: Columns, metric: str | None, dev: bool = True) -> Task:
    """Load a task from a folder, a file, or the hub; without ``dev`` all rows are training and dev rows.

    InputError for anything about the files, the rows or the metric.
    """
    tables, source = read_splits(path, dev=dev)
    return task_of(tables, source, name=short_name(path), columns=columns, metric=metric)


def task_of(tables: list[Table], source: str, *, name: str, columns: Columns, metric: str | None) -> Task:
    """Make a task of a training and a dev table, or of one table that is split."""
    # If one side has the second text the other needs it too, whether it was named or not.
    pair = columns.pair or next((OPTIONAL_PAIR for table in tables if OPTIONAL_PAIR in table.columns), None)
    cells = tables[0].columns.get(columns.label, ())
    if columns.holds == "label" and any(isinstance(cell, list) for cell in cells):
        columns = replace(columns, holds="labels")
    separator = separator_of(cells) if columns.holds == "labels" else ""
    tables = [checked(table, columns, pair, separator) for table in tables]
    whole = tables[0] if len(tables) == 1 else None
    if whole:
        sides = halves(whole.name, whole.columns["text"], "texts")
        tables = in_two(whole, sides)
    labels = labels_in(tables[0])
    by_metric = metric in metrics.REGRESSION and any(number(label) is not None or is_written(label) for label in labels)
    regression = columns.holds == "label" and (by_metric or are_values(labels))
    if whole and not regression:
        tables = in_two(whole, with_all_classes(whole, *sides))
        labels = labels_in(tables[0])
    train, dev = tables
    rows = train.columns["label"]
    names = None if regression else in_order(labels)
    kind = columns.holds if columns.holds != "label" else "values" if regression else "classes"
    fitting = metrics.of_kind(kind, names or ())
    primary = metric or ("spearman" if regression else fitting[0])
    metrics.check(primary, fitting)
    train.check_varied(labels if columns.holds == "tags" else rows)
    return Task(
        name=name,
        train=split_of(train, names, len(rows)),
        dev=split_of(dev, names, len(rows)),
        labels=names,
        metrics=(primary, *(name for name in fitting if name != primary)),
        metric=primary,
        source=source,
        separator=separator,
        comma=regression and train.comma,
        dotted=train.dotted or dev.dotted,
    )


def load_text(path: str | Path, *, original: Path | None, column: str, metric: str | None) -> Task:
    """Load the task of a causal language model; raises as :func:`load`."""
    if metric not in (None, *TEXT_METRICS):
        raise InputError(
            f"expected a metric of {', '.join(TEXT_METRICS)} for a causal language model, got {metric!r}"
            f"{nearest(str(metric), TEXT_METRICS)}; runs are compared by scores of which higher is better"
        )
    if metric == TEXT_METRICS[1] and original is None:
        raise InputError(f"expected text of the original domain for the metric {metric!r}, got none; give --original")
    tables, source = read_splits(path, column=column)
    parts = [_documents(table, column) for table in tables]
    if len(parts) == 1:
        # By the prompt if there is one, so that no question stands on both sides.
        keys = parts[0].prompt or parts[0].text
        parts = [parts[0].select(rows) for rows in halves(tables[0].name, keys, "documents")]
    scores = ("log_likelihood", "perplexity")
    return Task(
        name=short_name(path),
        train=parts[0],
        dev=parts[1],
        original=None if original is None else read_original(original, column),
        metrics=scores if original is None else (*scores, *(f"original_{name}" for name in scores)),
        metric=metric or TEXT_METRICS[0],
        source=source + ("" if original is None else f" Original domain: {original.name}."),
    )


def read_original(file: Path, column: str) -> Split:
    """Read text that a model knew before; InputError if there is no such file, or a row lacks its text."""
    if not file.is_file():
        raise InputError(f"expected original as a file with text that exists, got {os.fspath(file)!r}")
    return _documents(_read_text(file, column), column)


def _read_text(file: Path, column: str) -> Table:
    """A file as a table with the column; each document of a text file is a row."""
    if file.suffix.lower() != ".txt":
        return read(file, TEXT_ENDINGS)
    # Indentation and trailing blanks belong to a document; blank lines do not, also at both ends of the file.
    whole = "\n" + read_text(file).replace("\r\n", "\n") + "\n\n"
    pieces = [piece.strip("\n") for piece in re.split(r"\n(?:[^\S\n]*\n)+", whole) if piece.strip()]
    return Table(name=file.name, columns={column: pieces}, lines=range(1, len(pieces) + 1), unit="document")


def _documents(table: Table, column: str) -> Split:
    paired = {_PROMPT, _COMPLETION} <= set(table.columns)
    if paired and column in table.columns:
        raise InputError(
            f"{table.name}: expected either the column {column!r} or the columns {_PROMPT!r} and {_COMPLETION!r}, got "
            "all of them; remove what is not meant"
        )
    yours = next((name for name in ("messages", "conversations") if name in table.columns), "")
    remedy = f"rename a column, or name yours with --text-column {yours}".strip()
    table.require([_PROMPT, _COMPLETION] if paired else [column], remedy)
    if not paired and any(isinstance(cell, list) for cell in table.columns[column]):
        cells = table.columns[column]
        good = (
            isinstance(cell, list) and bool(cell) and all(isinstance(turn, dict) and "role" in turn for turn in cell)
            for cell in cells
        )
        expected = f'a conversation in column {column!r}, [{{"role": ..., "content": ...}}, ...]'
        table.check(good, cells, expected, "correct or remove the row")
        return Split(text=tuple(json.dumps(cell) for cell in cells), chat=True)
    if not paired:
        return Split(text=texts_in(table, column))
    if any(isinstance(cell, list) for name in (_PROMPT, _COMPLETION) for cell in table.columns[name]):
        raise InputError(
            f"{table.name}: expected texts in the columns {_PROMPT!r} and {_COMPLETION!r}, got conversations; put each "
            "as a whole into one column, --text-column messages, with --assistant-only-loss"
        )
    return Split(text=texts_in(table, _COMPLETION), prompt=texts_in(table, _PROMPT))


def read_splits(path: str | Path, *, dev: bool = True, column: str | None = None) -> tuple[list[Table], str]:
    """The tables of a folder or file, else of a data set of the hub, and where they came from: one table, or two.

    Without ``dev`` they are the training table, twice. ``column``: that of a language model's text.
    """
    if not os.path.exists(path):
        return from_hub(str(path))
    location, splits = Path(path), (("train",), DEV) if dev else (("train",),)
    endings = tuple(READERS) if column is None else TEXT_ENDINGS
    parts = [[location]] if location.is_file() else [members(location, stems, endings) for stems in splits]
    tables = [
        Table.joined([read(file) if column is None else _read_text(file, column) for file in files]) for files in parts
    ]
    return (tables if dev else tables * 2), _origin(parts, split=dev)


def has_dev(path: Path) -> bool:
    """Whether a folder has files of a dev split."""
    return path.is_dir() and any(file.stem.partition("-")[0] in DEV for file in _files(path))


def _files(folder: Path) -> list[Path]:
    folders = (folder, folder / "data")
    return sorted(path for parent in folders if parent.is_dir() for path in parent.iterdir() if path.is_file())


def short_name(path: str | Path) -> str:
    """What data are called in reports: the name of the folder, of the file without its ending, or on the hub."""
    if not os.path.exists(path):
        return str(path).partition(":")[0]
    location = Path(path)
    return location.resolve().name if location.is_dir() else location.stem


def _origin(parts: Sequence[Sequence[Path]], *, split: bool) -> str:
    names = [f"{files[0].name}{f' and {len(files) - 1} more' if files[1:] else ''}" for files in parts]
    if len(parts) > 1:
        return f"The user's files {' and '.join(names)}."
    return f"The user's file {names[0]}{f', {SPLIT}' * split}."


def members(folder: Path, stems: Sequence[str], endings: Sequence[str] = tuple(READERS)) -> list[Path]:
    """The file of a split, or its shards, ``train-00000-of-00002.parquet``; InputError for missing or several files."""
    files = _files(folder)
    candidates = [path for path in files if path.stem in stems and path.suffix.lower() in endings]
    shards = [(path, match) for path in files if (match := _SHARD.fullmatch(path.stem)) and match["stem"] in stems]
    if shards and not candidates:
        expected = int(shards[0][1]["count"])
        if len({match["number"] for _, match in shards}) == expected == len(shards):
            return [path for path, _ in shards]
        raise InputError(
            f"expected {expected} shards of {shards[0][1]['stem']} in {str(folder)!r}, got "
            f"{', '.join(path.name for path, _ in shards)}; add what is missing, or remove what is too much"
        )
    if len(candidates) == 1:
        return candidates
    remedy = "remove all but one" if candidates else "add it, or rename yours, or give a single file to be split"
    named = {path.stem: str(path) for path in files if path.suffix.lower() in READERS}
    if not candidates and {"train", "test"} <= named.keys() and ".txt" not in endings:  # a language model has no --test
        remedy = f"add it, or split train: mixout finetune {shlex.join([named['train'], '--test', named['test']])}"
    raise InputError(
        f"expected one file {' or '.join(stems)} in {str(folder)!r} that ends in {', '.join(endings)}, got "
        f"{', '.join(path.name for path in candidates or files) or 'an empty folder'}; {remedy}"
    )


def halves(name: str, texts: Sequence[object], kind: str) -> tuple[list[int], list[int]]:
    """Split rows by a hash of their texts, one text in five for the dev set; InputError if all fall on one side."""
    hashes = [int.from_bytes(hashlib.sha256(str(text).encode()).digest()[:8], "big") for text in texts]
    train = [row for row, value in enumerate(hashes) if value % 5]
    dev = [row for row, value in enumerate(hashes) if value % 5 == 0]
    if not train or not dev:
        raise InputError(
            f"{name}: expected enough different {kind} to split 80/20 by a hash of the text, got {len(texts)} "
            "rows that all fall on one side; give a folder with a train and a dev file"
        )
    return train, dev


def is_hub_name(task: str) -> bool:
    """Whether a task that is no file may be a data set of the hub; within a folder that exists, if it names a split."""
    is_file = task.lower().endswith((".txt", *READERS)) or (":" not in task and os.path.isdir(os.path.dirname(task)))
    return _HUB_NAME.fullmatch(task) is not None and len(task) <= 200 and not is_file


def from_hub(task: str) -> tuple[list[Table], str]:
    """The tables of a data set, one or two, and where they came from; InputError where there is no such split."""
    name, _, splits = task.partition(":")
    with needs("data", "data sets of the hub"):
        import datasets
    try:
        if not splits:
            dataset = datasets.load_dataset(name)
            names = ["train", *[split for split in reversed(DEV) if split in dataset][:1]]
            parts = [dataset[split] for split in names]
        else:
            names = splits.split(",")
            parts = [datasets.load_dataset(name, split=split) for split in names]
    # An unreachable or refusing hub and offline mode raise OSError; a missing split or missing rows the others.
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetGenerationError) as error:
        raise InputError(
            f"expected a task, a file or folder that exists, or a data set of the hub, got {task!r}: "
            f"{' '.join(str(error).split())}; check its name and the connection"
        ) from error
    if len(parts) > 2:
        raise InputError(f"expected one split, or two for training and dev set, got {task!r}")
    tables = [_from_hub(f"{name}:{split}", part) for split, part in zip(names, parts, strict=True)]
    return tables, f"{name} on the hub, {' and '.join(names)}{f', {SPLIT}' * (len(tables) == 1)}."


def _from_hub(name: str, part: Any) -> Table:  # noqa: ANN401  a datasets.Dataset
    columns = {column: part[column][:] for column in part.column_names}
    for column, feature in part.features.items():
        element_type = getattr(feature, "feature", feature)  # of a list's elements
        if hasattr(element_type, "int2str"):
            columns[column] = [_named(cell, element_type) for cell in columns[column]]
    if not len(part):
        raise InputError(f"{name}: expected at least one row, got none; choose another split")
    return Table(name=name, columns=columns, lines=range(1, len(part) + 1), unit="row")


def _named(number: Any, classes: Any) -> Any:  # noqa: ANN401
    if isinstance(number, list):
        return [_named(element, classes) for element in number]
    return classes.int2str(number) if number is not None and number >= 0 else None
