"""A study's report as a folder: the page, its figures and tables as files, and every number in full precision.

The same runs give the same bytes. The report shows what the analysis found, and computes no statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas

from mixout.errors import InputError
from mixout.finetune.record import write_atomically
from mixout.study.analysis.compare import MARGIN
from mixout.study.analysis.runs import Placed, Run
from mixout.study.analysis.summary import analyse
from mixout.study.analysis.table import to_csv_rows
from mixout.study.report.canvas import style, write_files
from mixout.study.report.page import FILES, compose
from mixout.study.report.page import Data as Data

_MARK = '<meta name="generator" content="mixout">'


@style()
def write_report(
    runs: Sequence[Run],
    folder: str | Path,
    *,
    title: str,
    baseline: str | None = None,
    margin: float = MARGIN,
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
    environment: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
    data: Mapping[str, Data] | None = None,
) -> Path:
    """Analyse runs, failed ones too, and write the report into a folder; files of an earlier one are replaced.

    ``baseline`` and ``margin`` are those of :func:`mixout.study.analysis.summary.analyse`. The others are
    shown: lines on what was left out, commands that repeat the runs, versions and hardware, settings that all runs
    share, and what each task was trained and tested on.

    Returns:
        The page.

    Raises:
        InputError: no run, runs that contradict each other, an unknown baseline, or a folder with other files.
        OSError: the folder cannot be written to.
    """
    folder = Path(folder)
    check_folder(folder)
    looks = max((run.looks for run in runs), default=1)
    summary = analyse(runs, baseline=baseline, looks=looks, margin=margin)
    summary = replace(summary, notes=(*notes, *summary.notes))
    details = {"Settings": settings or {}, "Environment": environment or {}}
    page, charts = compose(title, summary, runs, data or {}, commands, details)
    text = summary.to_json()
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    if not (folder / "index.html").exists():  # marks the folder as a report's, if writing is interrupted
        write_atomically(folder / "index.html", f"<!doctype html>{_MARK}<p>This report was not finished.")
    for chart in charts:
        write_files(chart, folder / "figures")
    for name, rows in (
        ("runs", to_csv_rows(runs)),
        ("cells", [*map(_flat, summary.cells)]),
        ("comparisons", [*map(_flat, summary.comparisons)]),
    ):
        # With dtype object, whole numbers stay whole in a column with unknown values.
        table = pandas.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")
        write_atomically(folder / f"{name}.csv", str(table))
    write_atomically(folder / "summary.json", text)
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def check_folder(folder: Path) -> None:
    """Raise InputError for a folder in which files would be replaced that are not those of a report."""
    page = folder / "index.html"
    existing = [name for name in ("index.html", *FILES) if (folder / name).exists()]
    if existing and not (page.is_file() and _MARK in page.read_text(encoding="utf-8", errors="replace")):
        raise InputError(
            f"expected a new folder for the report, or that of an earlier one, got {str(folder)!r}, which holds "
            f"{existing[0]!r}; choose another --output-dir"
        )


def _flat(item: Placed) -> dict[str, object]:
    """Scalars and factors, one column each. Curves and lists, which a table cannot hold, are in the JSON file."""
    return {name: value for name, value in vars(item).items() if not isinstance(value, (tuple, dict))} | item.factors
