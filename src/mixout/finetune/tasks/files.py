"""A task from the user's own CSV, TSV, JSONL or Parquet files.

A folder holds ``train.*`` and ``dev.*`` (or ``validation.*``); a single file is split 80/20 by a hash of its
text, so that a text never stands on both sides and the split never moves. Everything is checked before a task
exists. Labels are classes, unless a correlation is asked for or all training labels are numbers and one has a
fractional part: then it is a regression. It neither repairs nor skips rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixout.errors import InputError
from mixout.finetune import metrics
from mixout.finetune.tasks.base import Split, Task
from mixout.finetune.tasks.tables import READERS, Table, number, read

OPTIONAL_PAIR = "text_pair"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns to read.

    Attributes:
        text: the text.
        pair: the second text, which must be there; ``None``: "text_pair", where the files have it.
        label: the label.

    Raises:
        InputError: a name is empty or occurs twice.
    """

    text: str = "text"
    pair: str | None = None
    label: str = "label"

    def __post_init__(self) -> None:
        names = (self.text, OPTIONAL_PAIR if self.pair is None else self.pair, self.label)
        if len(set(names)) < len(names) or not all(names):
            raise InputError(f"expected three different column names, got {names}; name each column once")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One labelled text as the file has it, and where it stands."""

    text: str
    pair: str | None
    label: str
    where: str


def load(path: Path, *, columns: Columns, metric: str | None) -> Task:
    """Load a task from a folder or a file that exists.

    Args:
        path: the folder or file.
        columns: which columns to read.
        metric: the primary metric, one that exists; ``None`` for accuracy, or for a regression spearman.

    Raises:
        InputError: anything about the files, the rows or the metric; nothing has been done by then.
    """
    train, dev, origin = _folder(path, columns) if path.is_dir() else _file(path, columns)
    asked = metric in metrics.REGRESSION and any(number(row.label) is not None for row in train)
    regression = asked or _has_scores(train)
    known = metrics.REGRESSION if regression else metrics.CLASSIFICATION
    chosen = metric or ("spearman" if regression else "accuracy")
    metrics.check(chosen, regression=regression)
    if len({row.label for row in train}) < 2:
        raise InputError(
            f"{train[0].where}: expected at least 2 different labels to train on, got {train[0].label!r} in every "
            "row; check the label column"
        )
    names = None if regression else _classes(train)
    label = _score if names is None else _numbering(names)
    return Task(
        name=path.resolve().name if path.is_dir() else path.stem,
        train=_split(train, label),
        dev=_split(dev, label),
        labels=names,
        metrics=(chosen, *(name for name in known if name != chosen)),
        metric=chosen,
        source=origin,
    )


def _folder(path: Path, columns: Columns) -> tuple[list[Row], list[Row], str]:
    train, dev = member(path, "train"), member(path, "dev", "validation")
    tables = read(train), read(dev)
    # If one side has the second text the other needs it too, whether it was named or not.
    pair = next((name for table in tables if (name := _pair(table, columns))), None)
    rows = [_rows(table, columns, pair) for table in tables]
    return rows[0], rows[1], f"The user's files {train.name} and {dev.name}."


def member(folder: Path, *stems: str, endings: Sequence[str] = tuple(READERS)) -> Path:
    """Find the one file of a split.

    Raises:
        InputError: there is none, or more than one.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = [path for path in files if path.stem in stems and path.suffix.lower() in endings]
    if len(found) == 1:
        return found[0]
    got = found or files
    raise InputError(
        f"expected one file {' or '.join(stems)} in {str(folder)!r} that ends in {', '.join(endings)}, got "
        f"{', '.join(path.name for path in got) or 'an empty folder'}; "
        f"{'remove all but one' if found else 'add it, or give a single file to be split'}"
    )


