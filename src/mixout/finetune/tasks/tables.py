"""A file of rows -> named columns, and where each row stands in the file.

No type is guessed, every row is as wide as the header, and every message names the line. CSV is quoted as in RFC 4180;
in TSV quotation marks mean nothing, so that a stray one does not swallow the rows after it. Which columns matter and
what they mean is decided elsewhere.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile, groupby
from pathlib import Path

from mixout.errors import InputError, needs

_NAMED = 5  # most rows that a message names
_EXCEL = "in Excel: Save as, CSV UTF-8"
_JSON = 'write one object a line, {"text": ..., "label": ...}, into a file that ends in .jsonl'
_CONVERTED = {".json": _JSON, **dict.fromkeys((".xlsx", ".xls", ".ods"), f"save it as a table: {_EXCEL}")}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of one file, column by column."""

    name: str  # of the file
    columns: Mapping[str, Sequence[object]]  # of unnamed ones the first; a cell that the file leaves out is None
    lines: Sequence[int]  # where each row starts in the file, from 1
    unit: str = "line"  # what ``lines`` count; Parquet has rows
    comma: bool = False  # whether numbers may be written as 0,5
    dotted: str = ""  # a label such as 1.050, if it may be meant as 1050

    def require(self, names: Sequence[str], remedy: str = "rename a column") -> None:
        """Refuse a table without these columns by an InputError that lists those that exist."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise InputError(
                f"{self.name}: expected a column {' and a column '.join(map(repr, missing))}, got the columns "
                f"{', '.join(map(repr, filter(str.strip, self.columns)))}; {remedy}"
            )

    def take(self, rows: Sequence[int]) -> Table:
        """Return the rows at these positions."""
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        return replace(self, columns=columns, lines=[self.lines[row] for row in rows])

    @staticmethod
    def joined(tables: Sequence[Table]) -> Table:
        """The rows of all tables, with the columns of the first; InputError where one lacks a column."""
        first = tables[0]
        if len(tables) == 1:
            return first
        names = [name for name in first.columns if name]
        for table in tables:
            table.require(names)
        columns = {name: [cell for table in tables for cell in table.columns[name]] for name in names}
        rows = range(1, sum(len(table.lines) for table in tables) + 1)
        return replace(first, name=f"{first.name} and the shards after it", columns=columns, lines=rows, unit="row")

    def check(self, good: Iterable[bool], got: Sequence[object], expected: str, remedy: str) -> None:
        """Refuse rows that are not good by one InputError: what is wrong with the first, and how many there are."""
        bad = [row for row, is_good in enumerate(good) if not is_good]
        if not bad:
            return
        first = "an empty cell" if is_empty(got[bad[0]]) else repr(got[bad[0]])
        lines = [str(self.lines[row]) for row in bad]
        message = f"{self.name}, {self.unit} {lines[0]}: expected {expected}, got {first}"
        if len(bad) > 1:
            shown = ", ".join([*lines[:_NAMED], *["..."][: len(lines) - _NAMED]])
            message += f"; {len(bad)} of {len(self.lines)} rows are like this ({self.unit}s {shown})"
            remedy = remedy.replace("the row", "the rows")
        raise InputError(f"{message}; {remedy}")

    def check_varied(self, labels: Sequence[object]) -> None:
        """Refuse labels that are the same in every row, by an InputError."""
        if len(set(labels)) < 2:
            raise InputError(
                f"{self.name}, {self.unit} {self.lines[0]}: expected at least 2 different labels to train on, got "
                f"{labels[0]!r} in every row; check the label column, or add rows with another label"
            )


def is_empty(cell: object) -> bool:
    """Whether a cell holds nothing: no value, blanks only, or the NaN that stands for a missing value."""
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and cell != cell)


def read(path: Path, endings: Iterable[str] = ()) -> Table:
    """Read a file by its extension; InputError if it is absent, empty, of an unknown kind, not UTF-8, or malformed.

    ``endings`` are for the message, if the caller can read more than these.
    """
    reader, ending = READERS.get(path.suffix.lower()), path.suffix or "no ending"
    if reader is None:
        raise InputError(
            f"{path.name}: expected a file that ends in {', '.join(endings or READERS)}, got {ending!r}; "
            f"{_CONVERTED.get(ending.lower(), 'convert it to one of them')}"
        )
    return reader(path)


def read_csv(path: Path) -> Table:
    """Read comma-separated values with a header; quoted cells may hold commas and line breaks.

    The separator is what the header has most of outside quotation marks: commas; semicolons, from a spreadsheet in a
    country that writes 0,5; or tabs. A first line ``sep=;``, as Excel writes it, names it.
    """
    text = read_text(path)
    if named := re.match(r"sep=(.)\r?\n", text):
        text = text[named.end() :]
    header = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    separator = named[1] if named else max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    rows: list[list[str]] = []
    first = 2 if named else 1
    lines = [first]
    # The limit on the length of a cell is the whole process's; texts may be longer.
    limit = csv.field_size_limit()
    csv.field_size_limit(max(limit, len(text)))
    try:
        for row in reader:
            rows.append(row)
            lines.append(reader.line_num + first)
    except csv.Error as error:
        raise InputError(
            f"{path.name}, line {lines[-1]}: expected comma-separated values, got a row that does not parse "
            f"({error}); check its quotation marks, or use .jsonl"
        ) from error
    finally:
        csv.field_size_limit(limit)
    table = _table(path, rows[0], rows[1:], lines[1:])
    return replace(table, comma=separator == ";")


def read_tsv(path: Path, *, header: Sequence[str] | None = None) -> Table:
    """Read tab-separated values; quotation marks mean nothing."""
    # Not str.splitlines: that also splits at U+0085 and U+2028, which occur inside sentences.
    rows = [line.removesuffix("\r").split("\t") for line in read_text(path).split("\n")]
    if header is None:
        return _table(path, rows[0], rows[1:], range(2, len(rows) + 1))
    return _table(path, header, rows, range(1, len(rows) + 1))


def read_jsonl(path: Path) -> Table:
    """Read one JSON object a line; the columns are the keys of all of them, and "a.b" for b within the object a."""
    objects: list[dict[str, object]] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        try:
            value = json.loads(line) if line.strip() else {}
            # An escape like \\ud800 alone is no character: a tokenizer would stumble over it much later.
            json.dumps(value, ensure_ascii=False).encode()
            got = type(value).__name__
        except ValueError as error:
            value, got = None, f"what does not parse ({error})"
        if not isinstance(value, dict):
            raise InputError(
                f"{path.name}, line {number}: expected a JSON object, got {got}; "
                'write {"text": ..., "label": ...}, one object a line'
            )
        objects.append(dict(_flat(value)))
    names = dict.fromkeys(name for item in objects for name in item)
    columns = {name: [item.get(name) for item in objects] for name in names}
    return Table(name=path.name, columns=columns, lines=range(1, len(objects) + 1))


def _flat(item: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in item.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


def read_conll(path: Path) -> Table:
    """Read one word a line, its tag last, blank lines between sentences: lists in the columns "text" and "label".

    If no word has a tag there is no label. Lines of ``-DOCSTART-`` are left out, and comments (``# id 7``) before a
    sentence's first word: lines that begin with "#" alone and do not end with a tag of other words.
    """
    rows = [(number, line.split()) for number, line in enumerate(read_text(path).split("\n"), 1)]
    groups = groupby(rows, lambda row: bool(row[1]) and row[1][0] != "-DOCSTART-")
    known = {cells[-1] for _, cells in rows if len(cells) > 1 and cells[0] != "#"}

    def is_comment(row: tuple[int, list[str]]) -> bool:
        return len(row[1]) > 1 and row[1][0] == "#" and row[1][-1] not in known

    uncommented = (list(dropwhile(is_comment, sentence)) for has_words, sentence in groups if has_words)
    sentences = [sentence for sentence in uncommented if sentence]
    untagged = [number for sentence in sentences for number, cells in sentence if len(cells) < 2]
    tagged = len(untagged) < sum(map(len, sentences))
    if (untagged and tagged) or not sentences:
        raise InputError(f"{path.name}, line {[*untagged, 1][0]}: expected a word and its tag, got something else")
    words, tags = ([[cells[column] for _, cells in sentence] for sentence in sentences] for column in (0, -1))
    lines = [sentence[0][0] for sentence in sentences]
    columns = {"text": words, "label": tags} if tagged else {"text": words}
    return Table(name=path.name, columns=columns, lines=lines)


def read_parquet(path: Path) -> Table:
    """Read a Parquet file."""
    with needs("data", "Parquet files"):
        import pyarrow
        import pyarrow.parquet
    try:
        # From the path and in this thread: pyarrow's own threads, which a Python file would need, may abort the process
        # at its end.
        table = pyarrow.parquet.read_table(path, use_threads=False, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{path.name}: expected a Parquet file, got what pyarrow cannot read ({error}); write it again"
        ) from error
    if not table.num_rows:
        raise InputError(f"{path.name}: expected at least one row, got none; add rows, or leave the file out")
    return Table(name=path.name, columns=table.to_pydict(), lines=range(1, table.num_rows + 1), unit="row")


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
    # Python's own spelling 1_000 is not a number in a data file.
    return value if math.isfinite(value) and "_" not in text else None


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_jsonl,
    ".conll": read_conll,
    ".parquet": read_parquet,
}


def _table(path: Path, header: Sequence[str], rows: list[list[str]], lines: Sequence[int]) -> Table:
    """Build a table of text cells, every row as wide as the header."""
    # Spreadsheets write columns without a name, which cannot be asked for, and empty rows at the end.
    duplicates = sorted({name for name in header if name.strip() and header.count(name) > 1})
    if duplicates:
        raise InputError(
            f"{path.name}, line 1: expected every column once, got {duplicates[0]!r} twice; rename one of the two"
        )
    while rows and not any(rows[-1]):
        rows.pop()
    if not rows:
        raise InputError(f"{path.name}: expected rows under the header, got none; add rows, or leave the file out")
    table = Table(name=path.name, columns={}, lines=lines[: len(rows)])
    # A blank line is an empty row: its cells are missing, and whoever needs them says so.
    fits = [len(row) == len(header) or not any(row) for row in rows]
    table.check(fits, list(map(len, rows)), f"{len(header)} cells ({', '.join(header)})", "check the separators")
    width = len(header)
    columns = zip(*(row if any(row) else [None] * width for row in rows), strict=True)
    by_name: dict[str, Sequence[object]] = {}
    for name, cells in zip(header, columns, strict=True):
        by_name.setdefault(name if name.strip() else "", cells)
    return replace(table, columns=by_name)


def read_text(path: Path) -> str:
    """Read UTF-8, with or without a byte order mark, without line breaks at the end; InputError as of :func:`read`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: expected a file that can be read, got {error.strerror}; check the path and its permissions"
        ) from error
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path.name}, line {line}: expected UTF-8, got byte 0x{data[error.start]:02x} at offset "
            f"{error.start}; save the file as UTF-8 ({_EXCEL})"
        ) from error
    if not text.strip():
        raise InputError(f"{path.name}: expected rows, got an empty file; add rows, or leave the file out")
    return text.rstrip("\r\n")
