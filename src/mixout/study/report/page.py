"""The page: one HTML file that needs no other file and no network; and its sections, in their order.

Style and script are embedded. All text is escaped by the template engine, and a content security policy lets nothing
run or load but the page's own script, by its hash. Sections without data are left out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from mixout._names import count
from mixout.study.analysis.cells import Cell, Instability
from mixout.study.analysis.compare import Comparison, compare
from mixout.study.analysis.runs import Run, by_cell, grouped, if_one
from mixout.study.analysis.stats import holm
from mixout.study.analysis.summary import Summary
from mixout.study.analysis.words import Scores, number
from mixout.study.report import charts, tables
from mixout.study.report.canvas import Chart, Labels, looks, pictures, swatch

# With at most so many runs and fewer methods, comparisons with every other baseline are computed, too.
_RUNS, _METHODS = 2000, 8
_LETTERS, _EXAMPLES, _FLIPS, _FLIPPING, _CLASSES = 280, 3, 5, 6, 12

# Where a long label may be broken at the end of a line.
_BREAK = re.compile(r"(?<=[+,])(?=\S)")


def _read(name: str) -> str:
    return resources.files("mixout.study.report").joinpath("template", name).read_text(encoding="utf-8")


# The files beside the page, with what they hold.
FILES = {
    "runs.csv": "every run, one a row",
    "cells.csv": "every method on every task, in full precision",
    "comparisons.csv": "every comparison, in full precision",
    "summary.json": "all numbers, with curves",
}
_WORDS = tomllib.loads(_read("words.toml"))  # explanations of columns and methods


@dataclass(frozen=True)
class Section:
    """A part of the page; the name is its anchor."""

    name: str
    title: str
    blocks: Sequence[Markup]


def blocks(kind: str, *values: object) -> list[Markup]:
    """A part of a section, by the macro ``kind`` of ``blocks.html.j2``; an empty list if the last value is empty."""
    macro = getattr(_templates().get_template("blocks.html.j2").module, kind)
    return [Markup(macro(*values))] if values[-1] else []


def compose(
    title: str,
    summary: Summary,
    runs: Sequence[Run],
    data: Mapping[str, Data],
    commands: Sequence[str],
    known: Mapping[str, Mapping[str, object]],
) -> tuple[str, list[Chart]]:
    """The page as HTML, and the charts on it; ``known`` are folded pairs."""
    sections, drawn = _results(summary, runs, data)
    pairs = {name: {key: _plain(value) for key, value in values.items()} for name, values in known.items()}
    trained = [run for run in runs if not run.between]
    failed = [run for run in trained if run.status != "finished" or run.error]
    # How the numbers came about.
    sections += [
        Section("notes", "What was left out", blocks("lines", summary.notes)),
        Section("failures", "Unfinished runs", _folds({
            f"{run}: {run.status}": blocks("code", run.error or "No error was recorded.") for run in failed
        })),
        Section("reproduce", "Reproduce", [
            *blocks("code", "\n".join(commands)),
            *_folds({name: blocks("pairs", values) for name, values in pairs.items()}),
        ]),
        Section("files", "Files", blocks("links", FILES.items())),
    ]  # fmt: skip
    script = _read("page.js")
    page = _templates().get_template("page.html.j2").render(
        title=title,
        facts=_facts(summary.cells, trained),
        sections=[section for section in sections if section.blocks],
        # Our own text, not the user's, so it is not escaped.
        css=Markup(_read("page.css")),
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )  # fmt: skip
    return page, drawn


def _facts(cells: Sequence[Cell], runs: Sequence[Run]) -> str:
    """How large the study is, in a line; ``runs`` are those that were trained."""
    sizes = [(runs, "run"), ({cell.task for cell in cells}, "task"), ({cell.method for cell in cells}, "method")]
    failed = sum(run.failed for run in runs)
    return " \u00b7 ".join([*(count(len(items), noun) for items, noun in sizes), f"{failed:,} failed"])


@cache
def _templates() -> Environment:
    # Undefined names raise: a misspelled one would leave a hole in the page.
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["soft"] = lambda text: Markup("<wbr>").join(_BREAK.split(text))
    environment.globals.update(pictures=pictures, swatch=swatch, meanings=_WORDS["columns"])
    return environment


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the runs of one task were trained and tested on."""

    source: str = ""  # where it is from, in words
    train_size: int | None = None  # rows trained on; None where unknown, or where runs differ
    dev_size: int | None = None  # rows tested on
    labels: tuple[str, ...] | None = None  # names of the classes; None for values
    texts: tuple[str, ...] = ()  # of the dev set, in its order; empty where the data are not at hand
    answers: tuple[str, ...] = ()  # the right ones, as many

    def name(self, answer: float) -> str:
        """A prediction in words."""
        if self.labels is not None and answer.is_integer() and 0 <= answer < len(self.labels):
            return self.labels[int(answer)]
        return f"{answer:g}" if answer.is_integer() else number(answer, 2)