def _file(path: Path, columns: Columns) -> tuple[list[Row], list[Row], str]:
    table = read(path)
    rows = _rows(table, columns, _pair(table, columns))
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        sides[in_dev(row.text)].append(row)
    if not all(sides):
        raise InputError(
            f"{path.name}: expected enough different texts to split 80/20 by a hash of the text, got {len(rows)} "
            "rows that all fall on one side; give a folder with a train and a dev file"
        )
    return *sides, f"The user's file {path.name}, split 80/20 by a hash of the text."


def in_dev(text: str) -> bool:
    """Whether a text of a single file belongs to the dev set: one in five does."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 5 == 0


def _pair(table: Table, columns: Columns) -> str | None:
    """Name the column of the second text, or ``None`` if there is none."""
    return columns.pair or (OPTIONAL_PAIR if OPTIONAL_PAIR in table.columns else None)


def _rows(table: Table, columns: Columns, paired: str | None) -> list[Row]:
    names = (columns.text, columns.label) if paired is None else (columns.text, paired, columns.label)
    positions = table.positions(names)
    rows = []
    for index, cells in enumerate(table.rows):
        where = table.where(index)
        text, *pair, label = (cells[at] for at in positions)
        rows.append(
            Row(
                text=text_in(text, columns.text, where),
                pair=None if paired is None else text_in(pair[0], paired, where),
                label=_label(label, columns.label, where),
                where=where,
            )
        )
    return rows


def text_in(cell: object, column: str, where: str) -> str:
    """Return a cell that must hold text.

    Raises:
        InputError: it does not.
    """
    if isinstance(cell, str) and cell.strip():
        return cell
    got = "an empty cell" if cell is None or isinstance(cell, str) else repr(cell)
    raise InputError(f"{where}: expected text in column {column!r}, got {got}; fill or remove the row")


def _label(cell: object, column: str, where: str) -> str:
    """Spell a label; a whole number that a file stores as a float (1.0) is the class 1, a NaN is a missing value."""
    spelled = str(cell).strip() if isinstance(cell, (str, int, float)) else ""
    if spelled and spelled.lower() != "nan":
        value = number(spelled)
        return str(int(value)) if value is not None and value.is_integer() and "." in spelled else spelled
    empty = cell is None or isinstance(cell, float) or not str(cell).strip()
    got = "an empty cell" if empty else repr(cell)
    raise InputError(
        f"{where}: expected a label (text or a number) in column {column!r}, got {got}; fill or remove the row"
    )


def _has_scores(rows: Sequence[Row]) -> bool:
    """Whether the labels are values rather than classes.

    A slip among values must not turn thousands of them into classes: where more than half of the labels are
    numbers, and one has a fractional part, the rest is taken to be a mistake.
    """
    values = [number(row.label) for row in rows]
    numbers = [value for value in values if value is not None]
    fractional = any(not value.is_integer() for value in numbers)
    return fractional and 2 * len(numbers) > len(rows)


def _score(row: Row) -> float:
    value = number(row.label)
    if value is None:
        raise InputError(
            f"{row.where}: expected a number as label (regression), got {row.label!r}; correct or remove the row"
        )
    return value


def _classes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Sort the labels: by value where all are numbers, so that 10 comes after 9, else as text."""
    names = sorted({row.label for row in rows})
    values = {name: value for name in names if (value := number(name)) is not None}
    return tuple(sorted(names, key=values.__getitem__) if len(values) == len(names) else names)


def _numbering(names: Sequence[str]) -> Callable[[Row], int]:
    numbers = {name: index for index, name in enumerate(names)}

    def of(row: Row) -> int:
        if row.label not in numbers:
            raise InputError(
                f"{row.where}: expected a label that also occurs in the training rows ({', '.join(names[:20])}), "
                f"got {row.label!r}; correct it, or give training rows with it"
            )
        return numbers[row.label]

    return of


def _split(rows: Sequence[Row], label: Callable[[Row], int] | Callable[[Row], float]) -> Split:
    pairs = [row.pair for row in rows if row.pair is not None]
    return Split(
        text=tuple(row.text for row in rows),
        pair=tuple(pairs) if pairs else None,
        label=tuple(label(row) for row in rows),
    )
