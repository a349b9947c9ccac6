"""A task from the user's own CSV, TSV, JSONL, Parquet or CoNLL files.

A folder holds ``train.*`` and ``dev.*`` (or ``validation.*``); a single file is split 80/20 by a hash of its
text, so that a text never stands on both sides and the split never moves. Everything is checked before a task
exists. Labels are classes, unless a correlation is asked for or all training labels are numbers and one has a
fractional part: then it is a regression. Cells may hold several labels, as lists or with something between them; or a
text is a list of words, and its label a list of tags. It neither repairs nor skips rows.

A data set of the hub, or in a folder that ``datasets`` can read: ``name`` trains on the split "train" and is judged on
"validation"; without one, a fifth of the training rows is held out, as for a single file. ``name:split`` takes one
split, ``name:train,test`` two. Splits called "test" are left alone unless they are named.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mixout.errors import InputError
from mixout.finetune import metrics
from mixout.finetune.extras import needs
from mixout.finetune.tasks.base import Split, Task
from mixout.finetune.tasks.tables import READERS, Table, is_empty, number, read

OPTIONAL_PAIR = "text_pair"
# Such as imdb, stanfordnlp/imdb, org/name:train[:1000] and org/name:train,test.
_HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*(/[\w.-]+)?)(:(?P<splits>\S+))?")
SEPARATORS = (",", ";", "|", "+", "/")  # of several labels in a cell; else blanks
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)")
DEV = ("dev", "validation")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns to read.

    Raises:
        InputError: a name is empty or occurs twice.
    """

    text: str = "text"
    pair: str | None = None  # the second text, which must be there; None: "text_pair", where the files have it
    label: str = "label"
    holds: Literal["label", "labels", "tags"] = "label"  # a cell of it; a list holds several labels in any case

    def __post_init__(self) -> None:
        names = (self.text, OPTIONAL_PAIR if self.pair is None else self.pair, self.label)
        if len(set(names)) < len(names) or not all(names):
            raise InputError(f"expected three different column names, got {names}; name each column once")


def load(path: str | Path, *, columns: Columns, metric: str | None, dev: bool = True) -> Task:
    """Load a task from a folder, a file, or the hub; without ``dev`` all rows are training and dev rows.

    Raises:
        InputError: anything about the files, the rows or the metric; nothing has been done by then.
    """
    tables, source = read_splits(path, dev=dev)
    return task_of(tables, source, name=short_name(path), columns=columns, metric=metric)


def task_of(tables: list[Table], source: str, *, name: str, columns: Columns, metric: str | None) -> Task:
    """Make a task of a training and a dev table, or of one that is split."""
    # If one side has the second text the other needs it too, whether it was named or not.
    pair = columns.pair or next((OPTIONAL_PAIR for table in tables if OPTIONAL_PAIR in table.columns), None)
    cells = tables[0].columns.get(columns.label, ())
    if columns.holds == "label" and any(isinstance(cell, list) for cell in cells):
        columns = replace(columns, holds="labels")
    separator = separator_of(cells) if columns.holds == "labels" else ""
    tables = [_checked(table, columns, pair, separator) for table in tables]
    if len(tables) == 1:
        tables = [tables[0].take(rows) for rows in halves(tables[0].name, tables[0].columns["text"], "texts")]
    train, dev = tables
    rows: Sequence[Any] = train.columns["label"]
    labels: list[str] = [*rows] if columns.holds == "label" else [label for row in rows for label in row]
    asked = metric in metrics.REGRESSION and any(number(label) is not None for label in labels)
    regression = columns.holds == "label" and (asked or _has_scores(labels))
    names = None if regression else _classes(labels)
    if columns.holds == "label":
        known = metrics.REGRESSION if regression else metrics.CLASSIFICATION
    else:
        known = metrics.MULTI_LABEL if columns.holds == "labels" else metrics.of_tags(names or ())
    chosen = metric or ("spearman" if regression else known[0])
    metrics.check(chosen, known)
    train.check_varied(labels if columns.holds == "tags" else rows)
    return Task(
        name=name,
        train=_split(train, names, len(rows)),
        dev=_split(dev, names, len(rows)),
        labels=names,
        metrics=(chosen, *(name for name in known if name != chosen)),
        metric=chosen,
        source=source,
        separator=separator,
    )


