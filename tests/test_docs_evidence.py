"""The tables of docs/evidence.md say what results/*.csv hold, to the last digit that they show.

Means, failures and the like are computed anew; intervals and p are those of the report.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from mixout.study.analysis.compare import compare
from mixout.study.analysis.table import read_scores

ROOT = Path(__file__).parents[1]
BASELINE = "dropout(0.1), wdecay(0, 0.01)"
NUMBER = re.compile(r"[-+]?(?:\d[\d,]*)?\.?\d+(?:e-?\d+)?")
Runs = list[dict[str, str]]
Measure = Callable[[Runs], list[float]]
Expected = Iterator[tuple[str, list[float]]]  # a cell, and the numbers that it should hold


def column(name: str, runs: Runs) -> list[float]:
    return [float(run[name]) for run in runs]


def mean(runs: Runs) -> list[float]:
    return [100 * statistics.mean(column("score", runs))]


def sd(runs: Runs) -> list[float]:
    return [100 * statistics.stdev(column("score", runs))]


def top(runs: Runs) -> list[float]:
    return [100 * max(column("score", runs))]


def each(runs: Runs) -> list[float]:
    return [100 * score for score in column("score", runs)]


def failed(runs: Runs) -> list[float]:
    return [sum(float(run["score"]) <= float(run["chance"]) for run in runs)]


def some_failed(runs: Runs) -> list[float]:
    return [count for count in failed(runs) if count]


def number(runs: Runs) -> list[float]:
    return [len(runs)]


def kept(runs: Runs) -> list[float]:
    return [statistics.mean(column("original", runs))]


def way(runs: Runs) -> list[float]:
    return [statistics.mean(column("distance", runs))]


def seconds(runs: Runs) -> list[float]:
    return [statistics.median(column("seconds", runs))]


def difference(runs: Runs) -> list[float]:
    one = compared(runs)
    return [100 * value for value in (one.difference, one.low, one.high) if value is not None]


def holm(runs: Runs) -> list[float]:
    return [compared(runs).p_holm]


def failure_rate(runs: Runs) -> list[float]:
    one = compared(runs)
    return [100 * value for value in (one.failure_difference, one.failure_low, one.failure_high) if value is not None]


def rate(runs: Runs) -> list[float]:
    """The one at which the search's mean is highest."""
    found: dict[float, list[float]] = {}
    for run in chosen("best-search", method=runs[0]["method"]):
        found.setdefault(float(run["learning_rate"]), []).append(float(run["score"]))
    return [max(found, key=lambda one: statistics.mean(found[one]))]


def cost(runs: Runs) -> list[float]:
    return [costs()[runs[0]["task"], runs[0]["method"]]]


@cache
def read(study: str) -> Runs:
    with (ROOT / "results" / f"{study}.csv").open(newline="") as file:
        return [row | {"study": study} for row in csv.DictReader(file)]


@cache
def comparisons(study: str):
    return compare(read_scores(ROOT / "results" / f"{study}.csv"), BASELINE)


def compared(runs: Runs):
    """The comparison of these runs' cell with dropout(0.1), as the report has it."""
    study, task, method = (runs[0][name] for name in ("study", "task", "method"))
    return next(one for one in comparisons(study) if (one.task, one.method) == (task, method))


@cache
def costs() -> dict[tuple[str, str], float]:
    with (ROOT / "benchmarks" / "results" / "cost.csv").open(newline="") as file:
        return {(row["task"], row["method"]): float(row["ratio"]) for row in csv.DictReader(file)}


