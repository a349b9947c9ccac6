"""The tables of docs/evidence.md and evidence-details.md say what results/*.csv hold, to the last digit.

Means, failures and the like are computed anew; intervals and p are those of the report.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mixout.study.analysis.compare import compare
from mixout.study.analysis.stats import mean_interval
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
    return [100 * value for value in (one.difference, *(one.interval or ()))]


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


def tables(page: str) -> Iterator[list[list[str]]]:
    """The cells of each table of a page, its header first."""
    rows: list[list[str]] = []
    for line in [*(ROOT / "docs" / page).read_text(encoding="utf-8").splitlines(), ""]:
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
            runs = chosen(study, method=row[0].partition(", restarts")[0].removesuffix(NO_PULL))
            for cell, measures in zip(row[1:], columns, strict=False):
                yield cell, [n for measure in measures for n in measure(runs)] if cell else []

    return check


def of_tasks(study: str, *columns: tuple[Measure, ...], last: Measure | None = None):
    """A row is a method; each task has these columns, and all have one of ``last`` together."""

    def check(table: list[list[str]]) -> Expected:
        for row in table[1:]:
            tasks = [
                chosen(study, method=row[0].removesuffix(NO_PULL), task=task) for task in ("STS-B", "CoLA", "MRPC")
            ]
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
            runs = chosen("p", method=name.format(row[0]))
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


NO_PULL = ", no pull"  # a mark of rows of the details
TUNED = {"method": "mixout(0.7), bias correction"}, {"method": "bias correction"}
# Of each row of the short page: where its runs are, mixout's and those that it is compared with.
SHORT = [
    ("tasks", {"task": "CoLA"}, *TUNED),
    ("tasks", {"task": "MRPC"}, *TUNED),
    ("tasks", {"task": "STS-B"}, *TUNED),
    ("base-tuned", {"learning_rate": "2e-5"}, {"method": "mixout(0.7)"}, {"method": BASELINE}),
    ("best-search", {"learning_rate": "5e-5"}, {"method": "mixout(0.7)"}, {"method": BASELINE}),
    ("best", {}, {"method": "mixout(0.7)"}, {"method": BASELINE}),
    ("best", {}, {"method": "mixout(0.9)"}, {"method": BASELINE}),
    (
        "base-tuned",
        {},
        {"method": "mixout(0.7)", "learning_rate": "1e-4"},
        {"method": BASELINE, "learning_rate": "5e-5"},
    ),
    (
        "base-tuned",
        {},
        {"method": "mixout(0.7)", "learning_rate": "1e-4"},
        {"method": "dropout(0.0)", "learning_rate": "5e-5"},
    ),
    ("failures", {}, {"method": "mixout(0.9)"}, {"method": BASELINE}),
    ("base", {}, {"method": "mixout(0.7)"}, {"method": BASELINE}),
    ("tasks", {"task": "CoLA"}, {"method": "mixout(0.7)"}, {"method": BASELINE}),
    ("tasks", {"task": "STS-B"}, {"method": "mixout(0.7)"}, {"method": BASELINE}),
    ("tasks", {"task": "MRPC"}, {"method": "mixout(0.7)"}, {"method": BASELINE}),
    ("failures", {}, {"method": "mixout(0.9)"}, {"method": "gradient_mask(0.9)"}),
    ("base", {}, {"method": "mixout(0.7)"}, {"method": "gradient_mask(0.7)"}),
    ("base", {}, {"method": "mixout(0.7)"}, {"method": "dropout(0.0), rate x sqrt(0.3)"}),
    ("failures", {}, {"method": "mixout(0.9)"}, {"method": "bias correction"}),
    ("base", {}, {"method": "mixout(0.7)"}, {"method": "bias correction"}),
]


def of_pairs(table: list[list[str]]) -> Expected:
    """Scores, difference, number and failures of two cells, run by run, by another way than the report's."""
    assert len(table) == 1 + len(SHORT)
    for row, (study, both, one, other) in zip(table[1:], SHORT, strict=True):
        x, y = ({run["restart"]: run for run in chosen(study, **both, **cell)} for cell in (one, other))
        runs = [(x[restart], y[restart]) for restart in x if restart in y]
        left, right = zip(*runs, strict=True)
        assert row[1] in left[0]["task"]
        assert row[2] in left[0]["method"]
        differences = np.array([float(a["score"]) - float(b["score"]) for a, b in runs])
        fails = [*failed(list(left)), *failed(list(right))]
        # Of a mean with failed runs there is no interval that covers.
        interval = () if any(fails) else mean_interval(differences)
        assert interval is not None
        yield row[4], [*mean(list(left)), *mean(list(right))]
        yield row[5], [100 * value for value in (float(differences.mean()), *interval)]
        yield row[6], [len(runs)]
        yield row[7], fails


TABLES = {
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
    found = list(tables("evidence-details.md"))
    assert len(found) == len(TABLES), "a table of the page has no line in TABLES here"
    assert wrong_cells(list(TABLES.values())[place](found[place])) == []


def test_the_table_of_the_short_page_says_what_the_runs_say():
    [table] = tables("evidence.md")
    assert wrong_cells(of_pairs(table)) == []


def test_four_of_five_decays_pull_nowhere():
    # A step takes away learning rate x strength of w - u; the page says how much that is over a whole run.
    def removed(strength: float, peak: float, steps: int, warmup: int) -> float:
        ramps = [min((k + 1) / warmup, (steps - k) / (steps - warmup)) for k in range(steps)]
        return strength * peak * sum(ramps)

    for peak, steps in ((2e-4, 96), (5e-5, 471)):
        assert 0.00009 < removed(0.01, peak, steps, steps // 10) < 0.00013
        assert 0.0009 < removed(0.1, peak, steps, steps // 10) < 0.0013
        assert 0.35 < removed(40, peak, steps, steps // 10) < 0.5
    assert removed(0.1, 2e-5, 234, 23) < 0.00025


def wrong_cells(expected: Expected) -> list[str]:
    wrong = []
    for cell, values in expected:
        said = NUMBER.findall(cell)
        digits = [len(text.partition(".")[2]) for text in said]
        right = len(said) == len(values) and all(
            abs(float(text.replace(",", "")) - value) <= 0.5 * 10**-shown + 1e-9
            for text, shown, value in zip(said, digits, values, strict=True)
        )
        if not right:
            wrong.append(f"{cell!r}, but the runs say {values}")
    return wrong
