"""Coverage of every interval that a report prints, by simulation of scores of realistic shapes."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from mixout.study.analysis.stats import newcombe

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def coverage():
    place = importlib.util.spec_from_file_location("coverage_of_intervals", ROOT / "benchmarks" / "coverage.py")
    module = importlib.util.module_from_spec(place)
    sys.modules[place.name] = module  # dataclasses look their module up
    place.loader.exec_module(module)
    yield module
    del sys.modules[place.name]


def test_the_truths_of_the_shapes(coverage):
    method, baseline = coverage.SHAPES["baseline fails 0.1, equal means"]
    assert coverage.target(True, method, baseline) == pytest.approx(0.0)
    assert coverage.target(False, method, baseline) == -2.0


def test_few_studies_of_one_shape(coverage):
    rows = coverage.simulate("normal, equal", 5, paired=True, studies=40)
    assert {row[3] for row in rows} == {"mean", "difference"}
    assert all(row[5] >= 0.85 for row in rows)


def test_the_exact_coverage_of_rates_is_that_of_simulated_ones(coverage):
    n, rates, draw = 3, np.linspace(0.05, 0.95, 19), np.random.default_rng(0)
    hits = []
    for _ in range(8000):
        one, other = draw.choice(rates, 2)
        low, high = newcombe(draw.random(n) < one, draw.random(n) < other, paired=True)
        hits.append(low <= one - other <= high)
    [found] = [row for row in coverage.of_rates(n) if row[2:4] == ("paired", "difference of failure rates")][:1]
    assert found[5] == pytest.approx(np.mean(hits), abs=0.01)


@pytest.mark.sweep
@pytest.mark.parametrize("n", [3, 5, 10, 20])
@pytest.mark.parametrize("shape", ["normal", "skewed, equal", "baseline fails 0.1, equal means", "both fail 0.5, 0.6"])
def test_every_interval_covers(coverage, shape, n):
    for _, _, _, name, printed, covered, _, claims in coverage.simulate(shape, n, paired=True, studies=300):
        # What is printed in one study of five or fewer is judged by the committed table, of more studies.
        assert printed < 0.2 or 0.91 <= covered <= 0.99, name
        assert not claims > 0.1, name


def test_the_committed_table_holds_what_is_promised():
    with (ROOT / "benchmarks" / "results" / "coverage.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["restarts"] for row in rows} == {"3", "5", "10", "20"}
    # What is printed in fewer studies is known badly. Of counts the mean over rates: single ones jump.
    seen = [row for row in rows if float(row["printed"]) >= 0.2 and not row["shape"].endswith("lowest")]
    assert [row for row in seen if not 0.92 <= float(row["coverage"]) <= 0.98] == []