def tables() -> Iterator[list[list[str]]]:
    """The cells of each table of the page, its header first."""
    rows: list[list[str]] = []
    for line in [*(ROOT / "docs" / "evidence.md").read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            yield [rows[0], *rows[2:]]
            rows = []


def chosen(study: str, **values: str) -> Runs:
    return [run for run in read(study) if all(same(run[name], value) for name, value in values.items())]


def same(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


def of_method(row: str) -> dict[str, str]:
    return {"method": row}


def with_optimizer(row: str) -> dict[str, str]:
    optimizer, method = row.split(", ", 1)
    return {"optimizer": optimizer.lower(), "method": method}


def with_task(row: str) -> dict[str, str]:
    task, method = row.split(", ", 1)
    return {"task": task, "method": method}


def over(study: str, factor: str, *measures: Measure, rows: Callable[[str], dict[str, str]] = of_method):
    """A row is a method, a column a value of a factor."""

    def check(table: list[list[str]]) -> Expected:
        for row in table[1:]:
            for head, cell in zip(table[0][1:], row[1:], strict=True):
                value = head.replace(",", "").removesuffix(" epochs")
                runs = chosen(study, **rows(row[0]), **{factor: value})
                yield cell, [n for measure in measures for n in measure(runs)] if runs and cell else []

    return check


def of_one_task(study: str, *columns: tuple[Measure, ...]):
    """A row is a method, a column some measures of its runs; what stands to the right is the paper's."""

    def check(table: list[list[str]]) -> Expected:
        for row in table[1:]:
            runs = chosen(study, method=row[0].partition(", restarts")[0])
            for cell, measures in zip(row[1:], columns, strict=False):
                yield cell, [n for measure in measures for n in measure(runs)] if cell else []

    return check


def of_tasks(study: str, *columns: tuple[Measure, ...], last: Measure | None = None):
    """A row is a method; each task has these columns, and all have one of ``last`` together."""

    def check(table: list[list[str]]) -> Expected:
        for row in table[1:]:
            tasks = [chosen(study, method=row[0], task=task) for task in ("STS-B", "CoLA", "MRPC")]
            cells = iter(row[1:])
            for runs in tasks:
                for measures in columns:
                    cell = next(cells)
                    yield cell, [n for measure in measures for n in measure(runs)] if cell else []
            if last:
                yield next(cells), [n for runs in tasks for n in last(runs)]

    return check


def over_p(table: list[list[str]]) -> Expected:
    names = ("mixout({})", "gradient_mask({})", "rate x sqrt(1-p), p={}", "dropout({})")
    for row in table[1:]:
        for cell, name in zip(row[1:], names, strict=False):
            runs = chosen("p", method=name.format(f"0{row[0]}"))
            yield cell, [n for measure in (mean, failed, number) for n in measure(runs)] if runs else []


def of_sizes(study: str, task: str):
    """A row is a method, a column a number of examples, by which the task is called."""

    def check(table: list[list[str]]) -> Expected:
        for row in table[1:]:
            for size, cell in zip(table[0][1:], row[1:], strict=True):
                names = (f"{task}, {size} examples", f"{task}, all {size} examples")
                runs = [run for name in names for run in chosen(study, method=row[0], task=name)]
                yield cell, [n for measure in (mean, sd, kept) for n in measure(runs)]

    return check


def at_high_rates(table: list[list[str]]) -> Expected:
    measures = (mean, sd, failed, kept)
    yield from over("high", "learning_rate", *measures)([row[:3] for row in table])
    for row in table[1:]:
        yield (
            row[3],
            [n for measure in (mean, sd, failed, number, kept) for n in measure(chosen("failures", method=row[0]))],
        )


def not_numbers(_table: list[list[str]]) -> Expected:
    yield from ()


TABLES = {
    "the questions": not_numbers,
    "1, rates": over("rates", "learning_rate", mean, failed, kept, rows=with_optimizer),
    "2, methods": of_one_task("methods", (mean, top), (failed, number), (kept,), (way,), (cost,)),
    "3, failures": of_one_task(
        "failures", (mean, sd), (failed, number), (difference,), (holm,), (failure_rate,), (kept,)
    ),
    "3, over p": over_p,
    "3, high rates": at_high_rates,
    "3, longer": over("longer", "epochs", each, failed, kept),
    "3, sizes": over("sizes", "train_size", mean, some_failed, kept),
    "3, few": of_sizes("few", "SST-2"),
    "3, search": over("best-search", "learning_rate", mean, kept),
    "3, best": of_one_task("best", (rate,), (mean, sd), (difference,), (holm,), (kept,), (way,)),
    "4, tasks": of_tasks("tasks", (mean, sd), (difference,)),
    "4, tuned": over("tuned", "learning_rate", mean, kept, rows=with_task),
    "4, full": of_sizes("full", "CoLA"),
    "5, tables": of_tasks("tables", (mean, kept), last=cost),
    "6, rates": over("base-rates", "learning_rate", each),
    "6, base": of_one_task("base", (mean, sd), (failed, number), (difference,), (holm,), (kept,), (way,), (seconds,)),
    "6, table": of_one_task("base-table", (mean, top), (failed, number), (kept,), (way,), (seconds,)),
    "6, tuned": over("base-tuned", "learning_rate", mean, failed, kept),
    "7, forgetting": over("forgetting", "learning_rate", mean, kept),
}


@pytest.mark.parametrize("place", range(len(TABLES)), ids=list(TABLES))
def test_a_table_says_what_the_runs_say(place):
    found = list(tables())
    assert len(found) == len(TABLES), "a table of the page has no line in TABLES here"
    wrong = []
    for cell, expected in list(TABLES.values())[place](found[place]):
        said = NUMBER.findall(cell)
        digits = [len(text.partition(".")[2]) for text in said]
        right = len(said) == len(expected) and all(
            abs(float(text.replace(",", "")) - value) <= 0.5 * 10**-shown + 1e-9
            for text, shown, value in zip(said, digits, expected, strict=True)
        )
        if not right:
            wrong.append(f"{cell!r}, but the runs say {expected}")
    assert not wrong, "\n".join(wrong)
