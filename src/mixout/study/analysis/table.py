"""A table of runs as a CSV file: one row for each run, for scores that were made elsewhere and for exports."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixout._names import nearest
from mixout.errors import InputError
from mixout.study.analysis.runs import COLUMNS, Run, grouped

_REQUIRED = ("task", "method", "restart", "score")
_TEXTS = ("task", "method", "metric", "status", "error", "id")
# What pandas writes, or reads, as the name of an index and of columns without one.
_UNNAMED = re.compile(r"(Unnamed: \d+(_level_\d+)?)?(\.\d+)?")
_YES_NO = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_TURNED = "negative "  # before the name of a metric whose scores were read with a minus sign
_LOWER_IS_BETTER = re.compile(r"perplexity|ppl|loss|error|nll|bpc|\b(wer|cer|ter|mse|rmse|mae)\b", re.IGNORECASE)


def read_scores(
    path: str | Path,
    *,
    report: Callable[[str], None] | None = None,
    direction: str | None = None,
    unit: str | None = None,
) -> list[Run]:
    """Runs from a CSV file with the columns task, method, restart and score.

    Optional columns are the other scalar fields of :class:`Run`: metric, chance, status, error, seconds, peak_memory,
    distance, original, kl_to_base, dev_size, standard_error (by the choice of dev examples), id, looks (planned for the
    study), and ``paired`` and ``collapsed`` (yes or no). A column without a name, such as the index that pandas writes,
    is left out. Every other column is a factor. An empty score is a run that failed; so is the status "failed", even
    with a score beside it.

    Args:
        path: file in UTF-8 with a header.
        report: called with a line on what is left out.
        direction: which scores are better, ``"higher"`` or ``"lower"``; lower ones are read with a minus sign. By
            default higher, unless the metric's name says that it may be otherwise: then it must be given.
        unit: ``"percent"`` or ``"fraction"``. By default a task's scores, read without a minus sign where lower ones
            are better, are fractions where none exceeds 1; where that would differ between the tasks of a table, it
            must be given.

    Returns:
        One run a row, in the file's order.

    Raises:
        InputError: the file cannot be read, a column is missing, a value is wrong, or a factor distinguishes single
            runs; the message names the line or the column.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            names = list(reader.fieldnames or ())
            unnamed = [name for name in names if _UNNAMED.fullmatch(name.strip())]
            _check_columns(path, [name for name in names if name not in unnamed])
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected {path} to be a CSV file in UTF-8, got {error}") from error
    if unnamed and report is not None:
        shown = ", ".join(repr(name) for name in unnamed)
        report(f"{path}: the column {shown} has no name of its own and is left out; name it if it is a factor")
    runs = [_run(path, line, row, unnamed) for line, row in rows]
    if not runs:
        raise InputError(f"expected at least one run in {path}, got a header only")
    _check_factors(path, runs)
    runs = _with_direction(path, runs, direction)
    turned = {run.metric for run in runs} if direction == "lower" else _turned(runs)
    return _with_unit(path, runs, unit, turned, report)


def to_csv_rows(runs: Sequence[Run]) -> list[dict[str, object]]:
    """One row a run, all with the same columns: scalar fields, then every factor that occurs; no curves.

    The column looks is there only if some run was to be looked at more than once.

    Unknown values are None. Written as CSV the rows are read back by :func:`read_scores`.
    """
    factors = sorted({name for run in runs for name in run.factors})
    names = [name for name in COLUMNS if name != "looks" or any(run.looks > 1 for run in runs)]
    return [
        {name: getattr(run, name) for name in names} | {name: run.factors.get(name) for name in factors} for run in runs
    ]


def _check_columns(path: Path, names: Sequence[str]) -> None:
    shown = ", ".join(names)
    for name in _REQUIRED:
        if name not in names:
            close = nearest(name, [column for column in names if column not in COLUMNS])
            raise InputError(f"expected {path} to have a column {name!r}, got {shown}{close}")
    if len(set(names)) < len(names):
        raise InputError(f"expected each column of {path} once, got {shown}")


def _check_factors(path: Path, runs: Sequence[Run]) -> None:
    """Refuse columns that are no factors, such as a loss, a date or a seed: with them each run is a cell of its own."""
    # Such a column has a different value in most runs of a method, and restarts distinguish the runs without it. If
    # several columns look like that, real factors among them have values that several runs share.
    names = list(dict.fromkeys(name for run in runs for name in run.factors))

    def sizes(factors: Sequence[str], some: Sequence[Run] = runs, *, by_restart: bool = False) -> list[int]:
        """How many of the runs each cell of these factors holds."""
        keys = [(run.task, run.method, run.restart * by_restart, *map(run.factors.get, factors)) for run in some]
        return list(Counter(keys).values())

    def lone(factors: Sequence[str]) -> bool:
        """Whether most runs that have these factors are alone in their cells of them."""
        with_factors = [run for run in runs if any(name in run.factors for name in factors)]
        return 2 * sizes(factors, with_factors).count(1) > len(with_factors) > 2

    single = [name for name in names if lone([name])]
    distinct = [name for name in single if 2 * len({run.factors.get(name) for run in runs}) > len(runs)]
    for suspects in (single, distinct, *([name] for name in names if lone(names))):
        factors = [name for name in names if name not in suspects]
        shared = max(sizes(factors)) > 1 or suspects is distinct
        if suspects and shared and max(sizes(factors, by_restart=True)) == 1:
            raise InputError(
                f"expected columns of {path} whose values several runs share (factors), got the column "
                f"{', '.join(map(repr, suspects))} with another value in most runs, so that nothing could be compared; "
                "remove it, or if it is a factor, number the restarts of each of its values from 0"
            )