def read_splits(
    path: str | Path,
    *,
    dev: bool = True,
    endings: Sequence[str] = tuple(READERS),
    reader: Callable[[Path], Table] | None = None,
) -> tuple[list[Table], str]:
    """The tables of a folder or file, or what is neither on the hub, and where they came from: one table, or two.

    Without ``dev`` it is the training table, twice.
    """
    if not os.path.exists(path):
        return from_hub(str(path))
    place, splits = Path(path), (("train",), DEV) if dev else (("train",),)
    parts = [[place]] if place.is_file() else [members(place, names, endings) for names in splits]
    tables = [Table.joined([(reader or read)(file) for file in files]) for files in parts]
    return (tables if dev else tables * 2), _origin(parts)


def has_dev(path: Path) -> bool:
    """Whether a folder has files of a dev split."""
    return path.is_dir() and any(file.stem.partition("-")[0] in DEV for file in _files(path))


def _files(folder: Path) -> list[Path]:
    places = (folder, folder / "data")
    return sorted(path for place in places if place.is_dir() for path in place.iterdir() if path.is_file())


def short_name(path: str | Path) -> str:
    """What data are called in reports: the name of the folder, of the file without its ending, or on the hub."""
    if not os.path.exists(path):
        return str(path).partition(":")[0]
    place = Path(path)
    return place.resolve().name if place.is_dir() else place.stem


def _origin(parts: Sequence[Sequence[Path]]) -> str:
    names = [f"{files[0].name}{f' and {len(files) - 1} more' if files[1:] else ''}" for files in parts]
    if len(parts) > 1:
        return f"The user's files {' and '.join(names)}."
    return f"The user's file {names[0]}, split 80/20 by a hash of the text."


def members(folder: Path, stems: Sequence[str], endings: Sequence[str] = tuple(READERS)) -> list[Path]:
    """The file of a split, or all its shards, ``train-00000-of-00002.parquet``; InputError without, or with others."""
    files = _files(folder)
    found = [path for path in files if path.stem in stems and path.suffix.lower() in endings]
    shards = [(path, match) for path in files if (match := _SHARD.fullmatch(path.stem)) and match["stem"] in stems]
    if shards and not found:
        expected = int(shards[0][1]["count"])
        if len({match["number"] for _, match in shards}) == expected == len(shards):
            return [path for path, _ in shards]
        raise InputError(
            f"expected {expected} shards of {shards[0][1]['stem']} in {str(folder)!r}, got "
            f"{', '.join(path.name for path, _ in shards)}; add what is missing, or remove what is too much"
        )
    if len(found) == 1:
        return found
    got = found or files
    raise InputError(
        f"expected one file {' or '.join(stems)} in {str(folder)!r} that ends in {', '.join(endings)}, got "
        f"{', '.join(path.name for path in got) or 'an empty folder'}; "
        f"{'remove all but one' if found else 'add it, or give a single file to be split'}"
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


def texts_in(table: Table, column: str) -> tuple[str, ...]:
    """A column in which every cell must hold text; InputError where one does not."""
    cells = table.columns[column]
    good = (isinstance(cell, str) and not is_empty(cell) for cell in cells)
    table.check(good, cells, f"text in column {column!r}", "fill or remove the row")
    return tuple(map(str, cells))


def is_hub_name(task: str) -> bool:
    """Whether a task that is no file may be a data set of the hub."""
    ending = task.lower().endswith((".txt", *READERS))
    return _HUB_NAME.fullmatch(task) is not None and len(task) <= 200 and not ending


def from_hub(task: str) -> tuple[list[Table], str]:
    """The tables of a data set, one or two, and where they came from.

    Raises:
        InputError: there is no such data set or split, or the hub cannot be reached.
        MissingExtraError: ``datasets`` is not installed.
    """
    match = _HUB_NAME.fullmatch(task)
    name, splits = (match["name"], match["splits"]) if match else (task, None)
    with needs("data", "data sets of the hub"):
        import datasets
    try:
        if splits is None:
            found = datasets.load_dataset(name)
            chosen = ["train", *[one for one in reversed(DEV) if one in found][:1]]
            parts = [found[one] for one in chosen]
        else:
            chosen = splits.split(",")
            parts = [datasets.load_dataset(name, split=one) for one in chosen]
    # Unreachable, refused and offline arrive as OSError; a split or rows that are not there as the others.
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetGenerationError) as error:
        raise InputError(
            f"expected a task, a file or folder that exists, or a data set of the hub, got {task!r}: "
            f"{' '.join(str(error).split())}; check its name and the connection"
        ) from error
    if len(parts) > 2:
        raise InputError(f"expected one split, or two for training and dev set, got {task!r}")
    tables = [_from_hub(f"{name}:{split}", part) for split, part in zip(chosen, parts, strict=True)]
    return tables, f"{name} on the hub, {' and '.join(chosen)}."


