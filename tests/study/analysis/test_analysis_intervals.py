"""Intervals of means, against scipy and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mixout.study.analysis.stats import equivalence_p, mean_interval

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(0.7, 0.05, 12), DRAW.normal(0.66, 0.09, 9)


@pytest.mark.parametrize("level", [0.95, 0.99])
@pytest.mark.parametrize("n", [3, 5, 12])
def test_students_interval(n, level):
    oracle = stats.ttest_1samp(X[:n], 0.0).confidence_interval(level)
    assert mean_interval(X[:n], level=level) == pytest.approx((oracle.low, oracle.high))


def test_welchs_interval():
    oracle = stats.ttest_ind(X, Y, equal_var=False).confidence_interval()
    assert mean_interval(X, Y) == pytest.approx((oracle.low, oracle.high))


@pytest.mark.parametrize("scale", [2.0**-300, 2.0**-200, 2.0**200, 2.0**332])
@pytest.mark.parametrize("samples", [(X,), (X, Y)])
def test_an_interval_scales_with_the_scores(samples, scale):
    """By powers of two exactly, up to the largest score that a run can have: a perplexity may be 1e90."""
    own = mean_interval(*(scale * sample for sample in samples))
    assert own == tuple(scale * end for end in mean_interval(*samples))
    other = samples[1] if len(samples) > 1 else None
    margin = equivalence_p(X, other, 0.1)
    assert equivalence_p(scale * X, None if other is None else scale * other, scale * 0.1) == margin


def test_numbers_whose_squares_are_zero_have_no_interval():
    assert mean_interval(2.0**-600 * X) is None


@pytest.mark.parametrize("samples", [(X[:2],), (X, Y[:2]), (np.full(20, 0.3),), (np.full(3, 0.1), np.full(4, 0.2))])
def test_no_interval_of_too_little(samples):
    assert mean_interval(*samples) is None
    assert equivalence_p(samples[0], samples[1] if len(samples) > 1 else None, 1.0) is None


def test_it_covers_from_three_values_on():
    for n in (3, 5, 10):
        drawn = np.random.default_rng(n).normal(1.0, 2.0, (1000, n))
        assert 0.93 <= np.mean([low <= 1.0 <= high for low, high in map(mean_interval, drawn)]) <= 0.97


@pytest.mark.parametrize("paired", [True, False])
def test_equivalence_is_the_smaller_interval_within_the_margin(paired):
    # Two one-sided tests at 5 % succeed where the 90 % interval lies within the margin (Schuirmann 1987).
    one, other = (X[:9] - Y, None) if paired else (X, Y)
    low, high = mean_interval(one, other, level=0.9)
    edge = max(-low, high)
    assert equivalence_p(one, other, edge * 1.001) < 0.05 < equivalence_p(one, other, edge * 0.999)


def test_equivalence_is_rarely_shown_where_it_does_not_hold():
    draw = np.random.default_rng(0)
    found = [equivalence_p(draw.normal(1.0, 0.5, 6), None, 1.0) for _ in range(1000)]
    assert 0.03 <= np.mean(np.array(found) <= 0.05) <= 0.07