def _results(summary: Summary, runs: Sequence[Run], data: Mapping[str, Data]) -> tuple[list[Section], list[Chart]]:
    """What came out, and all charts in it."""
    look = looks([cell.method for cell in summary.cells], summary.baseline)
    labels, of_cell, cells = Labels(summary.cells, look), by_cell(runs), summary.cells
    # A table of scores may know the size of a dev set.
    of_task = {task: data.get(task) or Data(dev_size=if_one(run.dev_size for run in runs if run.task == task))
               for task in dict.fromkeys(run.task for run in runs)}  # fmt: skip
    factor_charts = charts.over_factors(summary.sweeps, of_cell, look)
    by_p, tradeoff = charts.over_p(summary.doses, of_cell, look), charts.tradeoff(cells, summary.sweeps, of_cell, look)
    shown = (*factor_charts[:1], charts.scores(cells, of_cell, labels), *factor_charts[1:], by_p, tradeoff)
    drawn = [chart for chart in shown if chart is not None]
    differences = charts.differences(summary.comparisons, labels)
    training = [charts.over_steps(cells, of_cell, labels, losses=losses) for losses in (True, False)]
    best = charts.best_of(cells, labels)
    scores = [
        tables.scores(index, [cell for cell in cells if cell.task == task], summary.leaders, labels)
        for index, task in enumerate(of_task)
    ]
    flips = [_flips(task, summary, of_cell, data, labels) for task, data in of_task.items()]
    sections = [
        Section("answer", "Answer", blocks("lines", summary.verdict) + blocks("chart", drawn[0])),
        Section("asked", "What was asked", _asked(summary, of_task)),
        Section("tables", "Scores", _each("table", tables.overview(cells, summary.leaders, labels), *scores)),
        *(Section(chart.name, chart.title, blocks("chart", chart)) for chart in drawn[1:]),
        Section("differences", "Differences", _differences(summary, runs, labels, differences)),
        Section("training", "Training", _each("titled", *training)),
        Section("examples", "Examples that flip", [
            *_each("examples", *flips), *blocks("table", tables.instability(summary.instabilities, labels)),
        ]),
        Section("details", "Details", _folds({
            "Best of k restarts": blocks("chart", best),
            "Enough restarts?": blocks("table", tables.restarts(summary.powers, labels)),
            "Cost": blocks("table", tables.costs(cells, labels)),
        })),
    ]  # fmt: skip
    return sections, [chart for chart in (*drawn, differences, *training, best) if chart is not None]


def _asked(summary: Summary, of_task: Mapping[str, Data]) -> list[Markup]:
    """What the tasks and methods are, and three examples, of three classes if there are as many."""
    parts = []
    for task, data in of_task.items():
        facts = _what(data, [cell for cell in summary.cells if cell.task == task])
        parts += blocks("pairs", {"Task": task} | facts if facts else {})
        first_rows = {answer: row for row, answer in reversed([*enumerate(data.answers)])}
        rows = sorted(first_rows.values()) if len(first_rows) >= _EXAMPLES else range(len(data.texts))
        items = [(_short(data.texts[row]), [f"answer: {data.answers[row]}"]) for row in rows[:_EXAMPLES]]
        parts += blocks("examples", items)
    words = {word for cell in summary.cells for word in re.findall(r"\w+", cell.method)}
    return parts + blocks("pairs", {method: text for method, text in _WORDS["methods"].items() if method in words})