def _from_hub(name: str, part: Any) -> Table:  # noqa: ANN401  a datasets.Dataset
    columns = {column: part[column][:] for column in part.column_names}
    for column, feature in part.features.items():
        inner = getattr(feature, "feature", feature)  # of a list
        if hasattr(inner, "int2str"):
            columns[column] = [_named(one, inner) for one in columns[column]]
    if not len(part):
        raise InputError(f"{name}: expected at least one row, got none; choose another split")
    return Table(name=name, columns=columns, lines=range(1, len(part) + 1), unit="row")


def _named(number: Any, classes: Any) -> Any:  # noqa: ANN401
    if isinstance(number, list):
        return [_named(one, classes) for one in number]
    return classes.int2str(number) if number is not None and number >= 0 else None


def _checked(table: Table, columns: Columns, pair: str | None, separator: str) -> Table:
    """Return the columns text, label and, where there are second texts, pair; no cell is empty.

    Labels are text; several, or the tags of a text that is a tuple of words, are tuples of it.
    """
    names = [columns.text, *([] if pair is None else [pair]), columns.label]
    table.require(names, "rename a column, or name yours with --text-column, --pair-column or --label-column")
    cells = table.columns[columns.label]
    if columns.holds == "tags":
        words = words_in(table, columns.text)
        tags = [tuple(map(spelled, cell)) if isinstance(cell, list) else () for cell in cells]
        good = [len(of) == len(text) and "" not in of for of, text in zip(tags, words, strict=True)]
        table.check(good, cells, f"a list in column {columns.label!r} with a tag for each word", "correct the row")
        return replace(table, columns={"text": words, "label": tags})
    if any(isinstance(cell, list) for cell in table.columns[columns.text]):
        raise InputError(
            f"{table.name}: expected text in column {columns.text!r}, got lists; words with tags need --task-type "
            "token-classification"
        )
    found = {"text": texts_in(table, columns.text)} | ({} if pair is None else {"pair": texts_in(table, pair)})
    expected = f"a label (text or a number) in column {columns.label!r}"
    labels: list[Any]
    if columns.holds == "labels":
        labels = [several(cell, separator) for cell in cells]
        good = [label is not None for label in labels]
        table.check(
            good, cells, f"labels in column {columns.label!r}", "fill the row; [] stands for none of the labels"
        )
    else:
        labels = [spelled(cell) for cell in cells]
        table.check([label != "" for label in labels], cells, expected, "fill or remove the row")
    return replace(table, columns={**found, "label": labels})


def words_in(table: Table, column: str) -> list[tuple[str, ...]]:
    """A column of lists of words; InputError where a cell is none, or a word is empty."""
    cells: Sequence[Any] = table.columns[column]
    good = (isinstance(cell, list) and bool(cell) and not any(map(is_empty, cell)) for cell in cells)
    table.check(good, cells, f"a list of words in column {column!r}", "correct or remove the row")
    return [tuple(map(str, cell)) for cell in cells]


