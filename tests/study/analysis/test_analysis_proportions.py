"""Intervals of rates, against scipy and against the examples of the papers that proposed them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixout.study.analysis.stats import newcombe, rates_p, superiority, wilson


def outcomes(yes: int, n: int) -> list[bool]:
    return [True] * yes + [False] * (n - yes)


@given(n=st.integers(1, 200), share=st.floats(0, 1), level=st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_equals_scipy(n, share, level):
    count = round(share * n)
    oracle = stats.binomtest(count, n).proportion_ci(confidence_level=level, method="wilson")
    assert wilson(count, n, level=level) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_independent_rates_as_published(one, other, low, high):
    found = newcombe(outcomes(*one), outcomes(*other), paired=False)
    assert found == pytest.approx((low, high), abs=5e-5)


def test_paired_rates_as_published():
    # Bentur et al. 2009 in M. W. Fagerland et al., Statistical analysis of contingency tables, 2017, chapter 8:
    # 1 both, 1 before only, 7 after only, 12 neither.
    one = [True] + [True] + [False] * 7 + [False] * 12
    other = [True] + [False] + [True] * 7 + [False] * 12
    assert newcombe(one, other, paired=True) == pytest.approx((-0.507, -0.026), abs=5e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30), st.booleans())
def test_the_interval_holds_its_estimate_and_mirrors(pairs, paired):
    one, other = zip(*pairs, strict=True)
    low, high = newcombe(one, other, paired=paired)
    assert -1.0 <= low <= (sum(one) - sum(other)) / len(one) <= high <= 1.0
    assert newcombe(other, one, paired=paired) == pytest.approx((-high, -low), abs=1e-12)


def test_agreement_narrows_a_paired_interval():
    one, other = outcomes(14, 20), outcomes(7, 20)
    paired, apart = newcombe(one, other, paired=True), newcombe(one, other, paired=False)
    assert paired[1] - paired[0] < apart[1] - apart[0]


scores = st.lists(st.integers(0, 6), min_size=1, max_size=12)


@given(scores, scores)
def test_superiority_is_mann_whitney_by_pairs(one, other):
    x, y = np.array(one, dtype=float), np.array(other, dtype=float)
    found = superiority(x, y)
    assert found == pytest.approx(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in one for b in other]))
    assert superiority(y, x) == pytest.approx(1 - found)


def test_exact_tests_of_rates():
    # R. A. Fisher's lady tasting tea, three of four right; McNemar as a sign test of the pairs that differ.
    assert rates_p(outcomes(3, 4), outcomes(1, 4), paired=False) == pytest.approx(34 / 70)
    assert rates_p(outcomes(0, 10), outcomes(5, 10), paired=True) == 0.0625
    assert rates_p(outcomes(3, 6), outcomes(3, 6), paired=True) == 1.0
