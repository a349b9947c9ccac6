"""Charts over numeric factors: what is drawn where, read back from the axes, and the page of a study with factors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixout.study.analysis.across import doses, sweeps
from mixout.study.analysis.cells import summarise
from mixout.study.analysis.runs import Run, by_cell
from mixout.study.analysis.words import compact
from mixout.study.report import write_report
from mixout.study.report.canvas import GREY, Chart, Panel, looks
from mixout.study.report.charts import over_factors, over_p
from mixout.study.report.draw import Row, rows

SIZES, METHODS, RESTARTS = (50, 100, 200, 500, 1000, 2000), ("dropout(0.1)", "mixout(0.7)", "mixout(0.9)"), 5
SCORES = np.random.default_rng(0).uniform(0.45, 0.8, (len(METHODS), len(SIZES), RESTARTS)).round(3)
CHANCE = 0.5


def few_samples() -> list[Run]:
    return [
        Run(
            task="RTE",
            method=METHODS[m],
            restart=k,
            score=float(SCORES[m, n, k]),
            metric="accuracy",
            chance=CHANCE,
            factors={"train_size": str(SIZES[n])},
        )
        for k, n, m in itertools.product(range(RESTARTS), range(len(SIZES)), range(len(METHODS)))
    ]


def of_values(*texts: str, method: str = "plain", **more) -> list[Run]:
    """A run at each value of a factor ``x``."""
    return [
        Run(**({"task": "RTE", "method": method, "restart": 0, "score": 0.6, "factors": {"x": text}} | more))
        for text in texts
    ]


def charts(runs: list[Run]) -> list[Chart]:
    methods = [run.method for run in runs]
    return over_factors(sweeps(summarise(runs)), by_cell(runs), looks(methods, methods[0]))


def drawn(panel: Panel) -> Axes:
    axes = Figure().add_subplot()
    panel.draw(axes)
    return axes


def joined(axes: Axes) -> list[Line2D]:
    """The lines through means; bars have two points and no mark."""
    return [line for line in axes.get_lines() if line.get_linestyle() != "None" and line.get_marker() != "None"]


def ticks(runs: list[Run]) -> dict[float, str]:
    axes = drawn(charts(runs)[0].panels[0])
    assert not axes.get_xticks(minor=True).size
    return dict(zip(axes.get_xticks(), (text.get_text() for text in axes.get_xticklabels()), strict=True))


def test_lines_dots_crosses_and_bars_are_the_runs():
    runs = few_samples()
    [chart] = charts(runs)
    assert (chart.title, list(chart.legend)) == ("Score over train size", list(METHODS))
    [panel] = chart.panels
    axes = drawn(panel)
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "train size", "accuracy")
    colors = [look.color for look in looks(METHODS, METHODS[0]).values()]
    for m, color in enumerate(colors):
        own = [line for line in axes.get_lines() if to_hex(line.get_color()) == color]
        [means] = [line for line in joined(axes) if line in own]
        assert means.get_ydata() == pytest.approx(SCORES[m].mean(-1))
        # Beside each other, yet each nearest to its own value.
        assert [min(SIZES, key=lambda n: abs(math.log(n / x))) for x in means.get_xdata()] == list(SIZES)
        dots, crosses = (
            [pair for line in own if line.get_marker() == mark and line.get_linestyle() == "None"
             for pair in zip(line.get_xdata(), line.get_ydata(), strict=True)]
            for mark in "ox"
        )  # fmt: skip
        expected = [(x, score) for x, scores in zip(means.get_xdata(), SCORES[m], strict=True) for score in scores]
        assert sorted(dots) == sorted(pair for pair in expected if pair[1] > CHANCE)
        assert sorted(crosses) == sorted(pair for pair in expected if pair[1] <= CHANCE)
        bars = [tuple(line.get_ydata()) for line in own if line.get_marker() == "None"]
        cells = [cell for cell in summarise(runs) if cell.method == METHODS[m]]
        assert bars == [(cell.mean_low, cell.mean_high) for cell in cells if cell.mean_low is not None]
    assert [line.get_ydata()[0] for line in axes.get_lines() if to_hex(line.get_color()) not in colors] == [CHANCE]
    for m, method in enumerate(METHODS):
        means = ", ".join(f"{n} {mean:.3f}" for n, mean in zip(SIZES, SCORES[m].mean(-1), strict=True))
        assert f"{method}, mean at each train size: {means}" in panel.description


def test_a_run_that_did_not_finish_is_a_cross_also_above_chance():
    runs = [*of_values("1", "2", chance=0.5), *of_values("2", chance=0.5, restart=1, score=0.9, status="diverged")]
    axes = drawn(charts(runs)[0].panels[0])
    crosses = [tuple(line.get_ydata()) for line in axes.get_lines() if line.get_marker() == "x"]
    assert crosses == [(0.9,)]


def test_a_line_for_each_combination_of_the_other_factors():
    rates = ("1e-05", "3e-05", "0.0001", "0.0003")
    runs = [
        Run(task=task, method=method, restart=0, score=0.6, factors={"learning_rate": rate, "optimizer": optimizer})
        for task, method in itertools.product(("RTE", "CoLA"), ("plain", "mixout(0.9)"))
        for rate, optimizer in itertools.product(rates, ("adamw", "bertadam"))
    ]
    [chart] = charts(runs)
    assert list(chart.legend) == [
        f"{method}, optimizer {optimizer}" for method in ("plain", "mixout(0.9)") for optimizer in ("adamw", "bertadam")
    ]
    assert [panel.title for panel in chart.panels] == ["RTE", "CoLA"]
    assert ticks(runs) == {1e-5: "1e-5", 3e-5: "3e-5", 1e-4: "1e-4", 3e-4: "3e-4"}


@pytest.mark.parametrize(
    ("values", "scale"),
    [(("1", "8"), "log"), (("1", "7.9"), "linear"), (("0", "0.01", "10"), "linear"), (("-80", "-1"), "linear")],
)
def test_wide_positive_values_stand_on_a_logarithmic_axis(values, scale):
    axes = drawn(charts(of_values(*values))[0].panels[0])
    assert axes.get_xscale() == scale


def test_names_of_values_do_not_run_into_each_other():
    # On 282 points of a linear axis 1000 and 1100 are 5 points apart.
    assert ticks(of_values("1000", "1100", "1200", "7000")) == {1000: "1000", 7000: "7000"}
    # Both ends are named.
    doubled = [2.5e-5 * 2**power for power in range(8)]
    assert [*ticks(of_values(*map(repr, doubled))).values()][-2:] == ["8e-4", "3.2e-3"]


def test_many_lines_do_not_reach_the_next_value():
    methods = [f"method {number}" for number in range(24)]
    runs = [run for method in methods for run in of_values("3", "4", "20", method=method)]
    axes = drawn(charts(runs)[0].panels[0])
    at = np.array([line.get_xdata() for line in joined(axes)])
    assert at.shape == (24, 3)
    assert at.mean(0) == pytest.approx([3, 4, 20])
    assert at[:, 0].max() < at[:, 1].min()
    assert len(set(at[:, 0])) == 24


@pytest.mark.parametrize("values", [(0.05,), (0.05, 0.05), (-0.3,), (0.0,), (0.02, 0.3)])
def test_the_line_of_the_baseline_is_drawn_wherever_the_differences_are(values):
    """Also where all are equal, as that of a single method without an interval."""
    looked = looks(["plain"], "plain")["plain"]
    marks = [Row(label="m", look=looked, said="", note="", value=value, interval=None) for value in values]
    axes = drawn(rows("T", marks, axis="difference", line=(0.0, "plain"), far=math.inf))
    assert "plain" in {text.get_text() for text in axes.texts}
    assert axes.get_xlim()[0] < 0.0 < axes.get_xlim()[1]
    assert 0.0 in {line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"}


def test_chance_that_follows_from_the_factor_is_no_line():
    runs = [*of_values("1", chance=0.55), *of_values("2", chance=0.5)]
    axes = drawn(charts(runs)[0].panels[0])
    assert all(to_hex(line.get_color()) == GREY for line in axes.get_lines())


def test_chance_that_follows_from_the_factor_is_nowhere_one_number(tmp_path):
    failed = {"score": math.nan, "status": "diverged"}
    steps = {"evaluations": ((1, 0.5), (2, 0.6))}
    known = [*of_values("1", chance=0.55, **steps), *of_values("1", restart=1, chance=0.55, **failed)]
    other = [*of_values("2", chance=0.35, **steps), *of_values("2", restart=1, chance=0.35, **failed)]
    for runs, notes in ((known, ["Chance, the score", "counted as chance: 1"]), (known + other, ["as chance: 2"])):
        page = write_report(runs, tmp_path / notes[0], title="T", baseline=None, commands=[]).read_text()
        for note in notes:
            assert note in page
        assert ("Chance, the score" in page) == (len(notes) == 2)
        assert ("a constant answer scores" in page) == (len(notes) == 2)
    unknown = [*of_values("3"), *of_values("3", restart=1, **failed)]
    page = write_report(known + other + unknown, tmp_path / "mixed", title="T", baseline=None, commands=[]).read_text()
    assert "counted as chance: 2" in page
    assert "left out of the scores: 1" in page


def test_nothing_but_crashes_is_no_chart():
    assert charts(of_values("1", "2", score=math.nan, status="failed")) == []


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1e-4, 3e-4, 1e-3], ["1e-4", "3e-4", "1e-3"]),
        ([0.001, 0.01, 0.1], ["0.001", "0.01", "0.1"]),
        ([0, 2.5e-5, 0.5, 1], ["0", "2.5e-5", "5e-1", "1"]),
        ([500, 2000, 67349, 120000], ["500", "2000", "67349", "1.2e5"]),
        ([-1e-5, 0.5], ["-1e-5", "5e-1"]),
    ],
)
def test_values_in_few_letters(values, texts):
    assert compact(values) == texts
    assert [float(text) for text in texts] == values


def test_the_page_of_a_study_with_factors(parse, tmp_path):
    runs = [
        Run(**(vars(run) | {"factors": run.factors | {"a/b <i>": text}}))
        for run in few_samples()
        if run.factors["train_size"] in ("50", "2000")
        for text in ("1", "2")
    ]
    page = parse(write_report(runs, tmp_path, title="T").read_text())
    names = [one.attributes["id"] for one in page.all("section")]
    # The first of them stands with the answer.
    assert [name for name in names if name.startswith("factor")] == ["factor-2-train_size"]
    [first, _] = [one.attributes["href"] for one in page.all("section")[0].all("a")]
    assert first == "figures/factor-1-a-b-i-.svg"
    assert {path.stem for path in (tmp_path / "figures").glob("factor*.png")} == {
        "factor-1-a-b-i-",
        "factor-2-train_size",
    }
    ids = [one.attributes["id"] for one in page.all() if one.attributes.get("id")]
    assert len(ids) == len(set(ids))
    facts = next(one for one in page.all("p") if one.attributes.get("class") == "facts").words()
    assert facts == f"{len(runs)} runs · 1 task · 3 methods · {sum(run.failed for run in runs)} failed"


@pytest.mark.usefixtures("undrawn")
def test_the_highest_mean_is_that_of_the_same_factors(parse, tmp_path):
    page = parse(write_report(few_samples(), tmp_path, title="T").read_text())
    [table] = [one for one in page.all("table") if one.attributes["id"] == "table-scores-0"]
    rows = [[cell.words() for cell in row.all("th", "td")] for row in table.all("tbody")[0].all("tr")]
    marked = [row[:2] for row in rows if row[3].endswith("highest")]
    best = SCORES.mean(-1).argmax(0)
    # Within a size the highest mean comes first.
    assert marked == [[METHODS[m], str(size)] for m, size in zip(best, SIZES, strict=True)]
    assert [row[:2] for row in rows[:: len(METHODS)]] == marked


def test_two_values_of_p_are_no_curve():
    runs = [Run(task="RTE", method=f"mixout({p})", restart=0, score=0.6) for p in (0.5, 0.7, 0.9)]
    for several, expected in ((runs[:2], None), (runs, "Score over p")):
        look = looks([run.method for run in several], "plain")
        chart = over_p(doses(summarise(several)), by_cell(several), look)
        assert (chart and chart.title) == expected