def separator_of(cells: Sequence[object]) -> str:
    """What stands between several labels in a cell: that which leaves the fewest different labels; nothing in lists.

    Raises:
        InputError: no cell holds several.
    """
    if any(isinstance(cell, list) for cell in cells):
        return ""
    for separators in (SEPARATORS, " "):
        split = {one: [several(cell, one) or () for cell in cells] for one in separators}
        found = [one for one, rows in split.items() if max(map(len, rows)) > 1]
        if found:
            return min(found, key=lambda one: len(set().union(*split[one])))
    raise InputError(
        f"expected several labels in some rows, with one of {' '.join(SEPARATORS)} between them, got one in each; "
        "leave out --multi-label"
    )


def several(cell: object, separator: str) -> tuple[str, ...] | None:
    """The labels in a cell, each once; None for an empty cell, which need not mean none of them as [] does.

    Example:
        >>> several("['joy', 'fear']", ","), several("3;0.0", ";"), several(["a", "b"], ""), several("[]", ",")
        (('joy', 'fear'), ('3', '0'), ('a', 'b'), ())
    """
    if is_empty(cell):
        return None
    found = cell if isinstance(cell, list) else [one.strip(" []{}()'\"") for one in str(cell).split(separator or None)]
    return tuple(dict.fromkeys(label for one in found if (label := spelled(one))))


def spelled(cell: object) -> str:
    """Spell a label; a whole number that a file stores as a float (1.0) is the class 1. Nothing where there is none."""
    text = str(cell).strip() if isinstance(cell, (str, int, float)) else ""
    value = number(text)
    if value is not None and value.is_integer() and "." in text:
        return str(int(value))
    return "" if text.lower() == "nan" else text


def _has_scores(labels: Sequence[str]) -> bool:
    """Whether the labels are values rather than classes.

    A slip among values must not turn thousands of them into classes: where more than half of the labels are
    numbers, and one has a fractional part, the rest is taken to be a mistake.
    """
    numbers = [value for label in labels if (value := number(label)) is not None]
    return any(not value.is_integer() for value in numbers) and 2 * len(numbers) > len(labels)


def _classes(labels: Sequence[str]) -> tuple[str, ...]:
    """Sort the labels: by value where all are numbers, so that 10 comes after 9, else as text."""
    names = sorted(set(labels))
    values = {name: value for name in names if (value := number(name)) is not None}
    return tuple(sorted(names, key=values.__getitem__) if len(values) == len(names) else names)


def _split(table: Table, names: tuple[str, ...] | None, train_size: int) -> Split:
    """Turn labels into values, or into numbers of classes."""
    labels: Sequence[Any] = table.columns["label"]
    texts: tuple[Any, ...] = tuple(table.columns["text"])
    label: tuple[Any, ...]
    if names is None:
        values = [number(label) for label in labels]
        good = (value is not None for value in values)
        table.check(good, labels, "a number as label (regression)", "correct or remove the row")
        label = tuple(value for value in values if value is not None)
    else:
        numbers = {name: index for index, name in enumerate(names)}
        known = ", ".join([*names[:20], *["..."][: len(names) - 20]])
        remedy = "correct it, or give training rows with it"
        if 2 * len(names) > train_size > 20:
            remedy = f"{train_size} training rows have {len(names)} labels: name another column with --label-column"
        good = (numbers.keys() >= ({one} if isinstance(one, str) else {*one}) for one in labels)
        table.check(good, labels, f"a label that also occurs in the training rows ({known})", remedy)
        if isinstance(labels[0], str):
            label = tuple(numbers[name] for name in labels)
        elif isinstance(texts[0], tuple):
            label = tuple(tuple(numbers[tag] for tag in row) for row in labels)
        else:
            label = tuple(tuple(int(name in row) for name in names) for row in labels)
    pair = table.columns.get("pair")
    return Split(text=texts, pair=None if pair is None else tuple(map(str, pair)), label=label)
