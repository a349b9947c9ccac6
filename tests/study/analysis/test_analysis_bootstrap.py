"""BCa against scipy with the same resamples; degenerate data; coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mixout.study.analysis import bootstrap
from mixout.study.analysis.bootstrap import bca, percentile


def mean(x):
    return x.mean(-1)


def gap(x, y):
    return x.mean(-1) - y.mean(-1)


SAMPLES = {
    "normal": np.random.default_rng(1).normal(size=20),
    "skewed": np.random.default_rng(2).lognormal(size=13),
    "two heaps": np.array([0.0] * 7 + [56.97, 58.18, 58.8, 59.31, 60.63, 61.07, 63.31]),
    "ties": np.array([47.29] * 3 + [52.71] * 9 + [65.7, 68.2, 73.65]),
    "three": np.array([1.0, 2.0, 4.0]),
}
# Multiples of 1/64 add up without rounding. scipy counts resamples below the estimate with rounding errors, so that it
# takes some of those that equal the estimate for smaller or larger ones; ours does not, and only then differs.
SAMPLES = {name: np.round(64 * sample) / 64 for name, sample in SAMPLES.items()}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("level", [0.95, 0.9])
def test_one_sample_equals_scipy(name, level):
    low, high = bca([SAMPLES[name]], mean, level=level, seed=3)
    oracle = stats.bootstrap(
        (SAMPLES[name],), np.mean, confidence_level=level, rng=np.random.default_rng(3), n_resamples=9999
    ).confidence_interval
    assert (low, high) == pytest.approx((oracle.low, oracle.high), rel=1e-9)


def test_two_samples_equal_scipy():
    x, y = SAMPLES["skewed"], SAMPLES["normal"]
    low, high = bca([x, y], gap, seed=4)
    # scipy resamples all of the first sample and then all of the second, as ours does within one batch.
    oracle = stats.bootstrap(
        (x, y), lambda a, b, axis: a.mean(axis) - b.mean(axis), rng=np.random.default_rng(4), vectorized=True
    ).confidence_interval
    assert (low, high) == pytest.approx((oracle.low, oracle.high), rel=1e-9)


def test_resamples_that_equal_the_estimate_but_for_rounding_count_as_equal():
    scores = np.array([1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 9.0])
    exact, rounded = bca([scores], mean), bca([scores * 0.1], mean)
    assert np.array(rounded) * 10 == pytest.approx(np.array(exact), rel=1e-12)


def test_batches_bound_the_memory_and_not_the_result(monkeypatch):
    whole = bca([SAMPLES["skewed"]], mean, seed=3)
    monkeypatch.setattr(bootstrap, "_ENTRIES_AT_ONCE", 13 * 1000)
    assert bca([SAMPLES["skewed"]], mean, seed=3) == whole


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]])
def test_one_or_two_values_have_no_interval(values):
    assert bca([np.array(values)], mean) == (None, None)
    assert bca([np.arange(9.0), np.array(values)], gap) == (None, None)
    assert percentile([np.array(values)], lambda drawn: drawn[0].mean(-1)) == (None, None)


@pytest.mark.parametrize("value", [0.0, 0.527, 81.22, -0.1])
@pytest.mark.parametrize("n", [3, 7, 20])
def test_equal_values_have_a_point(value, n):
    low, high = bca([np.full(n, value)], mean)
    assert low == high == pytest.approx(value, abs=1e-12)


def test_one_value_among_equal_ones_widens_to_its_side():
    low, high = bca([np.array([0.0] * 19 + [4.64])], mean)
    assert 0.0 <= low <= 4.64 / 20 <= high


def test_the_seed_decides():
    x = SAMPLES["normal"]
    assert bca([x], mean, seed=1) == bca([x], mean, seed=1) != bca([x], mean, seed=2)


def test_strata_are_resampled_within_themselves():
    # The mean over two constant strata cannot vary, though the pooled values do.
    strata = [np.zeros(5), np.full(5, 10.0)]
    low, high = percentile(strata, lambda drawn: np.concatenate(drawn, axis=-1).mean(-1))
    assert (low, high) == (5.0, 5.0)


def test_rows_of_a_stratum_stay_together():
    x = np.arange(6.0)
    low, high = percentile(
        [np.stack([x + 2.0, x], axis=1)], lambda drawn: (drawn[0][..., 0] - drawn[0][..., 1]).mean(-1)
    )
    assert low == high == 2.0


def test_coverage_of_the_documented_size():
    draw, hits, studies = np.random.default_rng(0), {4: 0, 10: 0}, 400
    for n in hits:
        for seed in range(studies):
            low, high = bca([draw.normal(size=n)], mean, seed=seed, resamples=499)
            hits[n] += low <= 0.0 <= high
    assert hits[4] / studies == pytest.approx(0.80, abs=0.05)
    assert hits[10] / studies == pytest.approx(0.91, abs=0.035)
