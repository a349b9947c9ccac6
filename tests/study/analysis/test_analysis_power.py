"""Power, against published sample sizes and against simulation of the test itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixout.errors import InputError
from mixout.study.analysis.compare import compare
from mixout.study.analysis.power import expected_width, plan, power_at, restarts_needed, simulated_power
from mixout.study.analysis.runs import Run

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


@given(effect=st.floats(0.05, 20), power=st.floats(0.2, 0.99), independent=st.booleans())
def test_the_number_needed_is_the_smallest(effect, power, independent):
    n = restarts_needed(effect, 1.0, power=power, independent=independent)
    assert power_at(n, effect, 1.0, independent=independent) >= power
    assert n == 2 or power_at(n - 1, effect, 1.0, independent=independent) < power


def test_what_no_number_can_show():
    assert restarts_needed(0.0, 1.0) is None
    assert restarts_needed(1e-4, 1.0) is None
    assert power_at(5, 0.0, 0.0) == 0.0
    assert power_at(5, 0.1, 0.0) == 1.0


def test_simulation_agrees_with_the_formula_where_its_assumption_holds():
    differences = stats.norm.ppf((np.arange(400) + 0.5) / 400)  # a pilot shaped like the normal law
    for n, difference in ((10, 1.0), (34, 0.5)):
        assert simulated_power(differences, n, difference) == pytest.approx(
            power_at(n, difference, float(np.std(differences))), abs=0.02
        )
    assert simulated_power(differences + 5.0, 10, 1.0) == pytest.approx(simulated_power(differences, 10, 1.0), abs=1e-3)
    assert simulated_power(differences, 20, 0.0) == pytest.approx(0.05, abs=0.012)


def test_simulation_has_its_seed_and_batches():
    differences = DRAW.normal(size=12)
    assert simulated_power(differences, 9, 0.8, seed=1) == simulated_power(differences, 9, 0.8, seed=1)
    assert simulated_power(differences, 9, 0.8, seed=1) != simulated_power(differences, 9, 0.8, seed=2)
    assert simulated_power(differences, 3000, 0.5) == 1.0  # in batches of 1,333


def test_the_expected_width_is_that_of_the_t_interval():
    differences = DRAW.normal(size=14)
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.9)
    assert expected_width(14, float(np.std(differences, ddof=1)), level=0.9) == pytest.approx(high - low)


def test_a_plan_takes_spread_and_difference_from_the_pilot():
    x, y = DRAW.normal(0.7, 0.05, 8), DRAW.normal(0.66, 0.05, 8)
    (found,) = plan(compare(pilot(x, y)))
    assert (found.pilot, found.given, found.task, found.method) == (8, False, "RTE", "mixout(0.9)")
    assert found.spread == pytest.approx(np.std(x - y, ddof=1))
    assert found.difference == pytest.approx(np.mean(x - y))
    assert found.restarts == restarts_needed(np.mean(x - y), np.std(x - y, ddof=1))
    assert found.simulated == simulated_power(x - y, found.restarts, float(np.mean(x - y)))
    assert dict(found.widths)[20] == expected_width(20, found.spread)


def test_a_given_difference_is_in_points():
    x, y = DRAW.normal(0.7, 0.05, 8), DRAW.normal(0.66, 0.05, 8)
    (fractions,) = plan(compare(pilot(x, y)), difference=2.0)
    (percent,) = plan(compare(pilot(100 * x, 100 * y)), difference=2.0)
    assert fractions.difference == 0.02
    assert fractions.given
    assert percent.restarts == fractions.restarts == restarts_needed(0.02, fractions.spread)


def test_unpaired_pilots():
    x, y = DRAW.normal(0.7, 0.05, 8), DRAW.normal(0.66, 0.02, 6)
    (found,) = plan(compare(pilot(x, y, paired=False)))
    assert found.spread == pytest.approx(np.hypot(np.std(x, ddof=1), np.std(y, ddof=1)))
    assert (found.pilot, found.simulated) == (6, None)


@pytest.mark.parametrize("gain", [0.0, 0.05])
def test_a_pilot_without_spread_says_nothing(gain):
    y = np.linspace(0.5, 0.6, 5)
    (found,) = plan(compare(pilot(y + gain, y)))
    assert (found.restarts, found.simulated) == (None, None)


def test_two_restarts_are_no_pilot():
    assert plan(compare(pilot([0.6, 0.7], [0.5, 0.6]))) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan([], power=1.0), "expected power between 0 and 1, got 1.0"),
        (lambda: plan([], alpha=0.0), "expected alpha between 0 and 1, got 0.0"),
        (lambda: plan([], difference=0.0), "expected a difference > 0 in points, got 0.0"),
        (lambda: simulated_power([1.0], 5, 1.0), "got n = 5 and 1 differences"),
        (lambda: simulated_power([1.0, 2.0], 1, 1.0), "got n = 1 and 2 differences"),
    ],
)
def test_impossible_plans_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
