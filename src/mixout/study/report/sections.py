"""The sections of the page, in their order: from the answer to how it was made. Those without data stay empty."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from mixout.study.analysis.cells import Cell
from mixout.study.analysis.runs import Run
from mixout.study.analysis.stats import ALPHA
from mixout.study.analysis.summary import Summary
from mixout.study.analysis.words import percent_of
from mixout.study.report import cell_tables, comparison_tables, curve_charts, factor_charts, row_charts
from mixout.study.report.canvas import Chart
from mixout.study.report.page import Section, Statements
from mixout.study.report.row_charts import tasks
from mixout.study.report.tables import Table
from mixout.study.report.wording import Labels, count


def verdict(summary: Summary) -> Section:
    """The first section of the page."""
    # Equal p values are common at the smallest that a permutation test can reach.
    ordered = sorted(
        summary.comparisons, key=lambda one: (one.p_holm, one.p_permutation, -abs(one.difference * one.points))
    )
    return Section(
        name="verdict",
        title="Verdict",
        lead=summary.verdict,
        statements=(
            Statements(title="What the data show", texts=tuple(one.sentence for one in ordered if one.p_holm <= ALPHA)),
            Statements(
                title="What the data do not show", texts=tuple(one.sentence for one in ordered if one.p_holm > ALPHA)
            ),
            Statements(title="What was left out", texts=summary.notes),
        ),
    )


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


def results(summary: Summary, runs: Sequence[Run]) -> list[Section]:
    """What came out: scores, comparisons, curves, costs."""
    labels = Labels(summary.cells)
    scores = [
        cell_tables.scores(place, [cell for cell in summary.cells if cell.task == task], labels)
        for place, task in enumerate(tasks(summary.cells))
    ]
    differences = [
        comparison_tables.differences(place, [one for one in summary.comparisons if one.task == task], labels)
        for place, task in enumerate(tasks(summary.comparisons))
    ]
    across = comparison_tables.across(summary.aggregates, labels)
    restarts = comparison_tables.restarts(summary.powers, summary.comparisons, labels)
    return [
        _section("tables", "Scores", [cell_tables.overview(summary.cells, labels), *scores]),
        _drawn(row_charts.scores(summary.cells, runs, labels)),
        _drawn(curve_charts.over_p(summary.doses)),
        *map(_drawn, factor_charts.over_factors(summary.sweeps, runs)),
        _drawn(factor_charts.tradeoff(summary.cells, summary.sweeps, runs)),
        _drawn(row_charts.differences(summary.comparisons, labels), [*differences, across]),
        _drawn(curve_charts.best_of(summary.cells, labels)),
        _section("enough", "Enough restarts?", [restarts]),
        _drawn(curve_charts.over_steps(summary.curves, runs, labels)),
        _drawn(
            row_charts.disagreement(summary.instabilities, labels),
            [cell_tables.instability(summary.instabilities, labels)],
        ),
        _drawn(curve_charts.over_layers(summary.distances, labels)),
        _section("costs", "Costs", [cell_tables.costs(summary.cells, labels)]),
    ]


def origins(
    summary: Summary,
    runs: Sequence[Run],
    *,
    commands: Sequence[str],
    environment: Mapping[str, object],
    settings: Mapping[str, object],
) -> list[Section]:
    """How the numbers came about: what failed, settings, machine, and how to do it again."""
    failed = [run for run in runs if run.status != "finished" or run.error]
    return [
        Section(
            name="failures",
            title="Unfinished runs",
            folded=tuple((_described(run), run.error or "No error was recorded.") for run in failed),
        ),
        Section(name="settings", title="Settings", pairs=_pairs(settings)),
        Section(name="environment", title="Environment", pairs=_pairs(environment)),
        Section(name="reproduce", title="Reproduce", code="\n".join(commands)),
        Section(name="reading", title="Words", pairs=_words(summary)),
    ]


def _section(name: str, title: str, tables: Sequence[Table | None]) -> Section:
    return Section(name=name, title=title, tables=tuple(table for table in tables if table is not None))


def _drawn(chart: Chart | None, tables: Sequence[Table | None] = ()) -> Section:
    """A chart's section; without the chart there is nothing that its tables could say."""
    if chart is None:
        return Section(name="", title="")
    kept = tuple(table for table in tables if table is not None)
    return Section(name=chart.name, title=chart.title, chart=chart, tables=kept)


def _pairs(values: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value if isinstance(value, str) else _plain(value)) for name, value in values.items())


def _plain(value: object) -> str:
    """Anything that is no text: as JSON, which is read without knowing Python."""
    if isinstance(value, (list, tuple)):
        return ", ".join(item if isinstance(item, str) else _plain(item) for item in value) or "none"
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _words(summary: Summary) -> tuple[tuple[str, str], ...]:
    level = percent_of(1 - 0.05 / summary.looks)
    looks = f" The data were looked at up to {summary.looks} times: intervals and p are corrected for that."
    failed = (
        "A run that did not finish, scored no more than a constant answer, or collapsed: nearly all its answers are "
        "the same, and its loss is that of a constant answer. (Of a classifier, other answers are fewer than a fifth "
        "of its errors; of a regression, the variance of its predictions is below 5 % of its squared error.)"
    )
    interval = (
        "Of a mean or difference: Student's t over restarts, Welch's where restarts are not paired; of a failure rate: "
        "Wilson's; of a difference of failure rates: Newcombe's. All take the dev set as given: its own standard error "
        "is a column of the scores. Where no run failed the interval speaks of runs that do not fail; where some of "
        f"fewer than ten failed there is none.{looks if summary.looks > 1 else ''}"
    )
    p = (
        "Two-sided permutation test of the difference of means; in pairs, by exchanging signs. It asks whether the "
        "methods differ in any respect: rare failures of one of them count as well."
    )
    return (
        ("failed", failed),
        (f"{level} interval", interval),
        ("p", p),
        ("p, Holm", "The same after Holm's correction over all comparisons of this report."),
        ("p, as good", "Equivalence: two one-sided t tests that the means differ by less than the margin."),
        ("P(better)", "Chance that a run of the method beats one of the baseline; ties count half."),
        ("IQM", "Interquartile mean: the mean of the middle half of the scores."),
        ("seed", f"Of random permutations, where they are too many to visit all: {summary.seed}."),
    )


def _described(run: Run) -> str:
    factors = "".join(f", {name} {value}" for name, value in sorted(run.factors.items()))
    return f"{run.method} on {run.task}{factors}, restart {run.restart}: {run.status}"
