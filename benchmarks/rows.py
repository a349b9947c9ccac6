"""Rows of the benchmark scripts as CSV, written anew after each row: an interrupted run keeps what it measured."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from mixout.bench.table import environment

Row = dict[str, Any]


def with_machine(row: Row) -> Row:
    """``row`` and on what it was measured: the machine, its load (processes that wanted a core), versions, date."""
    return row | {"load": f"{os.getloadavg()[0]:.1f}"} | environment()


def write(path: Path, rows: list[Row]) -> None:
    """All rows, with the columns of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    temporary.replace(path)


def read(path: Path) -> list[Row]:
    """What :func:`write` wrote, as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def show(rows: list[Row], columns: tuple[str, ...]) -> str:
    """Some columns of the rows as aligned text."""
    cells = [columns, *(tuple(str(row[name]) for name in columns) for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)
