"""The page: one HTML file that needs no other and asks no network for anything; and what stands on it, in its order.

Style and script stand in it. All text is escaped by the template engine, and a content security policy lets nothing run
or load but the page's own script, by its hash. Sections without data are left out.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from mixout._names import count
from mixout.errors import needs
from mixout.study.analysis.cells import Cell, Instability
from mixout.study.analysis.compare import Comparison, compare
from mixout.study.analysis.runs import Run, by_cell, if_one
from mixout.study.analysis.summary import Summary
from mixout.study.analysis.words import Scores, number
from mixout.study.report import charts, compared, tables
from mixout.study.report.canvas import Chart, Labels, looks, pictures, swatch

with needs("demo", "the report"):
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

# Other baselines are compared beforehand, where that is cheap.
_RUNS, _METHODS = 2000, 8
_LETTERS, _EXAMPLES, _FLIPS, _FLIPPING, _CLASSES = 280, 3, 5, 6, 12

KINDS = {
    "plain": "fine-tuning without a method",
    "dropout": "activations are dropped at random, the usual practice",
    "mixout": "random columns of the weights are replaced by the pretrained ones in each step",
    "mixconnect": "single weights, at random, are replaced by the pretrained ones in each step",
    "dropconnect": "single weights, at random, are dropped in each step",
    "gradient_mask": "mixout's mask on the gradient alone, without a pull to the pretrained weights",
    "anchor_decay": "weight decay towards the pretrained weights",
    "output_anchor": "a penalty keeps the answers near those of the pretrained model",
}

# Where a long label may be broken at the end of a line.
_BREAK = re.compile(r"(?<=[+,])(?=\S)")


@dataclass(frozen=True)
class Section:
    """A part of the page; the name is its anchor."""

    name: str
    title: str
    blocks: Sequence[Markup]


def block(kind: str, *values: object) -> Markup:
    """A piece of a section, by the macro of ``blocks.html.j2`` of that name."""
    return Markup(getattr(_templates().get_template("blocks.html.j2").module, kind)(*values))


def compose(
    title: str,
    summary: Summary,
    runs: Sequence[Run],
    *,
    data: Mapping[str, Data],
    commands: Sequence[str],
    environment: Mapping[str, object],
    settings: Mapping[str, object],
    files: Sequence[tuple[str, str]],
) -> tuple[str, list[Chart]]:
    """The page as HTML, and the charts on it; ``files`` that lie beside it have names and meanings."""
    sections, drawn = _results(summary, runs, data)
    sections += _origins(summary, runs, commands, {"Settings": settings, "Environment": environment})
    sections.append(Section("files", "Files", [block("links", files)]))
    script = _read("page.js")
    page = _templates().get_template("page.html.j2").render(
        title=title,
        facts=tables.facts(summary.cells),
        sections=[section for section in sections if section.blocks],
        # Ours, not the user's: not escaped.
        css=Markup(_read("page.css")),
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )  # fmt: skip
    return page, drawn


@cache
def _templates() -> Environment:
    # Undefined names raise: a misspelled one would leave a hole in the page.
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["soft"] = lambda text: Markup("<wbr>").join(_BREAK.split(text))
    environment.globals.update(pictures=pictures, swatch=swatch)
    return environment


def _read(name: str) -> str:
    return resources.files("mixout.study.report").joinpath("template", name).read_text(encoding="utf-8")


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


def _results(summary: Summary, runs: Sequence[Run], given: Mapping[str, Data]) -> tuple[list[Section], list[Chart]]:
    """What came out: the answer with its figure, what was asked, scores, comparisons, curves, examples, details.

    Beside the sections all charts in them.
    """
    look = looks([cell.method for cell in summary.cells], summary.baseline)
    labels, of_cell, cells = Labels(summary.cells, look), by_cell(runs), summary.cells
    # A table of scores may know the size of a dev set.
    of_task = {task: given.get(task) or Data(dev_size=if_one(run.dev_size for run in runs if run.task == task))
               for task in dict.fromkeys(run.task for run in runs)}  # fmt: skip
    over = charts.over_factors(summary.sweeps, of_cell, look)
    drawn = [*over[:1], charts.scores(cells, of_cell, labels), *over[1:]]
    more = (charts.over_p(summary.doses, of_cell, look), charts.tradeoff(cells, summary.sweeps, of_cell, look))
    drawn += [chart for chart in more if chart is not None]
    differences = charts.differences(summary.comparisons, labels)
    training = [charts.over_steps(cells, of_cell, labels, losses=losses) for losses in (True, False)]
    best = charts.best_of(cells, labels)
    scores = [
        tables.scores(at, [cell for cell in cells if cell.task == task], summary.leaders, labels)
        for at, task in enumerate(of_task)
    ]
    flips = [_flips(task, summary, of_cell, known, labels) for task, known in of_task.items()]
    sections = [
        Section("answer", "Answer", [block("lines", summary.verdict), block("chart", drawn[0])]),
        Section("asked", "What was asked", _asked(summary, of_task)),
        Section("tables", "Scores", _tables(tables.overview(cells, summary.leaders, labels), *scores)),
        *(Section(chart.name, chart.title, [block("chart", chart)]) for chart in drawn[1:]),
        Section("differences", "Differences", _differences(summary, runs, labels, differences)),
        Section("training", "Training", [block("chart", chart, True) for chart in training if chart]),
        Section("examples", "Examples that flip", [
            *(block("examples", items) for items in flips if items),
            *_tables(tables.instability(summary.instabilities, labels)),
        ]),
        Section("details", "Details", _folds({
            "Best of k restarts": [block("chart", best)] if best else [],
            "Enough restarts?": _tables(compared.restarts(summary.powers, labels)),
            "Cost": _tables(tables.costs(cells, labels)),
        })),
    ]  # fmt: skip
    return sections, [chart for chart in (*drawn, differences, *training, best) if chart is not None]


def _origins(
    summary: Summary, runs: Sequence[Run], commands: Sequence[str], known: Mapping[str, Mapping[str, object]]
) -> list[Section]:
    """How the numbers came about: what was left out, what failed, how to do it again, and what is known of settings."""
    failed = [run for run in runs if run.status != "finished" or run.error]
    return [
        Section("notes", "What was left out", [block("lines", summary.notes)] if summary.notes else []),
        Section("failures", "Unfinished runs", _folds({
            f"{run}: {run.status}": [block("code", run.error or "No error was recorded.")] for run in failed
        })),
        Section("reproduce", "Reproduce", [
            *([block("code", "\n".join(commands))] if commands else []),
            *_folds({name: [block("pairs", {key: _plain(value) for key, value in values.items()})] if values else []
                     for name, values in known.items()}),
        ]),
    ]  # fmt: skip


def _asked(summary: Summary, of_task: Mapping[str, Data]) -> list[Markup]:
    """What the tasks and methods are, and three examples, each of another class where there are as many."""
    blocks = []
    for task, data in of_task.items():
        said = _what(data, [cell for cell in summary.cells if cell.task == task])
        if said:
            blocks.append(block("pairs", {"Task": task} | said))
        chosen = {answer: at for at, answer in reversed([*enumerate(data.answers)])}
        places = sorted(chosen.values()) if len(chosen) >= _EXAMPLES else range(len(data.texts))
        items = [(_short(data.texts[at]), [f"answer: {data.answers[at]}"]) for at in places[:_EXAMPLES]]
        blocks += [block("examples", items)] if items else []
    words = {word for cell in summary.cells for word in re.findall(r"\w+", cell.method)}
    kinds = {kind: text for kind, text in KINDS.items() if kind in words}
    return [*blocks, *([block("pairs", kinds)] if kinds else [])]


def _what(data: Data, cells: Sequence[Cell]) -> dict[str, str]:
    text = Scores(score for cell in cells for score in cell.scores)
    rows = [("trained on", data.train_size), ("tested on (dev set)", data.dev_size)]
    names = data.labels or ()
    classes = ", ".join(names[:_CLASSES]) + (" and others" if len(names) > _CLASSES else "")
    chance = "" if cells[0].chance is None else f"; a constant answer scores {text.value(cells[0].chance)}"
    said = {
        "Data": data.source,
        "Rows": ", ".join(f"{count(size, 'row')} {what}" for what, size in rows if size is not None),
        "Question": f"which of {len(names)} classes: {classes}" if names else "",
        "Score": "" if cells[0].metric == "score" and not chance else f"{cells[0].metric}, higher is better{chance}",
    }
    return {name: value for name, value in said.items() if value}


def _flips(
    task: str, summary: Summary, of_cell: charts.Runs, data: Data, labels: Labels
) -> list[tuple[str, list[str]]]:
    """The examples that restarts answer most differently, with the factors of the best, and who answered what."""
    best = max((one.best for one in summary.leaders if one.best.task == task), key=lambda c: c.mean or 0, default=None)
    here = [
        one for one in summary.instabilities
        if one.task == task and one.kind == "classes" and (best is None or one.factors == best.factors)
    ][:_FLIPPING]  # fmt: skip
    spread: dict[int, float] = {}
    for one in here:
        spread |= {at: spread.get(at, 0.0) + one.spread[at] for at in one.flipping}

    def counted(one: Instability, at: int) -> str:
        known = (run.predictions for run in of_cell[one.key] if len(run.predictions) > at)
        answers = Counter(data.name(float(predictions[at])) for predictions in known)
        return f"{labels.of(one)}: {', '.join(f'{answer} ({times})' for answer, times in answers.most_common())}"

    return [
        (
            _short(data.texts[at]) if data.texts else f"row {at} of the dev set, from 0",
            [*([f"answer: {data.answers[at]}"] if data.answers else []), *(counted(one, at) for one in here)],
        )
        for at in sorted(spread, key=lambda at: (-spread[at], at))[:_FLIPS]
    ]


def _differences(summary: Summary, runs: Sequence[Run], labels: Labels, chart: Chart | None) -> list[Markup]:
    """Against the baseline; where it is cheap, also against each of the others."""
    if chart is None:
        return []
    methods = [method for method in dict.fromkeys(cell.method for cell in summary.cells) if method != summary.baseline]
    several = len(methods) > 1 and len(runs) <= _RUNS and len(methods) < _METHODS
    first = [block("chart", chart, True), *_against("differences", summary.comparisons, labels)]
    options = [(summary.baseline, first)]
    for at, method in enumerate(methods if several else ()):
        others = compare(runs, method, looks=summary.looks, margin=summary.comparisons[0].margin)
        if others:
            options.append((method, _against(f"differences-{at}", others, labels)))
    return [block("switch", "Compare with", options), *_tables(compared.across(summary.aggregates, labels))]


def _against(name: str, comparisons: Sequence[Comparison], labels: Labels) -> list[Markup]:
    made = (
        (compared.differences(f"{name}-{at}", here, labels), compared.failures(f"{name}-{at}-failed", here, labels))
        for at, (_, here) in enumerate(charts.by_task(comparisons))
    )
    return _tables(*itertools.chain(*made))


def _tables(*made: tables.Table | None) -> list[Markup]:
    return [block("table", one) for one in made if one]


def _folds(parts: Mapping[str, Sequence[Markup]]) -> list[Markup]:
    return [block("fold", *part) for part in parts.items() if part[1]]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS].rstrip()} \u2026"


def _plain(value: object) -> str:
    """A setting: text as it is, anything else as JSON, which is read without knowing Python."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)
