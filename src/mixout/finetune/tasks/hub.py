"""A data set of the hub, or in a folder that ``datasets`` can read: its splits as tables.

``name`` trains on the split "train" and is judged on "validation"; without one, a fifth of the training rows is held
out, as for a single file. ``name:split`` takes one split, ``name:train,test`` two. Splits called "test" are left alone
unless they are named. Class names are those of the data set.
"""

from __future__ import annotations

import re
from typing import Any

from mixout.errors import InputError
from mixout.finetune.extras import needs
from mixout.finetune.tasks.tables import READERS, Table

# Such as imdb, stanfordnlp/imdb, org/name:train[:1000] and org/name:train,test.
_NAME = re.compile(r"(?P<name>\w[\w.-]*(/[\w.-]+)?)(:(?P<splits>\S+))?")
_LONGEST = 200
_DEV = ("validation", "dev")


def is_name(task: str) -> bool:
    """Whether a task that is no file may be a data set of the hub."""
    ending = task.lower().endswith((".txt", *READERS))
    return _NAME.fullmatch(task) is not None and len(task) <= _LONGEST and not ending


def load(task: str) -> tuple[list[Table], str]:
    """The tables of a data set, one or two, and where they came from.

    Raises:
        InputError: there is no such data set or split, or the hub cannot be reached.
        MissingExtraError: ``datasets`` is not installed.
    """
    match = _NAME.fullmatch(task)
    name, splits = (match["name"], match["splits"]) if match else (task, None)
    with needs("hf", "data sets of the hub"):
        import datasets
    try:
        if splits is None:
            found = datasets.load_dataset(name)
            chosen = ["train", *[one for one in _DEV if one in found][:1]]
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
    tables = [_table(f"{name}:{split}", part) for split, part in zip(chosen, parts, strict=True)]
    return tables, f"{name} on the hub, {' and '.join(chosen)}."


def _table(name: str, part: Any) -> Table:  # noqa: ANN401  a datasets.Dataset
    columns = {column: part[column][:] for column in part.column_names}
    for column, feature in part.features.items():
        if hasattr(feature, "int2str"):
            columns[column] = [
                feature.int2str(one) if one is not None and one >= 0 else None for one in columns[column]
            ]
    if not len(part):
        raise InputError(f"{name}: expected at least one row, got none; choose another split")
    return Table(name=name, columns=columns, lines=range(1, len(part) + 1), unit="row")
