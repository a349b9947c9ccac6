"""The cells of a table become texts and labels: classes, values, several labels a row, or words and their tags.

Labels are classes, unless a correlation is asked for or all training labels are numbers and one has a fractional part:
then they are values. It neither repairs nor skips rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any, Literal

from mixout.errors import InputError
from mixout.finetune.tasks.base import Split
from mixout.finetune.tasks.tables import Table, is_empty, number

OPTIONAL_PAIR = "text_pair"
# 1.050 in a file with semicolons, and a number with a thousands sign or a unit: 1.050,50 or 1,050 or 10.50 EUR.
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(\.\d{3})+")
_WRITTEN = re.compile(r"[$\u20ac\u00a3\u00a5]?\s?[-+\u2212]?\d[\d.,'\s]*([%$\u20ac\u00a3\u00a5]|[^\W\d_]{1,3})?")
# Around all labels of a cell, and around one.
_BRACKETS = re.compile(r"\A(?:\[([^][]*)\]|\(([^()]*)\)|\{([^{}]*)\})\Z")
_QUOTES = re.compile(r"\A(['\"])(.*)\1\Z", re.DOTALL)
_COLUMN = "name another column with --label-column"
SEPARATORS = (",", ";", "|", "+", "/")  # tried between several labels in a cell, before blanks


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns to read.

    Raises:
        InputError: a name is empty or occurs twice.
    """

    text: str = "text"
    pair: str | None = None  # the second text, which must exist; None: "text_pair", if the files have it
    label: str = "label"
    holds: Literal["label", "labels", "tags"] = "label"  # content of a label cell; lists always hold several

    def __post_init__(self) -> None:
        names = (self.text, OPTIONAL_PAIR if self.pair is None else self.pair, self.label)
        if len(set(names)) < len(names) or not all(names):
            raise InputError(f"expected three different column names, got {names}; name each column once")


def checked(table: Table, columns: Columns, pair: str | None, separator: str) -> Table:
    """Return the columns text, label and, where there are second texts, pair; no cell is empty.

    Labels are text; several labels, or the tags of a text that is a tuple of words, are tuples of text.
    """
    names = [columns.text, *([] if pair is None else [pair]), columns.label]
    remedy = "rename a column, add a header, or name yours with --text-column, --pair-column or --label-column"
    table.require(names, f"{remedy}; text without labels is for --task-type causal-lm")
    cells = table.columns[columns.label]
    if columns.holds == "tags":
        words = words_in(table, columns.text)
        tags = [tuple(map(spelled, cell)) if isinstance(cell, list) else () for cell in cells]
        good = [len(row) == len(text) and "" not in row for row, text in zip(tags, words, strict=True)]
        table.check(good, cells, f"a list in column {columns.label!r} with a tag for each word", "correct the row")
        return replace(table, columns={"text": words, "label": tags})
    if any(isinstance(cell, list) for cell in table.columns[columns.text]):
        raise InputError(
            f"{table.name}: expected text in column {columns.text!r}, got lists; words with tags need --task-type "
            "token-classification"
        )
    texts = {"text": texts_in(table, columns.text)} | ({} if pair is None else {"pair": texts_in(table, pair)})
    dotted = ""
    if columns.holds == "labels":
        cells = by_position(cells)
    labels: list[Any] = [several(cell, separator) if columns.holds == "labels" else spelled(cell) for cell in cells]
    comma = False
    if table.comma and columns.holds == "label":
        raw = [str(cell).strip() for cell in cells]
        points = [spelled(label.replace(",", ".", 1)) for label in labels]
        numeric = [number(point) is not None for point in points]
        if 2 * sum(numeric) > len(numeric):
            comma = any("," in label for label in labels)
            with_dot = [label for label in raw if "." in label and "," not in label]
            if all(map(_THOUSANDS.fullmatch, with_dot)):
                dotted = next((label for label in with_dot if number(label) is not None), "")
            if comma and dotted:
                good = [label not in with_dot for label in raw]
                table.check(good, raw, "numbers with one sign, a comma as in 0,5", "write 1.050 as 1050")
            labels = [
                point if is_value else label for point, is_value, label in zip(points, numeric, labels, strict=True)
            ]
    expected, remedy = f"a label (text or a number) in column {columns.label!r}", "fill or remove the row"
    if columns.holds == "labels":
        expected, remedy = f"labels in column {columns.label!r}", "fill the row; [] stands for none of the labels"
    table.check([label not in ("", None) for label in labels], cells, expected, remedy)
    return replace(table, columns={**texts, "label": labels}, comma=comma, dotted=dotted)


