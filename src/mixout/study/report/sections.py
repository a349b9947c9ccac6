"""The sections of the page, in their order: from the answer to how it was made. Those without data stay empty."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from mixout.study.analysis.cells import Cell, Comparison
from mixout.study.analysis.compare import compare
from mixout.study.analysis.runs import Run, by_cell
from mixout.study.analysis.summary import Summary
from mixout.study.analysis.words import count
from mixout.study.report import charts, compared, data, sweeps, tables
from mixout.study.report.data import Data
from mixout.study.report.page import Block, Code, Fold, Lines, Pairs, Section, Switch
from mixout.study.report.tables import Table
from mixout.study.report.theme import looks
from mixout.study.report.wording import Labels

# Other baselines are compared beforehand, where that is cheap.
_RUNS, _METHODS = 2000, 8


def facts(cells: Sequence[Cell]) -> str:
    """How large the study is, in a line."""
    runs, failed = sum(cell.runs for cell in cells), sum(cell.failed for cell in cells)
    sizes = sorted({cell.runs for cell in cells})
    restarts = count(sizes[0], "restart") if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} restarts"
    values: dict[str, set[str]] = {}
    for cell in cells:
        for name, value in cell.factors.items():
            values.setdefault(name, set()).add(value)
    parts = [
        count(runs, "run"),
        count(len({cell.task for cell in cells}), "task"),
        count(len({cell.method for cell in cells}), "method"),
        *(f"{len(seen)} values of {name}" for name, seen in sorted(values.items()) if len(seen) > 1),
        f"{restarts} each",
        f"{failed:,} failed",
    ]
    return " \u00b7 ".join(parts)


def results(summary: Summary, runs: Sequence[Run], given: Mapping[str, Data]) -> list[Section]:
    """What came out: the answer with its figure, what was asked, scores, comparisons, curves, examples, details."""
    look = looks([cell.method for cell in summary.cells], summary.baseline)
    labels, of_cell, of_task = Labels(summary.cells, look), by_cell(runs), data.known(runs, given)
    names = list(of_task)
    strips = charts.scores(summary.cells, of_cell, labels)
    over = sweeps.over_factors(summary.sweeps, of_cell, look)
    drawn = [*over[:1], strips, *over[1:]]
    more = (sweeps.over_p(summary.doses, of_cell, look), sweeps.tradeoff(summary.cells, summary.sweeps, of_cell, look))
    scores = [
        tables.scores(at, [cell for cell in summary.cells if cell.task == task], summary.leaders, labels)
        for at, task in enumerate(names)
    ]
    flips = []
    for task in names:
        best = max(
            (one.best for one in summary.leaders if one.best.task == task), key=lambda c: c.mean or 0, default=None
        )
        here = [i for i in summary.instabilities if i.task == task and (best is None or i.factors == best.factors)]
        found = data.flips(here, of_cell, of_task[task], labels)
        flips += [found] if found.items else []
    return [
        Section("answer", "Answer", (Lines(summary.verdict), drawn[0])),
        Section("asked", "What was asked", tuple(_asked(summary, of_task))),
        Section("tables", "Scores", _some(tables.overview(summary.cells, summary.leaders, labels), *scores)),
        *(Section(chart.name, chart.title, (chart,)) for chart in (*drawn[1:], *more) if chart is not None),
        Section("differences", "Differences", tuple(_differences(summary, runs, labels))),
        Section("training", "Training", _some(
            charts.over_steps(summary.cells, of_cell, labels, losses=True),
            charts.over_steps(summary.cells, of_cell, labels, losses=False),
        )),
        Section("examples", "Examples that flip", _some(*flips, tables.instability(summary.instabilities, labels))),
        Section("details", "Details", _folds({
            "Best of k restarts": [charts.best_of(summary.cells, labels)],
            "Enough restarts?": [compared.restarts(summary.powers, labels)],
            "Cost": [tables.costs(summary.cells, labels)],
        })),
    ]  # fmt: skip


def origins(
    summary: Summary,
    runs: Sequence[Run],
    *,
    commands: Sequence[str],
    environment: Mapping[str, object],
    settings: Mapping[str, object],
) -> list[Section]:
    """How the numbers came about: what was left out, what failed, settings, machine, and how to do it again."""
    failed = [run for run in runs if run.status != "finished" or run.error]
    code = (Code("\n".join(commands)),) if commands else ()
    return [
        Section("notes", "What was left out", (Lines(summary.notes),) if summary.notes else ()),
        Section("failures", "Unfinished runs", _folds({
            f"{run}: {run.status}": [Code(run.error or "No error was recorded.")] for run in failed
        })),
        Section("reproduce", "Reproduce", code + _folds({
            "Settings": [Pairs(_pairs(settings))] if settings else [],
            "Environment": [Pairs(_pairs(environment))] if environment else [],
        })),
    ]  # fmt: skip


def _asked(summary: Summary, of_task: Mapping[str, Data]) -> list[Block]:
    blocks: list[Block] = []
    for task, known in of_task.items():
        pairs = data.asked(known, [cell for cell in summary.cells if cell.task == task])
        if pairs.pairs:
            blocks.append(Pairs((("Task", task), *pairs.pairs)))
        if known.texts:
            blocks.append(data.three(known))
    kinds = data.methods([cell.method for cell in summary.cells])
    return [*blocks, *([kinds] if kinds.pairs else [])]


def _differences(summary: Summary, runs: Sequence[Run], labels: Labels) -> list[Block]:
    """Against the baseline; where it is cheap, also against each of the others."""
    if not summary.comparisons:
        return []
    methods = [method for method in dict.fromkeys(cell.method for cell in summary.cells) if method != summary.baseline]
    several = len(methods) > 1 and len(runs) <= _RUNS and len(methods) < _METHODS
    chart = charts.differences(summary.comparisons, labels)
    options = [(summary.baseline, _some(chart, *_against("differences", summary.comparisons, labels)))]
    for at, method in enumerate(methods if several else ()):
        others = compare(runs, method, looks=summary.looks, margin=summary.comparisons[0].margin)
        if others:
            options.append((method, tuple(_against(f"differences-{at}", others, labels))))
    across = compared.across(summary.aggregates, labels)
    return [Switch("Compare with", tuple(options)), *([across] if across else [])]


def _against(name: str, comparisons: Sequence[Comparison], labels: Labels) -> list[Table]:
    made = []
    for at, (_, here) in enumerate(charts.by_task(comparisons)):
        made.append(compared.differences(f"{name}-{at}", here, labels))
        made += filter(None, [compared.failures(f"{name}-{at}-failed", here, labels)])
    return made


def _some(*blocks: Block | None) -> tuple[Block, ...]:
    return tuple(block for block in blocks if block is not None)


def _folds(parts: Mapping[str, Sequence[Block | None]]) -> tuple[Block, ...]:
    return tuple(Fold(title, _some(*blocks)) for title, blocks in parts.items() if _some(*blocks))


def _pairs(values: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value if isinstance(value, str) else _plain(value)) for name, value in values.items())


def _plain(value: object) -> str:
    """Anything that is no text: as JSON, which is read without knowing Python."""
    if isinstance(value, (list, tuple)):
        return ", ".join(item if isinstance(item, str) else _plain(item) for item in value) or "none"
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)