def _with_direction(path: Path, runs: Sequence[Run], direction: str | None) -> list[Run]:
    turned = _turned(runs)
    doubtful = [run.metric for run in runs if run.metric not in turned and _LOWER_IS_BETTER.search(run.metric)]
    if direction is None and doubtful:
        raise InputError(
            f"expected to know whether higher or lower values of {doubtful[0]!r} in {path} are better; "
            "add --direction higher, or --direction lower"
        )
    return [_turn(run) if direction == "lower" and run.metric not in turned else run for run in runs]


def _turn(run: Run) -> Run:
    """The run with a score of which higher values are better."""
    chance = None if run.chance is None else -run.chance
    return replace(run, score=-run.score, chance=chance, metric=_TURNED + run.metric)


def _turned(runs: Sequence[Run]) -> set[str]:
    """The metrics whose scores were turned where the table was made; not a "negative predictive value"."""
    by_metric = grouped((run for run in runs if run.metric.startswith(_TURNED)), lambda run: run.metric)
    return {
        name
        for name, group in by_metric.items()
        if not any(run.score > 0 for run in group)
        # Scores of both signs, such as the likelihood of a density.
        or (any(run.score <= 0 for run in group) and _LOWER_IS_BETTER.search(name.removeprefix(_TURNED)))
    }


def _with_unit(
    path: Path, runs: list[Run], unit: str | None, turned: Collection[str], report: Callable[[str], None] | None
) -> list[Run]:
    if unit is not None:
        return [replace(run, points=100.0 if unit == "fraction" else 1.0) for run in runs]
    by_task = grouped((run for run in runs if math.isfinite(run.score)), lambda run: run.task)
    largest = {
        task: max(-run.score if run.metric in turned else run.score for run in group) for task, group in by_task.items()
    }
    small = [task for task, score in largest.items() if 0 <= score <= 1]
    large = [task for task, score in largest.items() if score > 1]
    if small and large:
        raise InputError(
            f"expected scores of one unit in {path}, got none above 1 on {small[0]!r} and {largest[large[0]]:g} on "
            f"{large[0]!r}; add --unit percent, or --unit fraction"
        )
    of_chance = [run for run in runs if run.chance is not None and 0 < run.chance < 1 and run.metric not in turned]
    if odd := [run for run in of_chance if run.task in large]:
        raise InputError(
            f"expected to know the unit of chance in {path}, got {odd[0].chance:g} on {odd[0].task!r}, where a score "
            f"is {largest[odd[0].task]:g}; if it is {odd[0].chance:g} %, add --unit percent, else write it in percent"
        )
    if report is not None and largest:
        how = "percent, 1 is 1 point" if large else "fractions, 1 is 100 points, since none is above 1"
        report(f"scores are read as {how}; --unit says otherwise")
    return [replace(run, points=1.0 if run.task in large else 100.0) if run.metric in turned else run for run in runs]


def _value(name: str, text: str) -> str | bool | float:
    """The text of a column as the value of a run."""
    if name in _TEXTS:
        return text
    if name in ("paired", "collapsed", "between"):
        if text.lower() not in _YES_NO:
            raise InputError(f"expected {name} to be yes or no, got {text!r}")
        return _YES_NO[text.lower()]
    try:
        value = float(text or "nan")
    except ValueError:
        raise InputError(f"expected {name} to be a number, got {text!r}") from None
    # 3.0 is how pandas writes the 3 of a column in which a value is missing.
    if name in ("restart", "looks") and not value.is_integer():
        raise InputError(f"expected {name} to be a whole number, got {text!r}")
    if name != "score" and not math.isfinite(value):
        raise InputError(f"expected {name} to be a finite number, got {text!r}; leave the cell empty if it is unknown")
    return int(value) if name in ("restart", "looks", "peak_memory", "dev_size") else value


def _run(path: Path, line: int, row: Mapping[str, str | None], unnamed: Sequence[str]) -> Run:
    if None in row or None in row.values():
        raise InputError(f"expected as many values as columns in {path}, line {line}")
    texts = {name: (text or "").strip() for name, text in row.items() if name not in unnamed}
    # A run that failed has no score, even if one was written down.
    if not texts["score"] or texts.get("status") == "failed":
        texts["score"] = "nan"
    try:
        values: dict[str, Any] = {
            name: _value(name, texts[name]) for name in COLUMNS if texts.get(name) or name in _REQUIRED
        }
        return Run(**values, factors={name: text for name, text in texts.items() if name not in COLUMNS and text})
    except InputError as error:
        raise InputError(f"{path}, line {line}: {error}") from error