def texts_in(table: Table, column: str) -> tuple[str, ...]:
    """A column in which every cell must hold text; InputError where one does not."""
    cells = table.columns[column]
    good = (isinstance(cell, str) and not is_empty(cell) for cell in cells)
    table.check(good, cells, f"text in column {column!r}", "fill or remove the row")
    return tuple(map(str, cells))


def words_in(table: Table, column: str) -> list[tuple[str, ...]]:
    """A column of lists of words; InputError where a cell is none, or a word is empty."""
    cells: Sequence[Any] = table.columns[column]
    good = (isinstance(cell, list) and bool(cell) and not any(map(is_empty, cell)) for cell in cells)
    table.check(good, cells, f"a list of words in column {column!r}", "correct or remove the row")
    return [tuple(map(str, cell)) for cell in cells]


def separator_of(cells: Sequence[object]) -> str:
    """The separator of several labels in a cell: the one that gives the fewest different labels; empty for lists."""
    if any(isinstance(cell, list) for cell in cells):
        return ""
    for separators in (SEPARATORS, " "):
        labels_by = {separator: [several(cell, separator) or () for cell in cells] for separator in separators}
        candidates = [separator for separator, rows in labels_by.items() if max(map(len, rows)) > 1]
        if candidates:
            return min(candidates, key=lambda separator: len(set().union(*labels_by[separator])))
    raise InputError(
        f"expected several labels in some rows, with one of {' '.join(SEPARATORS)} between them, got one in each; "
        "leave out --multi-label"
    )


def several(cell: object, separator: str) -> tuple[str, ...] | None:
    """The labels in a cell, each once; None for an empty cell, which need not mean "no label" as [] does.

    Example:
        >>> several("['joy', 'fear']", ","), several("3;0.0", ";"), several(["a", "b"], ""), several("[]", ",")
        (('joy', 'fear'), ('3', '0'), ('a', 'b'), ())
        >>> several("animal (pet), (home) house", ",")
        ('animal (pet)', '(home) house')
    """
    if is_empty(cell):
        return None
    parts: Any = cell
    if not isinstance(cell, list):
        text = _BRACKETS.sub(r"\1\2\3", str(cell).strip())
        parts = [_QUOTES.sub(r"\2", part.strip()) for part in text.split(separator or None)]
    return tuple(dict.fromkeys(label for part in parts if (label := spelled(part))))


def by_position(cells: Sequence[object]) -> Sequence[object]:
    """Cells that are all vectors of 0 and 1 of one length, as lists of the positions of their ones; others as they are.

    Example:
        >>> by_position([[1, 0, 1], [0, 0, 0]]), by_position(["[0, 1]", "[1, 1]"]), by_position(["0, 1", "1"])
        ([['0', '2'], []], [['1'], ['0', '1']], ['0, 1', '1'])
    """
    vectors: list[list[Any]] = []
    for cell in cells:
        if isinstance(cell, str):
            vectors.append([number(part) for part in re.split(r"[,;\s]+", cell.strip(" []"))])
        else:
            vectors.append(cell if isinstance(cell, list) else [])
    are_hot = all(part in (0, 1) for vector in vectors for part in vector)
    if not are_hot or len(set(map(len, vectors))) > 1 or len(vectors[0]) < 2:
        return cells
    return [[str(position) for position, has in enumerate(vector) if has] for vector in vectors]


def spelled(cell: object) -> str:
    """Spell a label; a whole number that a file stores as a float (1.0) is the class 1. Empty without a label."""
    text = str(cell).strip() if isinstance(cell, (str, int, float, Decimal, date)) else ""
    value = number(text)
    if value is not None and value.is_integer() and "." in text:
        return str(int(value))
    return "" if text.lower() == "nan" else text


def are_values(labels: Sequence[str]) -> bool:
    """Whether the labels are values rather than classes.

    A slip among values must not turn thousands of them into classes: where more than half of the labels are
    numbers, and one has a fractional part, the rest is taken to be a mistake.
    """
    numbers = [value for label in labels if (value := number(label)) is not None]
    return any(not value.is_integer() for value in numbers) and 2 * len(numbers) > len(labels)


