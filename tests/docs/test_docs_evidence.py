"""The tables of docs/evidence.md and evidence-details.md say what results/*.csv hold, to the last digit.

Means, failures and the like are computed anew; intervals and p-values are those of the report, but for differences that
the report does not show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas
import pytest

from mixout.study.analysis.compare import compare
from mixout.study.analysis.stats import mean_interval
from mixout.study.analysis.table import read_scores

ROOT = Path(__file__).parents[2]
BASELINE = "dropout(0.1), wdecay(0, 0.01)"
TASKS = ("STS-B", "CoLA", "MRPC")
NUMBER = re.compile(r"[-+]?(?:\d[\d,]*)?\.?\d+(?:e-?\d+)?")
Runs = pandas.DataFrame
Expected = Iterator[tuple[str, list[float]]]  # a cell, and the numbers that it should show


@cache
def read(study: str) -> Runs:
    return pandas.read_csv(ROOT / "results" / f"{study}.csv").assign(study=study)


@cache
def comparisons(study: str):
    return compare(read_scores(ROOT / "results" / f"{study}.csv"), BASELINE)


@cache
def costs() -> pandas.Series:
    return pandas.read_csv(ROOT / "benchmarks" / "results" / "cost.csv").set_index(["task", "method"]).ratio


def chosen(study: str, **values: str | float) -> Runs:
    runs = read(study)
    for name, value in values.items():
        runs = runs[runs[name] == value]
    return runs


def compared(runs: Runs):
    """The comparison of these runs' cell with dropout(0.1), as the report has it."""
    study, task, method = runs.iloc[0][["study", "task", "method"]]
    return next(one for one in comparisons(study) if (one.task, one.method) == (task, method))


def percent(*values: float | None) -> list[float]:
    return [100 * value for value in values if value is not None]


def failed(runs: Runs) -> int:
    return int((runs.score <= runs.chance).sum())


def best_rate(runs: Runs) -> float:
    """The one at which the search's mean is highest."""
    return chosen("best-search", method=runs.method.iloc[0]).groupby("learning_rate").score.mean().idxmax()


MEASURES: dict[str, Callable[[Runs], list[float]]] = {
    "mean": lambda runs: percent(runs.score.mean()),
    "sd": lambda runs: percent(runs.score.std()),
    "top": lambda runs: percent(runs.score.max()),
    "each": lambda runs: percent(*runs.score),
    "failed": lambda runs: [failed(runs)],
    "some_failed": lambda runs: [failed(runs)] if failed(runs) else [],
    "number": lambda runs: [len(runs)],
    "kept": lambda runs: [runs.original.mean()],
    "distance": lambda runs: [runs.distance.mean()],
    "seconds": lambda runs: [runs.seconds.median()],
    "difference": lambda runs: percent(compared(runs).difference, *(compared(runs).interval or ())),
    "holm": lambda runs: [compared(runs).p_holm],
    "failure_rate": lambda runs: percent(
        *(getattr(compared(runs), f"failure_{what}") for what in ("difference", "low", "high"))
    ),
    "rate": lambda runs: [best_rate(runs)],
    "cost": lambda runs: [costs()[runs.task.iloc[0], runs.method.iloc[0]]],
}


def measured(runs: Runs, measures: str) -> list[float]:
    return [number for name in measures.split() for number in MEASURES[name](runs)] if len(runs) else []


def apart(one: Runs, other: Runs) -> list[float]:
    """The difference of two cells, run by run, in another way than the report's."""
    differences = (one.set_index("restart").score - other.set_index("restart").score).dropna()
    # Of a mean with failed runs there is no interval that covers.
    interval = () if failed(one) or failed(other) else mean_interval(differences.to_numpy())
    assert interval is not None
    return percent(differences.mean(), *interval)


