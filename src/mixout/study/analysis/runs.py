"""What the analysis knows of a run, whoever made it: its place in the study, its score, and what was observed.

A run has a task, a method, a restart number and perhaps further factors. Scores are such that higher is better. It
reads a CSV of scores; ledgers are read by ``mixout.study.ledger``.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mixout.errors import InputError
from mixout.methods.text import nearest

STATUSES = ("finished", "diverged", "failed")
_REQUIRED = ("task", "method", "restart", "score")
_NUMBERS = ("chance", "seconds", "distance", "original")
_OPTIONAL = ("metric", *_NUMBERS, "peak_memory", "status", "error", "paired", "id")
_COLUMNS = (*_REQUIRED, *_OPTIONAL)
# What pandas writes, or reads, as the name of an index and of columns without one.
_UNNAMED = re.compile(r"(Unnamed: \d+(_level_\d+)?)?(\.\d+)?")
_YES_NO = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a study.

    Args:
        task: name of the task.
        method: label of the compared thing, such as ``"mixout(0.9)"``.
        restart: number of the restart; runs of several methods with the same number have the same seeds.
        score: on the dev set, higher is better; nan where the run did not get as far as a score.
        metric: name of the score.
        chance: what a constant answer scores on the dev set; None where that is unknown.
        factors: further coordinates in the grid, name to value.
        status: ``"finished"``, ``"diverged"`` or ``"failed"``.
        error: why it failed.
        seconds: of training.
        peak_memory: in bytes.
        distance: to the pretrained weights.
        original: score on text of the domain that the model knew before, where the run was given some.
        distance_by_layer: the same for each layer.
        evaluations: pairs of step and score.
        predictions: for the dev set, in its order.
        paired: whether the restart number identifies the seeds. Published scores often come sorted; pairing those would
            invent agreement between methods, so they are compared as independent samples.
        id: the run's identity; empty for runs made elsewhere.

    Raises:
        InputError: a value that no run can have.
    """

    task: str
    method: str
    restart: int
    score: float
    metric: str = "score"
    chance: float | None = None
    factors: dict[str, str] = field(default_factory=dict)
    status: str = "finished"
    error: str | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    distance: float | None = None
    original: float | None = None
    distance_by_layer: dict[str, float] = field(default_factory=dict)
    evaluations: tuple[tuple[int, float], ...] = ()
    predictions: tuple[float, ...] = ()
    paired: bool = True
    id: str = ""

    def __post_init__(self) -> None:
        if not self.task or not self.method:
            raise InputError(f"expected a task and a method, got task {self.task!r} and method {self.method!r}")
        if self.restart < 0:
            raise InputError(f"expected restart >= 0, got {self.restart}")
        if math.isinf(self.score):
            raise InputError(f"expected a finite score, or nan for a run without one, got {self.score}")
        if self.chance is not None and not math.isfinite(self.chance):
            raise InputError(f"expected chance to be a finite number or None, got {self.chance}")
        if self.status not in STATUSES:
            close = nearest(self.status, STATUSES)
            raise InputError(f"expected a status among {', '.join(STATUSES)}, got {self.status!r}{close}")
        taken = sorted(set(self.factors) & set(_COLUMNS))
        if taken:
            raise InputError(f"expected factors with names of their own, got {taken[0]!r}; rename it")

    @property
    def failed(self) -> bool:
        """It did not finish, has no score, or scores no more than a constant answer."""
        # Two ways to compute the same score may differ in the last bits.
        at_chance = self.chance is not None and self.score <= self.chance + 1e-9
        return self.status != "finished" or math.isnan(self.score) or at_chance

    @property
    def counted(self) -> float:
        """The score as it enters means: nan counts as chance where that is known, and stays nan where it is not.

        A method that crashes must not look better for it. Chance is what the user gets without any training.
        """
        return self.chance if math.isnan(self.score) and self.chance is not None else self.score