def _what(data: Data, cells: Sequence[Cell]) -> dict[str, str]:
    text = Scores(score for cell in cells for score in cell.scores)
    sizes = [("trained on", data.train_size), ("tested on (dev set)", data.dev_size)]
    names = data.labels or ()
    classes = ", ".join(names[:_CLASSES]) + (" and others" if len(names) > _CLASSES else "")
    value = if_one(cell.chance for cell in cells)
    chance = "" if value is None else f"; a constant answer scores {text.value(value)}"
    facts = {
        "Data": data.source,
        "Rows": ", ".join(f"{count(size, 'row')} {use}" for use, size in sizes if size is not None),
        "Question": f"which of {len(names)} classes: {classes}" if names else "",
        "Score": "" if cells[0].metric == "score" and not chance else f"{cells[0].metric}, higher is better{chance}",
    }
    return {name: value for name, value in facts.items() if value}


def _flips(
    task: str, summary: Summary, of_cell: charts.Runs, data: Data, labels: Labels
) -> list[tuple[str, list[str]]]:
    """The examples that restarts answer most differently, and each method's answers, with the factors of the best."""
    best = max(
        (leader.best for leader in summary.leaders if leader.best.task == task), key=lambda c: c.mean or 0, default=None
    )
    unstable = [cell for cell in summary.instabilities if cell.task == task and cell.kind == "classes"]
    factors = best.factors if best is not None else unstable[0].factors if unstable else {}
    shown = [cell for cell in unstable if cell.factors == factors][:_FLIPPING]
    flipping = {row for cell in shown for row in cell.flipping}
    spread = {row: sum(cell.spread[row] for cell in shown) for row in flipping}

    def counted(one: Instability, at: int) -> str:
        predicted = (run.predictions for run in of_cell[one.key] if len(run.predictions) > at)
        answers = Counter(data.name(float(predictions[at])) for predictions in predicted)
        return f"{labels.of(one)}: {', '.join(f'{answer} ({times})' for answer, times in answers.most_common())}"

    items = []
    for row in sorted(spread, key=lambda row: (-spread[row], row))[:_FLIPS]:
        answer = [f"answer: {data.answers[row]}"] if data.answers else []
        text = _short(data.texts[row]) if data.texts else f"row {row} of the dev set, from 0"
        items.append((text, [*answer, *(counted(cell, row) for cell in shown)]))
    return items


def _differences(summary: Summary, runs: Sequence[Run], labels: Labels, chart: Chart | None) -> list[Markup]:
    """Differences from the baseline; if it is cheap, also from each of the other methods."""
    if chart is None:
        return []
    methods = [method for method in dict.fromkeys(cell.method for cell in summary.cells) if method != summary.baseline]
    compare_all = len(methods) > 1 and len(runs) <= _RUNS and len(methods) < _METHODS
    options = [(summary.baseline, blocks("titled", chart) + _against("differences", summary.comparisons, labels))]
    for index, method in enumerate(methods if compare_all else ()):
        comparisons = compare(runs, method, looks=summary.looks, margin=summary.comparisons[0].margin)
        if comparisons:
            options.append((method, _against(f"differences-{index}", comparisons, labels)))
    return blocks("switch", "Compare with", options) + blocks("table", tables.across(summary.aggregates, labels))


def _against(name: str, comparisons: Sequence[Comparison], labels: Labels) -> list[Markup]:
    parts: list[Markup] = []
    reachable = holm([c.p_smallest for c in comparisons])
    for index, (task, on_task) in enumerate(grouped(comparisons, lambda comparison: comparison.task).items()):
        least = min(c.looks * p for c, p in zip(comparisons, reachable, strict=True) if c.task == task)
        parts += blocks("table", tables.differences(f"{name}-{index}", on_task, labels, least))
        parts += blocks("table", tables.failures(f"{name}-{index}-failed", on_task, labels))
    return parts


def _folds(parts: Mapping[str, Sequence[Markup]]) -> list[Markup]:
    return [block for fold in parts.items() for block in blocks("fold", *fold)]


def _each(macro: str, *values: object) -> list[Markup]:
    return [block for value in values for block in blocks(macro, value)]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS].rstrip()} \u2026"


def _plain(value: object) -> str:
    """A setting: text as it is, anything else as JSON, which can be read without knowing Python."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)
