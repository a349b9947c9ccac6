"""The chart of score against what is kept, read back from the axes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from mixout.study.analysis.across import front, sweeps
from mixout.study.analysis.cells import summarise
from mixout.study.analysis.runs import Run, by_cell
from mixout.study.report import write_report
from mixout.study.report.canvas import Chart, looks
from mixout.study.report.charts import tradeoff

KEPT = {"mixout(0.9)": {"1e-4": (0.9, 0.8), "3e-4": (0.5, 0.3)}, "plain": {"1e-4": (0.6, 0.4), "3e-4": (0.2, 0.1)}}


def runs(*rates: str) -> list[Run]:
    return [
        Run(task="SST-2", method=method, restart=k, score=0.5 + 0.4 * kept - 0.1 * k, metric="accuracy", chance=0.5,
            original=kept, factors={"learning_rate": rate} if len(rates) > 1 else {})
        for method, values in KEPT.items() for rate in rates for k, kept in enumerate(values[rate])
    ]  # fmt: skip


def chart_of(every: list[Run]) -> Chart | None:
    cells = summarise(every)
    look = looks([run.method for run in every], "plain")
    return tradeoff(cells, sweeps(cells), by_cell(every), look)


def lines(chart: Chart):
    [panel] = chart.panels
    axes = Figure().add_subplot()
    panel.draw(axes)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("similarity to before, 1: nothing forgotten", "accuracy")
    found = axes.get_lines()
    means = [line for line in found if line.get_linestyle() != "None" and line.get_marker() != "None"]
    return means, [line for line in found if line.get_marker() in ("o", "x") and line.get_linestyle() == "None"]


def test_a_line_along_the_factor_joins_the_means():
    every = runs("1e-4", "3e-4")
    chart = chart_of(every)
    assert list(chart.legend) == list(KEPT)
    assert "along learning rate" in chart.caption
    means, dots = lines(chart)
    for line, method in zip(means, KEPT, strict=True):
        here = {rate: [run for run in every if (run.method, run.factors["learning_rate"]) == (method, rate)]
                for rate in ("1e-4", "3e-4")}  # fmt: skip
        np.testing.assert_allclose(line.get_xdata(), [np.mean([r.original for r in cell]) for cell in here.values()])
        np.testing.assert_allclose(line.get_ydata(), [np.mean([r.score for r in cell]) for cell in here.values()])
    shown = {(round(x, 6), round(y, 6)) for line in dots for x, y in zip(*line.get_data(), strict=True)}
    assert shown == {(round(run.original, 6), round(run.score, 6)) for run in every}
    crosses = sum(len(line.get_xdata()) for line in dots if line.get_marker() == "x")
    assert crosses == sum(run.failed for run in every) > 0


def test_the_axis_is_named_after_the_metric_whatever_the_sign():
    """Where all is forgotten a cosine can be below 0, as a log-likelihood is."""
    every = [dataclasses.replace(run, original=run.original - 0.5) for run in runs("1e-4")]
    lines(chart_of(every))
    [panel] = chart_of([dataclasses.replace(run, metric="log_likelihood") for run in every]).panels
    axes = Figure().add_subplot()
    panel.draw(axes)
    assert axes.get_xlabel() == "log-likelihood of earlier text"


def test_without_a_factor_each_method_is_a_point_and_unknown_values_are_left_out(tmp_path):
    every = runs("1e-4")
    every.append(dataclasses.replace(every[0], method="unknown", original=None))
    every.append(dataclasses.replace(every[0], restart=2, original=math.nan))
    chart = chart_of(every)
    means, dots = lines(chart)
    assert [line.get_xdata().tolist() for line in means] == [[np.mean(KEPT[m]["1e-4"])] for m in KEPT]
    assert sum(len(line.get_xdata()) for line in dots) == 4
    write_report(every, tmp_path, title="Kept")
    assert (tmp_path / "figures" / "tradeoff.png").exists()
    assert "Score against what is kept" in (tmp_path / "index.html").read_text()


def test_nothing_is_drawn_where_nobody_looked():
    assert chart_of([dataclasses.replace(run, original=None) for run in runs("1e-4")]) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points):
    """Against the definition: no other cell is at least as good in both and better in one; of equal ones the first."""
    every = [
        Run(task="RTE", method=f"m{k}", restart=0, score=score / 5, original=kept / 5)
        for k, (score, kept) in enumerate(points)
    ]
    ahead = [
        point for point in dict.fromkeys(points)
        if not any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in points)
    ]  # fmt: skip
    found = [points[int(cell.method[1:])] for cell in front(summarise(every))]
    assert found == sorted(ahead, reverse=True)


def test_the_front_is_drawn_and_said():
    every = runs("1e-4", "3e-4")
    chart = chart_of(every)
    [panel] = chart.panels
    axes = Figure().add_subplot()
    panel.draw(axes)
    broad = max(axes.get_lines(), key=lambda line: line.get_linewidth())
    best = front(summarise(every))
    assert broad.get_ydata().tolist() == [cell.mean for cell in best]
    assert "On it, from the highest score: SST-2: mixout(0.9), learning rate 1e-4." in chart.caption
    assert [(one.method, one.factors) for one in best] == [("mixout(0.9)", {"learning_rate": "1e-4"})]