def read_scores(path: str | Path, *, report: Callable[[str], None] | None = None) -> list[Run]:
    """Runs from a CSV file with the columns task, method, restart and score.

    Optional columns are the other scalar fields of :class:`Run`: metric, chance, status, error, seconds, peak_memory,
    distance, original, id, and ``paired`` (yes or no). A column without a name, such as the index that pandas writes,
    is left out. Every other column is a factor. An empty score is a run that failed; so is the status "failed", even
    with a score beside it.

    Args:
        path: file in UTF-8 with a header.
        report: called with a line on what is left out.

    Returns:
        One run a row, in the file's order.

    Raises:
        InputError: the file cannot be read, a column is missing, a value is wrong, or a factor tells single runs apart;
            the message names the line or the column.
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
    return runs


def to_csv_rows(runs: Sequence[Run]) -> list[dict[str, object]]:
    """One row a run, all with the same columns: scalar fields, then every factor that occurs; no curves.

    Unknown values are None. Written as CSV the rows are read back by :func:`read_scores`.

    Example:
        >>> rows = to_csv_rows([Run(task="RTE", method="plain", restart=0, score=0.7, factors={"epochs": "3"})])
        >>> rows[0]["score"], rows[0]["chance"], rows[0]["epochs"]
        (0.7, None, '3')
    """
    factors = sorted({name for run in runs for name in run.factors})
    return [
        {name: getattr(run, name) for name in _COLUMNS} | {name: run.factors.get(name) for name in factors}
        for run in runs
    ]


def _check_columns(path: Path, names: Sequence[str]) -> None:
    for name in _REQUIRED:
        if name not in names:
            unknown = [other for other in names if other not in _COLUMNS]
            raise InputError(
                f"expected {path} to have a column {name!r}, got {', '.join(names)}{nearest(name, unknown)}"
            )
    if len(set(names)) < len(names):
        raise InputError(f"expected each column of {path} once, got {', '.join(names)}")


def _check_factors(path: Path, runs: Sequence[Run]) -> None:
    """Refuse columns that are no factors, such as a loss, a date or a seed: with them each run is a cell of its own.

    Such a column has another value in most runs of a method, and the restarts tell the runs apart without it. Where
    several columns look like that, real factors among them are known by values that several runs share.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.factors))

    def largest(factors: Sequence[str], *, restart: bool) -> int:
        """How many runs the largest cell of these factors holds."""
        keys = [(run.task, run.method, run.restart * restart, *map(run.factors.get, factors)) for run in runs]
        return max(Counter(keys).values())

    def lone(factors: Sequence[str]) -> bool:
        """Whether most runs that have these factors are alone in their cells of them."""
        having = [run for run in runs if any(name in run.factors for name in factors)]
        keys = [(run.task, run.method, *map(run.factors.get, factors)) for run in having]
        return 2 * list(Counter(keys).values()).count(1) > len(having) > 2

    single = [name for name in names if lone([name])]
    distinct = [name for name in single if 2 * len({run.factors.get(name) for run in runs}) > len(runs)]
    for suspects in (single, distinct, *([name] for name in names if lone(names))):
        factors = [name for name in names if name not in suspects]
        shared = largest(factors, restart=False) > 1 or suspects is distinct
        if suspects and shared and largest(factors, restart=True) == 1:
            raise InputError(
                f"expected columns of {path} whose values several runs share (factors), got the column "
                f"{', '.join(map(repr, suspects))} with another value in most runs, so that nothing could be compared; "
                "remove it, or if it is a factor, number the restarts of each of its values from 0"
            )


def _run(path: Path, line: int, row: Mapping[str, str | None], unnamed: Sequence[str]) -> Run:
    if None in row or None in row.values():
        raise InputError(f"expected as many values as columns in {path}, line {line}")
    texts = {name: (text or "").strip() for name, text in row.items() if name not in unnamed}
    try:
        values: dict[str, object] = {name: _finite(name, texts[name]) for name in _NUMBERS if texts.get(name)}
        values |= {name: texts[name] for name in ("metric", "status", "error", "id") if texts.get(name)}
        if texts.get("peak_memory"):
            values["peak_memory"] = int(_finite("peak_memory", texts["peak_memory"]))
        if texts.get("paired"):
            values["paired"] = _yes_no(texts["paired"])
        # What failed before its end has no score, whatever was written down.
        scored = texts["score"] and texts.get("status") != "failed"
        score = _number("score", texts["score"]) if scored else math.nan
        factors = {name: text for name, text in texts.items() if name not in _COLUMNS and text}
        return Run(
            task=texts["task"],
            method=texts["method"],
            restart=_restart(texts["restart"]),
            score=score,
            factors=factors,
            **values,  # type: ignore[arg-type]
        )
    except InputError as error:
        raise InputError(f"{path}, line {line}: {error}") from error


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"expected {name} to be a number, got {text!r}") from None


def _finite(name: str, text: str) -> float:
    value = _number(name, text)
    if not math.isfinite(value):
        raise InputError(f"expected {name} to be a finite number, got {text!r}; leave the cell empty if it is unknown")
    return value


def _restart(text: str) -> int:
    # 3.0 is how pandas writes the 3 of a column in which a value is missing.
    value = _number("restart", text) if text else math.nan
    if not value.is_integer():
        raise InputError(f"expected restart to be a whole number, got {text!r}")
    return int(value)


def _yes_no(text: str) -> bool:
    if text.lower() not in _YES_NO:
        raise InputError(f"expected paired to be yes or no, got {text!r}")
    return _YES_NO[text.lower()]
