"""The table of a benchmark: a CSV file, written anew after each row, so that an interrupted run keeps the others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from mixout.errors import InputError
from mixout.finetune.environment import hardware, versions

Row = dict[str, Any]


@cache
def environment() -> dict[str, str]:
    """On what and when: date, machine, versions."""
    libraries = versions()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        **{name: "" if value is None else str(value) for name, value in hardware().items()},
        **{name: libraries[name] for name in ("python", "torch", "transformers", "mixout") if name in libraries},
    }


class Table:
    """Rows of equal columns, in memory and in a file.

    Args:
        path: of the CSV file; its folder is made.
        keep: begin with the rows that the file holds, if there is one; otherwise they are overwritten.

    Raises:
        InputError: if the file can't be written: said before anything is measured.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Table(Path(folder) / "new" / "times.csv")
        ...     table.add({"case": "minilm", "ratio": 0.871})
        ...     list(Table(table.path, keep=True).rows[0])[:3], table.text(["case", "ratio"]).split()
        (['case', 'ratio', 'load'], ['case', 'ratio', 'minilm', '0.871'])
    """

    def __init__(self, path: Path, *, keep: bool = False) -> None:
        self.path, self.rows = path, list[Row]()
        if keep and path.exists():
            self.reread()
        self._save()

    def add(self, row: Row) -> None:
        """Append ``row`` with the machine, its load (processes that want a core) and the versions; write the file."""
        self.rows.append(row | {"load": f"{os.getloadavg()[0]:.1f}"} | environment())
        self._save()

    def reread(self) -> None:
        """Take the rows that the file holds, which another process may have added."""
        self.rows = [{str(name): value for name, value in row.items()} for row in read(self.path).to_dict("records")]

    def text(self, columns: Sequence[str]) -> str:
        """Some columns as aligned text; numbers with three digits."""
        frame = pd.DataFrame(self.rows, columns=list(columns))
        return str(frame.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.3g}"))

    def _save(self) -> None:
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(self.rows).to_csv(temporary, index=False, lineterminator="\n")
            temporary.replace(self.path)
        except OSError as error:
            raise InputError(
                f"can't write {self.path}: {error.strerror or error}; name another place with --output"
            ) from error


def read(path: Path) -> pd.DataFrame:
    """A table of text, as :class:`Table` wrote it."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