def tables(page: str) -> Iterator[list[list[str]]]:
    """The cells of each table of a page, its header first."""
    rows: list[list[str]] = []
    for line in [*(ROOT / "docs" / page).read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            yield [rows[0], *rows[2:]]
            rows = []


def over(study: str, factor: str, measures: str, **others: str):
    """A row is a method, after its task where the study has several; a column is a value of a factor."""

    def check(table: list[list[str]]) -> Expected:
        for row in table[1:]:
            task = row[0].split(", ")[0]
            names = {"task": task, "method": row[0].removeprefix(f"{task}, ")} if task in TASKS else {"method": row[0]}
            for head, cell in zip(table[0][1:], row[1:], strict=True):
                value = float(head.replace(",", "").removesuffix(" epochs"))
                yield cell, measured(chosen(study, **names, **others, **{factor: value}), measures) if cell else []

    return check


def of_one_task(study: str, *columns: str):
    """A row is a method, a column some measures of its runs; what stands to the right is the paper's."""

    def check(table: list[list[str]]) -> Expected:
        for row in table[1:]:
            for cell, measures in zip(row[1:], columns, strict=False):
                yield cell, measured(chosen(study, method=row[0]), measures) if cell else []

    return check


def of_tasks(table: list[list[str]]) -> Expected:
    """A row is a method; each task has its mean and its difference from the first row."""
    for row in table[1:]:
        for task, *cells in zip(TASKS, row[1::2], row[2::2], strict=True):
            for cell, measures in zip(cells, ("mean sd", "difference"), strict=True):
                yield cell, measured(chosen("tasks", method=row[0], task=task), measures) if cell else []


def of_five_tasks(table: list[list[str]]) -> Expected:
    """A row is a method; the last column is the paper's."""
    for row in table[1:]:
        method = row[0].removesuffix(", no pull")
        sst2, rte = (chosen(study, method=method) for study in ("methods", "base-table"))
        three = [chosen("tables", method=method, task=task) for task in TASKS]
        ends = [[measured(runs, what) for what in ("mean top failed number", "kept distance")] for runs in (sst2, rte)]
        expected = [*ends[0], *(measured(runs, "mean kept") for runs in three), *ends[1]]
        yield from zip(
            row[1:], [*expected, [n for runs in (sst2, *three) for n in measured(runs, "cost")]], strict=False
        )


def minus(study: str, tasks: Sequence[str]):
    """A row is one method minus another, a column one of the tasks."""

    def check(table: list[list[str]]) -> Expected:
        for row in table[1:]:
            names = [BASELINE if name == "dropout(0.1)" else name for name in row[0].split(" minus ")]
            for task, cell in zip(tasks, row[1:], strict=True):
                yield cell, apart(*(chosen(study, task=task, method=name) for name in names))

    return check


def over_p(table: list[list[str]]) -> Expected:
    names = ("mixout({})", "gradient_mask({})", "rate x sqrt(1-p), p={}", "dropout({})")
    for row in table[1:]:
        for cell, name in zip(row[1:], names, strict=False):
            yield cell, measured(chosen("p", method=name.format(row[0])), "mean failed number")


def of_sizes(study: str, task: str):
    """A row is a method, a column a number of examples, by which the task is called."""

    def check(table: list[list[str]]) -> Expected:
        for row in table[1:]:
            for size, cell in zip(table[0][1:], row[1:], strict=True):
                runs = chosen(study, method=row[0])
                names = (f"{task}, {size} examples", f"{task}, all {size} examples")
                yield cell, measured(runs[runs.task.isin(names)], "mean sd kept")

    return check


def at_high_rates(table: list[list[str]]) -> Expected:
    yield from over("high", "learning_rate", "mean sd failed kept")([row[:3] for row in table])
    for row in table[1:]:
        yield row[3], measured(chosen("failures", method=row[0]), "mean sd failed number kept")


# Of each row of the table of pairs: the runs of mixout, and of what it is compared with; "at" a learning rate.
SHORT = [
    *[("tasks", "mixout(0.7), bias correction", "bias correction")] * 3,
    ("base-tuned", "mixout(0.7) at 2e-5", f"{BASELINE} at 2e-5"),
    ("best-search", "mixout(0.7) at 5e-5", f"{BASELINE} at 5e-5"),
    ("best", "mixout(0.7)", BASELINE),
    ("best", "mixout(0.9)", BASELINE),
    ("base-tuned", "mixout(0.7) at 1e-4", f"{BASELINE} at 5e-5"),
    ("base-tuned", "mixout(0.7) at 1e-4", "dropout(0.0) at 5e-5"),
    ("failures", "mixout(0.9)", BASELINE),
    ("base", "mixout(0.7)", BASELINE),
    *[("tasks", "mixout(0.7)", BASELINE)] * 3,
    ("failures", "mixout(0.9)", "gradient_mask(0.9)"),
    ("base", "mixout(0.7)", "gradient_mask(0.7)"),
    ("base", "mixout(0.7)", "dropout(0.0), rate x sqrt(0.3)"),
    ("failures", "mixout(0.9)", "bias correction"),
    ("base", "mixout(0.7)", "bias correction"),
]


def of_pairs(table: list[list[str]]) -> Expected:
    """Scores, difference, number and failures of two cells."""
    for row, (study, *names) in zip(table[1:], SHORT, strict=True):
        assert f"mixout({row[2]})" in names[0]
        cells = []
        for name in names:
            method, _, rate = name.partition(" at ")
            runs = chosen(study, method=method, **({"learning_rate": float(rate)} if rate else {}))
            cells.append(runs[runs.task.str.contains(row[1])])
        one, other = cells
        paired = set(one.restart) & set(other.restart)
        one, other = (runs[runs.restart.isin(paired)] for runs in cells)
        yield row[4], percent(one.score.mean(), other.score.mean())
        yield row[5], apart(one, other)
        yield row[6], [len(one)]
        yield row[7], [failed(one), failed(other)]


def of_strengths(table: list[list[str]]) -> Expected:
    """A row is a strength, a column an optimizer at a rate."""
    for row in table[1:]:
        yield row[1], [] if row[0] == "none" else [1 / float(row[0][6:-1])]
        for head, cell in zip(table[0][2:], row[2:], strict=True):
            yield cell, measured(chosen("strength", method=f"{row[0]}, {head}"), "mean kept")


def of_strengths_on_text(table: list[list[str]]) -> Expected:
    """A row is a strength, a column a rate, in percent of the way from chance to the best mean; the last is a loss."""
    runs = chosen("strength-causal")
    chance = runs.chance[0]
    best = runs.groupby(["method", "learning_rate"]).score.mean().max()
    runs = runs.assign(points=100 * (runs.score - chance) / (best - chance))
    for row in table[1:]:
        yield row[1], [] if row[0] == "none" else [1 / float(row[0][6:-1])]
        of_method = runs[runs.method == row[0]].pivot(index="restart", columns="learning_rate", values="points")
        yield from zip(row[2:6], ([mean] for mean in of_method.mean()), strict=True)
        losses = []
        for k in of_method.index:
            rate = of_method.drop(k).mean().idxmax()
            losses += [of_method.loc[k, rate] - of_method.loc[k, 4 * rate]] if 4 * rate in of_method else []
        complete = len(losses) == len(of_method)
        interval = mean_interval(np.array(losses)) if complete and row[0] != "none" else ()
        yield row[6], [sum(losses) / len(losses), *interval] if complete else []


def of_regimes(study: str, *tasks: str):
    """A row is a method at its rate: means of the judged restarts by task, each of the first, mixout minus the row."""

    def check(table: list[list[str]]) -> Expected:
        table = [[row[0].split(", radius")[0], *row[1:]] for row in table]
        rates = {row[0]: float(row[1]) for row in table[1:]}
        found = {}
        for name, rate in rates.items():
            runs = chosen(study, method=name, learning_rate=rate)
            found[name] = [runs[(runs.task == task) & (runs.restart >= 2)].sort_values("restart") for task in tasks]
        for name, *cells in table[1:]:
            judged = found[name]
            yield from zip(cells[1:], (percent(runs.score.mean()) for runs in judged), strict=False)
            yield cells[-2], percent(*judged[0].score)
            yield cells[-1], [] if name == "mixout(0.7)" else apart(found["mixout(0.7)"][0], judged[0])

    return check


def of_rates(table: list[list[str]]) -> Expected:
    """A row is a method at eight rates."""
    for row in table[1:]:
        runs = chosen("room", method=row[0].split(", radius")[0])
        means = 100 * runs.groupby("learning_rate").score.mean()
        yield row[1], [means.idxmax()]
        yield from zip(row[2:6], [[means.max()], *([means[rate]] for rate in (8e-4, 1.6e-3, 3.2e-3))], strict=True)
        yield row[6], percent(runs.score.mean())
        yield row[7], [failed(runs)]


def at_their_best(table: list[list[str]]) -> Expected:
    """A row is a method. A task has two columns: the score at the method's best rate, and at four times that.

    The rate is the best of the other runs, so that no run chooses the rate at which it counts.
    """
    names = {"plain": "dropout(0.0)", "mixout(0.7)": "mixout(0.7)", "radius 0.00625": "wdecay(w_pre, 160)"}
    labels = {"mixout(0.7)": "mixout(0.7)", "radius 0.00625": "decay, radius 0.005"}
    tasks = table[0][1:7:2]
    for row in table[1:]:
        kept = []
        for task, *cells in zip(tasks, row[1::2], row[2::2], strict=False):
            runs = chosen("room" if task == "SST-2" else "room-tasks", method=names[row[0]], task=task)
            scores = runs.pivot_table(index="restart", columns="learning_rate", values="score").dropna()
            similar = runs.pivot_table(index="restart", columns="learning_rate", values="original")
            best = {k: scores.drop(k).mean().idxmax() for k in scores.index}
            rates = scores.columns
            far = {k: rates[rates >= min(4 * rate, rates.max()) * 0.999][0] for k, rate in best.items()}
            for cell, at in zip(cells, (best, far), strict=True):
                yield cell, percent(sum(scores.loc[k, rate] for k, rate in at.items()) / len(at))
            kept += [similar.loc[k, rate] for k, rate in best.items()]
        yield row[7], [sum(kept) / len(kept)]
        yield row[8], [1] if row[0] == "plain" else [costs()["docstrings", labels[row[0]]]]


TABLES = {
    "1, rates": over("rates", "learning_rate", "mean failed kept", optimizer="bertadam"),
    "2, five tasks": of_five_tasks,
    "3, failures": of_one_task("failures", "mean sd", "failed number", "difference", "holm", "failure_rate", "kept"),
    "3, over p": over_p,
    "3, high rates": at_high_rates,
    "3, longer": over("longer", "epochs", "each failed kept"),
    "3, sizes": over("sizes", "train_size", "mean some_failed kept"),
    "3, few": of_sizes("few", "SST-2"),
    "3, few, differences": minus("few", [f"SST-2, {size} examples" for size in (50, 100, 200, 500)]),
    "3, search": over("best-search", "learning_rate", "mean kept"),
    "3, best": of_one_task("best", "rate", "mean sd", "difference", "holm", "kept", "distance"),
    "3, eight rates": of_rates,
    "3, strength": of_strengths,
    "3, strength, language model": of_strengths_on_text,
    "3, wrong labels": of_regimes("noise", "SST-2, 30 % of the labels wrong"),
    "3, another domain": of_regimes("shift", "STS-B captions, then news and forums", "STS-B captions"),
    "4, tasks": of_tasks,
    "4, tasks, differences": minus("tasks", TASKS),
    "4, tuned": over("tuned", "learning_rate", "mean kept"),
    "4, full": of_sizes("full", "CoLA"),
    "5, rates": over("base-rates", "learning_rate", "each"),
    "5, base": of_one_task("base", "mean sd", "failed number", "difference", "holm", "kept", "distance", "seconds"),
    "5, tuned": over("base-tuned", "learning_rate", "mean failed kept"),
    "6, forgetting": over("forgetting", "learning_rate", "mean kept"),
    "8, pairs": of_pairs,
}


@pytest.mark.parametrize("place", range(len(TABLES)), ids=list(TABLES))
def test_a_table_says_what_the_runs_say(place):
    found = list(tables("evidence-details.md"))
    assert len(found) == len(TABLES), "a table of the page has no line in TABLES here"
    assert wrong_cells(list(TABLES.values())[place](found[place])) == []


def test_the_table_of_the_short_page_says_what_the_runs_say():
    [table] = tables("evidence.md")
    assert wrong_cells(at_their_best(table)) == []


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
