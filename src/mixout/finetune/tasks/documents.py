"""Text for a causal language model: documents, or prompts with the completions that are to be learned.

A ``.txt`` file holds documents separated by blank lines. A column of conversations, lists of messages with a role and
content, goes through the tokenizer's chat template. In JSONL, CSV, TSV and Parquet a row is a document in the column
"text", or a "prompt" and its "completion"; only the completion counts in the loss. A folder holds ``train.*`` and
``dev.*`` (or ``validation.*``); a single file is split 80/20 by a hash of the text, or of the prompt. Everything is
checked before a task exists. It neither repairs nor skips rows, and it does not tokenize.
"""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path

from mixout._names import nearest
from mixout.errors import InputError
from mixout.finetune.tasks.base import Split, Task
from mixout.finetune.tasks.cells import texts_in
from mixout.finetune.tasks.files import halves, read_splits, short_name
from mixout.finetune.tasks.tables import READERS, Table, read, read_text

ENDINGS = (".txt", *READERS)
# Higher is better in both; perplexities, which are their exponentials, are reported beside them.
METRICS = ("log_likelihood", "original_log_likelihood")
PROMPT, COMPLETION = "prompt", "completion"


def load(path: str | Path, *, original: Path | None, column: str, metric: str | None) -> Task:
    """Load the task of a causal language model.

    Raises:
        InputError: anything about the files, the rows or the metric; nothing has been done by then.
    """
    if metric not in (None, *METRICS):
        raise InputError(
            f"expected a metric of {', '.join(METRICS)} for a causal language model, got {metric!r}"
            f"{nearest(str(metric), METRICS)}; runs are compared by scores of which higher is better"
        )
    if metric == METRICS[1] and original is None:
        raise InputError(f"expected text of the original domain for the metric {metric!r}, got none; give --original")
    tables, source = read_splits(path, endings=ENDINGS, reader=partial(_read, column=column))
    parts = [_of_table(table, column) for table in tables]
    if len(parts) == 1:
        [whole] = parts
        # Split by the prompt if there is one, so that no question stands on both sides.
        keys = whole.text if whole.prompt is None else whole.prompt
        parts = [whole.select(rows) for rows in halves(tables[0].name, keys, "documents")]
    scores = ("log_likelihood", "perplexity")
    return Task(
        name=short_name(path),
        train=parts[0],
        dev=parts[1],
        original=None if original is None else read_original(original, column),
        metrics=scores if original is None else (*scores, *(f"original_{name}" for name in scores)),
        metric=metric or METRICS[0],
        source=source + ("" if original is None else f" Original domain: {original.name}."),
    )


def read_original(file: Path, column: str) -> Split:
    """Read text that a model knew before; InputError if there is no such file, or a row lacks its text."""
    if not file.is_file():
        raise InputError(f"expected original as a file with text that exists, got {os.fspath(file)!r}")
    return _of_table(_read(file, column), column)


def _read(file: Path, column: str) -> Table:
    """A file as a table with the column; each document of a text file is a row."""
    if file.suffix.lower() != ".txt":
        return read(file, ENDINGS)
    # Indentation and trailing blanks belong to a document; blank lines do not, also at both ends of the file.
    whole = "\n" + read_text(file).replace("\r\n", "\n") + "\n\n"
    pieces = [piece.strip("\n") for piece in re.split(r"\n(?:[^\S\n]*\n)+", whole) if piece.strip()]
    return Table(name=file.name, columns={column: pieces}, lines=range(1, len(pieces) + 1), unit="document")


def _of_table(table: Table, column: str) -> Split:
    paired = {PROMPT, COMPLETION} <= set(table.columns)
    if paired and column in table.columns:
        raise InputError(
            f"{table.name}: expected either the column {column!r} or the columns {PROMPT!r} and {COMPLETION!r}, got "
            "all of them; remove what is not meant"
        )
    table.require([PROMPT, COMPLETION] if paired else [column], "rename a column, or name yours with --text-column")
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
    return Split(text=texts_in(table, COMPLETION), prompt=texts_in(table, PROMPT))
