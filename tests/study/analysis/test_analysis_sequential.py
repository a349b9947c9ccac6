"""Looking after each batch: intervals against scipy, and coverage at the look where one stops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mixout.study.analysis.compare import Comparison, compare
from mixout.study.analysis.restarts import reached
from mixout.study.analysis.runs import Run
from mixout.study.analysis.stats import mean_interval

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(0.7, 0.05, 12), DRAW.normal(0.66, 0.08, 12)


def runs(x, y, **more) -> list[Run]:
    return [
        Run(task="RTE", method=method, restart=k, score=float(score), **more)
        for method, several in (("plain", y), ("mixout(0.9)", x))
        for k, score in enumerate(several)
    ]


def at(x, y, looks: int = 1, **more) -> Comparison:
    (found,) = compare(runs(x, y, **more), looks=looks)
    return found


def interval(found: Comparison) -> tuple[float, float]:
    """In points."""
    return 100 * found.low, 100 * found.high


@pytest.mark.parametrize("looks", [1, 5])
def test_each_look_has_its_share_of_alpha(looks):
    found = at(X, Y, looks=looks)
    known = stats.ttest_1samp(100 * (X - Y), 0.0).confidence_interval(1 - 0.05 / looks)
    assert interval(found) == pytest.approx((known.low, known.high))
    assert found.confidence == pytest.approx(1 - 0.05 / looks)
    assert (found.n, found.difference) == (12, pytest.approx(np.mean(X - Y)))


def test_unpaired_restarts_have_welchs_interval():
    found = at(X, Y[:9], paired=False)
    known = stats.ttest_ind(100 * X, 100 * Y[:9], equal_var=False).confidence_interval(0.95)
    assert interval(found) == pytest.approx((known.low, known.high))
    assert found.n_baseline == 9


def test_it_is_reached_when_narrow_enough():
    low, high = interval(at(X, Y, looks=3))
    width = high - low
    assert reached(at(X, Y, looks=3), width * 1.001)
    assert reached(at(X, Y, looks=3), width * 0.999) is False


def test_few_restarts_or_no_spread_never_reach_it():
    assert reached(at(X[:4], Y[:4]), 1e6) is None
    assert reached(at(X[:5], Y[:5]), 1e6)
    # Where runs can fail, five without a failure say little about the next.
    assert reached(at(X[:9], Y[:9], chance=0.1), 1e6) is None
    assert reached(at(X[:10], Y[:10], chance=0.1), 1e6)
    assert reached(at(Y + 0.01, Y), 5.0) is False
    assert at([0.6], [0.5]).low is None


def studies(draw, law, *, batch: int, looks: int, width: float, spend: bool) -> float:
    """Share of simulated studies whose interval, at the look where the rule stops, holds the true difference, 0."""
    hits, number = 0, 1000
    for _ in range(number):
        differences = law(draw, batch * looks)
        for look in range(1, looks + 1):
            seen = differences[: batch * look]
            low, high = mean_interval(seen, level=1 - 0.05 / looks if spend else 0.95)
            if high - low <= width or look == looks:
                hits += low <= 0.0 <= high
                break
    return hits / number


def normal(draw, n):
    return draw.normal(0.0, 8.0, n)


def two_heaps(draw, n):
    """Differences of runs that fail in 3 of 10 cases, as in CoLA."""
    fails = draw.random((2, n)) < 0.3
    return (np.where(fails, 0.0, 60.0) + draw.normal(0, 2, (2, n)) * ~fails).T @ np.array([1.0, -1.0])


@pytest.mark.parametrize(("law", "width"), [(normal, 9.0), (two_heaps, 40.0)])
def test_coverage_at_the_stop(law, width):
    # Without spending, an interval that is narrow by luck at an early look covers less than it says.
    covered = studies(np.random.default_rng(1), law, batch=5, looks=5, width=width, spend=True)
    naive = studies(np.random.default_rng(1), law, batch=5, looks=5, width=width, spend=False)
    assert covered >= 0.95
    assert naive < covered
