"""A file of rows -> named columns, and where each row stands in the file.

The standard library reads CSV, TSV and JSON lines, and pyarrow reads Parquet: no guessing of types, and every
message can name the line. TSV has no quoting (a stray quotation mark must not swallow the rows after it); CSV
is quoted as in RFC 4180. Which columns matter and what they mean is decided elsewhere.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixout.errors import InputError
from mixout.finetune.extras import needs


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of one file.

    Attributes:
        path: the file.
        columns: their names.
        rows: the cells, each row as long as ``columns``; a cell that the file leaves out is ``None``.
        lines: where each row starts in the file, counted from 1 (Parquet has rows instead of lines).
        unit: what ``lines`` counts: "line" or "row".
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    lines: tuple[int, ...]
    unit: str = "line"

    def where(self, index: int) -> str:
        """Return the file's name and the line of a row, for messages."""
        return f"{self.path.name}, {self.unit} {self.lines[index]}"

    def positions(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return where these columns are.

        Raises:
            InputError: one is missing; the message lists those that exist.
        """
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise InputError(
                f"{self.path.name}: expected a column {' and a column '.join(map(repr, missing))}, got the columns "
                f"{', '.join(map(repr, self.columns))}; rename a column, or name the right one by option"
            )
        return tuple(self.columns.index(name) for name in names)


def read(path: Path) -> Table:
    """Read a file by its extension.

    Raises:
        InputError: the file is absent, empty, of an unknown kind, not UTF-8, or malformed.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path.name}: expected a file that ends in {', '.join(READERS)}, got {path.suffix or 'no ending'!r}; "
            "convert it to one of them"
        )
    return reader(path)


def read_csv(path: Path) -> Table:
    """Read comma-separated values with a header; quoted cells may hold commas and line breaks."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    cells: list[list[str]] = []
    lines: list[int] = []
    while True:
        lines.append(reader.line_num + 1)
        try:
            cells.append(next(reader))
        except StopIteration:
            break
        except csv.Error as error:
            raise InputError(
                f"{path.name}, line {lines[-1]}: expected comma-separated values, got a row that does not parse "
                f"({error}); check its quotation marks, or use .jsonl"
            ) from error
    return _checked(path, cells[0], cells[1:], lines[1:])


def read_tsv(path: Path, *, header: Sequence[str] | None = None) -> Table:
    """Read tab-separated values; quotation marks mean nothing.

    Args:
        path: the file.
        header: the columns of a file that does not name them in its first line.
    """
    # Not str.splitlines: that also splits at U+0085 and U+2028, which occur inside sentences.
    cells = [line.removesuffix("\r").split("\t") for line in read_text(path).split("\n")]
    if header is None:
        return _checked(path, cells[0], cells[1:], range(2, len(cells) + 1))
    return _checked(path, header, cells, range(1, len(cells) + 1))


def read_jsonl(path: Path) -> Table:
    """Read one JSON object a line; the columns are the keys of all of them."""
    objects: list[dict[str, object]] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        try:
            value = json.loads(line) if line.strip() else {}
            # An escape like \\ud800 alone is no character: a tokenizer would stumble over it much later.
            json.dumps(value, ensure_ascii=False).encode()
        except ValueError as error:
            raise InputError(
                f"{path.name}, line {number}: expected a JSON object, got what does not parse ({error}); "
                "write one object a line"
            ) from error
        if not isinstance(value, dict):
            raise InputError(
                f"{path.name}, line {number}: expected a JSON object, got {type(value).__name__}; "
                'write {"text": ..., "label": ...}'
            )
        objects.append(value)
    columns = tuple(dict.fromkeys(name for item in objects for name in item))
    return Table(
        path=path,
        columns=columns,
        rows=tuple(tuple(item.get(name) for name in columns) for item in objects),
        lines=tuple(range(1, len(objects) + 1)),
    )


def read_parquet(path: Path) -> Table:
    """Read a Parquet file."""
    with needs("hf", "Parquet files"):
        import pyarrow
        import pyarrow.parquet
    data = _bytes(path)
    try:
        # Single-threaded and from memory: the file is small, and no thread outlives the call.
        table = pyarrow.parquet.read_table(io.BytesIO(data), use_threads=False)
        columns: Mapping[str, list[object]] = table.to_pydict()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{path.name}: expected a Parquet file, got what pyarrow cannot read ({error}); write it again"
        ) from error
    rows = tuple(zip(*columns.values(), strict=True))
    if not rows:
        raise InputError(f"{path.name}: expected at least one row, got none; add rows, or leave the file out")
    return Table(path=path, columns=tuple(columns), rows=rows, lines=tuple(range(1, len(rows) + 1)), unit="row")


def number(cell: object) -> float | None:
    """Return a cell as a finite number, or ``None`` if it is none.

    Example:
        >>> number("2.5"), number(" 3 "), number("1_000"), number("nan"), number("good")
        (2.5, 3.0, None, None, None)
    """
    text = str(cell)
    try:
        value = float(text)
    except ValueError:
        return None
    # Python's own spelling 1_000 is nobody's number in a data file.
    return value if math.isfinite(value) and "_" not in text else None


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


def _checked(path: Path, header: Sequence[str], cells: Sequence[list[str]], lines: Sequence[int]) -> Table:
    """Build a table of text cells, every row as wide as the header."""
    double = sorted({name for name in header if header.count(name) > 1})
    if double:
        raise InputError(
            f"{path.name}, line 1: expected every column once, got {double[0]!r} twice; rename one of the two"
        )
    if not cells:
        raise InputError(f"{path.name}: expected rows under the header, got none; add rows, or leave the file out")
    for line, row in zip(lines, cells, strict=False):
        # A blank line is an empty row: its cells are missing, and whoever needs them says so.
        if len(row) != len(header) and any(row):
            raise InputError(
                f"{path.name}, line {line}: expected {len(header)} cells ({', '.join(header)}), got {len(row)}; "
                "check the separators"
            )
    rows = tuple(tuple(row) if any(row) else (None,) * len(header) for row in cells)
    return Table(path=path, columns=tuple(header), rows=rows, lines=tuple(lines)[: len(rows)])


def read_text(path: Path) -> str:
    """Read UTF-8, with or without a byte order mark, and drop line breaks at the end.

    Raises:
        InputError: the file is absent, empty or not UTF-8.
    """
    data = _bytes(path)
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path.name}, line {line}: expected UTF-8, got byte 0x{data[error.start]:02x} at offset "
            f"{error.start}; save the file as UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{path.name}: expected rows, got an empty file; add rows, or leave the file out")
    return text.rstrip("\r\n")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: expected a file that can be read, got {error.strerror}; check the path and its permissions"
        ) from error