def is_written(label: str) -> bool:
    """Whether a label is a number for people alone: with a thousands sign or a unit.

    Example:
        >>> [is_written(label) for label in ("1.050,50", "10.50 EUR", "1,050", "1050.5", "good", "v1")]
        [True, True, True, False, False, False]
    """
    return number(label) is None and _WRITTEN.fullmatch(label) is not None


def if_values(names: Sequence[str]) -> str:
    """A part of a message on classes: what to do if they are values. Empty where they do not look like these."""
    written = [name for name in names if is_written(name)]
    if any(number(name) is None and not is_written(name) for name in names):
        return ""
    if written:
        return f"; if {written[0]!r} is a value, write it without thousands sign and unit, as 1050.5"
    return "; if they are values, choose --metric spearman"


def in_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Sort the labels: by value where all are numbers, so that 10 comes after 9, else as text."""
    names = sorted(set(labels))
    values = {name: value for name in names if (value := number(name)) is not None}
    return tuple(sorted(names, key=values.__getitem__) if len(values) == len(names) else names)


def labels_in(table: Table) -> list[str]:
    """The labels of all rows, one after another."""
    rows: Sequence[Any] = table.columns["label"]
    return [label for row in rows for label in ([row] if isinstance(row, str) else row)]


def in_two(table: Table, sides: Sequence[Sequence[int]]) -> list[Table]:
    """The training and the dev rows of a table, each by a name that says so: the file may have what one part lacks."""
    parts = ("without the fifth that is the dev set", "the fifth that is the dev set")
    return [replace(table.take(rows), name=f"{table.name} ({part})") for rows, part in zip(sides, parts, strict=True)]


def with_all_classes(table: Table, train: list[int], dev: list[int]) -> tuple[list[int], list[int]]:
    """Both sides of a split of the rows: classes of the dev side alone are training rows, with all rows of their texts.

    Not if that takes most dev rows, or a class has less than two rows in the mean: then the labels are to be looked at.
    """
    labels = [{label} if isinstance(label, str) else {*label} for label in table.columns["label"]]  # type: ignore[misc]
    texts, known = table.columns["text"], set().union(*(labels[row] for row in train))
    lone = {texts[row] for row in dev if not labels[row] <= known}
    moved = [row for row in dev if texts[row] in lone]
    if 2 * len(moved) > len(dev) or 2 * len(known.union(*labels)) > len(labels):
        return train, dev
    return sorted([*train, *moved]), [row for row in dev if texts[row] not in lone]


def split_of(table: Table, names: tuple[str, ...] | None, train_size: int) -> Split:
    """Turn labels into values, or into numbers of classes; without training rows, for a model that knows these."""
    labels: Sequence[Any] = table.columns["label"]
    texts: tuple[Any, ...] = tuple(table.columns["text"])
    label: tuple[Any, ...]
    if names is None:
        values = [number(label) for label in labels]
        good = [value is not None for value in values]
        hint = "use --multi-label where cells hold several labels" if train_size else _COLUMN
        remedy = f"correct or remove the row, or {hint}"
        if is_written(next((label for label, is_good in zip(labels, good, strict=True) if not is_good), "")):
            remedy = "write numbers without thousands sign and unit, as 1050.5"
        table.check(good, labels, "a number as label (regression)", remedy)
        label = tuple(value for value in values if value is not None)
    else:
        numbers = {name: index for index, name in enumerate(names)}
        shown = ", ".join([*names[:20], *["..."][: len(names) - 20]])
        good = [numbers.keys() >= ({row} if isinstance(row, str) else {*row}) for row in labels]
        known = "also occurs in the training rows" if train_size else "the model knows"
        remedy = f"correct it, or {'give training rows with it' if train_size else _COLUMN}"
        per_row = len(names) / train_size if train_size > 20 and isinstance(labels[0], str) else 0.0
        if per_row > 0.5:
            many = f"{train_size} training rows have {len(names)} labels"
            remedy += f"{if_values(names)}; {many}: is it another --label-column?"
        table.check(good, labels, f"a label that {known} ({shown})", remedy)
        if isinstance(labels[0], str):
            label = tuple(numbers[name] for name in labels)
        elif isinstance(texts[0], tuple):
            label = tuple(tuple(numbers[tag] for tag in row) for row in labels)
        else:
            label = tuple(tuple(int(name in row) for name in names) for row in labels)
    pair = table.columns.get("pair")
    return Split(text=texts, pair=None if pair is None else tuple(map(str, pair)), label=label)
