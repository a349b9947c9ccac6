"""Tests between samples, against scipy and against enumeration of every rearrangement."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixout.study.analysis import stats as module
from mixout.study.analysis.stats import exchanged_labels, holm, sign_flips, smallest_p

few = st.lists(st.integers(-5, 5), min_size=1, max_size=8)


@given(few)
def test_sign_flips_by_enumeration(values):
    reached = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) >= abs(sum(values))
        for signs in product((1, -1), repeat=len(values))
    ]
    assert sign_flips(np.array(values) / 10) == pytest.approx(np.mean(reached))


@given(few, few)
def test_exchanged_labels_by_enumeration(one, other):
    pooled, m, n = [*one, *other], len(one), len(other)

    def distance(chosen) -> int:
        inside = sum(pooled[i] for i in chosen)
        return abs(inside * (m + n) - m * sum(pooled))  # in whole numbers: no rounding

    reached = [distance(chosen) >= distance(range(m)) for chosen in combinations(range(m + n), m)]
    assert exchanged_labels(np.array(one) / 10, np.array(other) / 10) == pytest.approx(np.mean(reached))


def test_exact_tests_equal_scipy():
    draw = np.random.default_rng(0)
    x, y = draw.normal(0.6, 1, 9), draw.normal(0, 1, 9)
    paired = stats.permutation_test((x - y,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flips(x - y) == pytest.approx(paired.pvalue)
    x, y = x[:7], y[:6]
    apart = stats.permutation_test((x, y), lambda a, b: a.mean() - b.mean(), n_resamples=np.inf)
    # scipy doubles the smaller tail; ours counts both, which is the same where the smaller tail mirrors.
    greater = stats.permutation_test(
        (x, y), lambda a, b: abs(a.mean() - b.mean()), n_resamples=np.inf, alternative="greater"
    )
    assert exchanged_labels(x, y) == pytest.approx(greater.pvalue)
    assert exchanged_labels(x, y) == pytest.approx(apart.pvalue, abs=0.05)


def test_monte_carlo_agrees_with_exact(monkeypatch):
    draw = np.random.default_rng(1)
    x, y = draw.normal(0.5, 1, 12), draw.normal(0, 1, 12)
    exact = sign_flips(x - y), exchanged_labels(x[:7], y[:7])
    monkeypatch.setattr(module, "EXACT_UP_TO", 1)
    random = sign_flips(x - y), exchanged_labels(x[:7], y[:7])
    assert random == pytest.approx(exact, abs=0.015)
    assert random != exact


def test_monte_carlo_repeats_itself_and_is_never_zero():
    differences = np.random.default_rng(2).normal(3.0, 1.0, 40)
    assert sign_flips(differences) == sign_flips(differences) == smallest_p(40) == 1 / 10_000
    x, y = np.random.default_rng(3).normal(size=(2, 20))
    assert exchanged_labels(x, y) == exchanged_labels(x, y)
    assert exchanged_labels(x + 9, y) == smallest_p(20, 20) == 1 / 10_000


@pytest.mark.parametrize("family", [1, 99, 500, 3000])
@pytest.mark.parametrize("n", [12, 15, 16, 17, 40])
def test_a_family_of_any_size_can_be_shown_with_restarts_enough(family, n):
    """Where complete separation has a corrected p below 0.05 with few restarts, it has one with more."""
    least = sign_flips(np.ones(n), family=family)
    assert least == pytest.approx(smallest_p(n, family=family), rel=1.0)  # random flips may hit the farthest once more
    assert family * least <= max(0.05, family * 2.0 ** (2 - n))  # twice the exact one


def test_equal_scores_show_nothing():
    assert sign_flips(np.zeros(20)) == 1.0
    assert exchanged_labels(np.full(20, 81.22), np.full(14, 81.22)) == 1.0
    assert exchanged_labels(np.full(3, 0.1), np.full(3, 0.1)) == 1.0


@pytest.mark.parametrize("n", range(1, 9))
def test_the_smallest_p_is_reached_by_complete_separation(n):
    assert smallest_p(n) == sign_flips(np.arange(1.0, n + 1))
    for m in range(1, 7):
        one, other = np.geomspace(100, 101, n), np.geomspace(1, 2, m)
        assert smallest_p(n, m) == pytest.approx(exchanged_labels(one, other))


def test_holm_as_written_in_the_paper():
    # S. Holm 1979: the i-th smallest p is compared with alpha / (m - i + 1) until one is not below.
    p, alpha = [0.012, 0.04, 0.03, 0.005, 0.5], 0.05
    rejected, order = set(), sorted(range(5), key=lambda i: p[i])
    for rank, i in enumerate(order):
        if p[i] > alpha / (5 - rank):
            break
        rejected.add(i)
    assert {i for i, corrected in enumerate(holm(p)) if corrected <= alpha} == rejected
    assert holm([]) == []
    assert holm([0.2]) == [0.2]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p):
    corrected = holm(p)
    for one, other in zip(p, corrected, strict=True):
        assert one <= other <= min(1.0, len(p) * one) or other == pytest.approx(one)
    by_p = [c for _, c in sorted(zip(p, corrected, strict=True))]
    assert by_p == sorted(by_p)
