"""Power, against published sample sizes and against simulation of the test itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixout.study.analysis.compare import compare
from mixout.study.analysis.restarts import fewest_restarts, plan, power_at, restarts_needed
from mixout.study.analysis.runs import Run
from mixout.study.analysis.stats import exchanged_labels, holm, sign_flips

DRAW = np.random.default_rng(0)


def pilot(x, y, **more) -> list[Run]:
    return [
        Run(task="RTE", method=method, restart=k, score=float(score), **more)
        for method, several in (("plain", y), ("mixout(0.9)", x))
        for k, score in enumerate(several)
    ]


@pytest.mark.parametrize(("effect", "paired", "two"), [(0.2, 199, 394), (0.5, 34, 64), (0.8, 15, 26)])
def test_numbers_of_the_textbook(effect, paired, two):
    # J. Cohen, Statistical power analysis: small, medium, large effect at alpha .05 and power .8.
    assert restarts_needed(effect, 1.0) == paired
    assert restarts_needed(effect, 2**0.5, independent=True) == two


@pytest.mark.parametrize(
    ("n", "shift", "independent"), [(5, 1.0, False), (20, 0.5, False), (9, 0.9, True), (50, 0.1, True)]
)
def test_power_is_that_of_the_noncentral_t(n, shift, independent):
    freedom = (n - 1) * (1 + independent)
    limit, center = stats.t.isf(0.025, freedom), shift * n**0.5
    oracle = stats.nct.sf(limit, freedom, center) + stats.nct.cdf(-limit, freedom, center)
    assert power_at(n, shift, 1.0, independent=independent) == pytest.approx(oracle, abs=1e-5)


def test_power_is_the_share_of_significant_t_tests():
    drawn = DRAW.normal(0.7, 1.0, (20_000, 12))
    assert power_at(12, 0.7, 1.0) == pytest.approx(
        np.mean(stats.ttest_1samp(drawn, 0.0, axis=1).pvalue <= 0.05), abs=0.01
    )
    x, y = DRAW.normal(0.9, 1.0, (20_000, 9)), DRAW.normal(0.0, 1.0, (20_000, 9))
    share = np.mean(stats.ttest_ind(x, y, axis=1).pvalue <= 0.05)
    assert power_at(9, 0.9, 2**0.5, independent=True) == pytest.approx(share, abs=0.01)


@given(effect=st.floats(0.05, 20), family=st.integers(1, 2000), independent=st.booleans())
def test_the_number_needed_is_the_smallest(effect, family, independent):
    options = {"independent": independent, "alpha": 0.05 / family}
    n = restarts_needed(effect, 1.0, family=family, independent=independent)
    fewest = fewest_restarts(family, independent=independent)
    assert power_at(n, effect, 1.0, **options) >= 0.8
    assert n >= fewest
    assert n == fewest or power_at(n - 1, effect, 1.0, **options) < 0.8


def test_what_no_number_can_show():
    assert restarts_needed(0.0, 1.0) is None
    assert restarts_needed(1e-4, 1.0) is None


@pytest.mark.parametrize("family", [1, 3, 8])
@pytest.mark.parametrize("independent", [True, False])
def test_no_number_is_named_at_which_the_test_cannot_succeed(family, independent):
    n = restarts_needed(1000, 3, family=family, independent=independent)
    assert n == fewest_restarts(family, independent=independent)
    shift = 1e6 * np.arange(1.0, n + 1)
    p = exchanged_labels(shift + 1e9, shift) if independent else sign_flips(shift)
    assert holm([p, *[1.0] * (family - 1)])[0] <= 0.05
    fewer = exchanged_labels(shift[1:] + 1e9, shift[1:]) if independent else sign_flips(shift[1:])
    assert holm([fewer, *[1.0] * (family - 1)])[0] > 0.05


def test_the_named_number_has_the_power_in_the_reports_own_test():
    # Of 4 comparisons the first, by sign flips and Holm; a difference of 1.2 spreads.
    n = restarts_needed(1.2, 1.0, family=4)
    drawn = np.random.default_rng(3).normal(1.2, 1.0, (400, n))
    assert np.mean([4 * sign_flips(one) <= 0.05 for one in drawn]) >= 0.74


def test_a_plan_takes_its_spread_from_the_pilot():
    x, y = DRAW.normal(0.7, 0.05, 8), DRAW.normal(0.66, 0.05, 8)
    (found,) = plan(compare(pilot(x, y)))
    assert (found.pilot, found.task, found.method, found.smallest) == (8, "RTE", "mixout(0.9)", 6)
    assert found.spread == pytest.approx(np.std(x - y, ddof=1))
    assert [need.points for need in found.needed] == [1, 2, 5]
    assert [need.restarts for need in found.needed] == [restarts_needed(d, found.spread) for d in (0.01, 0.02, 0.05)]
    assert power_at(8, found.detectable, found.spread) == pytest.approx(0.8, abs=0.01)
    (percent,) = plan(compare(pilot(100 * x, 100 * y)))
    assert percent.needed == found.needed


def test_the_range_is_that_of_the_spread():
    # From a pilot of five the 90 % interval of a standard deviation goes from 0.65 to 2.37 times what was seen.
    x = DRAW.normal(0.0, 0.05, 5)
    (found,) = plan(compare(pilot(x, np.zeros(5) + np.arange(5) * 1e-9)))
    low, high = found.spread * 2 / np.sqrt(stats.chi2.ppf([0.95, 0.05], 4))
    need = found.needed[1]
    assert (need.low, need.high) == (restarts_needed(0.02, low), restarts_needed(0.02, high))
    assert need.low <= need.restarts <= need.high


def test_every_comparison_and_look_is_counted():
    y = DRAW.normal(0.6, 0.05, 6)
    several = [
        run
        for method, gain in (("plain", 0.0), ("a", 0.1), ("b", 0.2))
        for run in [
            Run(task="RTE", method=method, restart=k, score=float(score + gain + DRAW.normal(0, 0.01)))
            for k, score in enumerate(y)
        ]
    ]
    assert {one.smallest for one in plan(compare(several))} == {7}
    assert {one.smallest for one in plan(compare(several, looks=4))} == {9}
    assert {one.detectable for one in plan(compare(several))} == {None}  # six restarts show nothing of two comparisons


def test_unpaired_pilots():
    x, y = DRAW.normal(0.7, 0.05, 8), DRAW.normal(0.66, 0.02, 6)
    (found,) = plan(compare(pilot(x, y, paired=False)))
    assert found.spread == pytest.approx(np.hypot(np.std(x, ddof=1), np.std(y, ddof=1)))
    assert (found.pilot, found.smallest) == (6, 4)


@pytest.mark.parametrize("gain", [0.0, 0.05])
def test_a_pilot_without_spread_says_nothing(gain):
    y = np.linspace(0.5, 0.6, 5)
    assert plan(compare(pilot(y + gain, y))) == []


def test_four_restarts_are_no_pilot():
    assert plan(compare(pilot(*DRAW.normal(0.6, 0.1, (2, 4))))) == []
