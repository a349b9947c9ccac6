"""Metrics against their definitions, written out by hand."""

from __future__ import annotations

import builtins
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixout.errors import InputError, MissingExtraError
from mixout.finetune import metrics

CLASSES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


def f1_of(cls, got, truth):
    hits = sum(g == t == cls for g, t in zip(got, truth, strict=True))
    total = got.count(cls) + truth.count(cls)
    return 2 * hits / total if total else 0.0


def correlation(x, y):
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    bottom = math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))
    return top / bottom if bottom else 0.0


def ranks(x):
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


@settings(deadline=None)  # the first call imports scikit-learn or scipy
@given(CLASSES)
def test_classification_metrics_agree_with_their_definitions(pairs):
    got, truth = (list(side) for side in zip(*pairs, strict=True))
    classes = 4 if max(got + truth) > 1 else 2
    scores = metrics.compute(["accuracy", "f1"], got, truth, classes=classes)
    assert scores["accuracy"] == pytest.approx(sum(g == t for g, t in pairs) / len(pairs))
    present = sorted(set(truth))
    if classes == 2:
        assert scores["f1"] == pytest.approx(f1_of(1, got, truth))
    else:
        assert scores["f1"] == pytest.approx(sum(f1_of(c, got, truth) for c in present) / len(present))


@settings(deadline=None)  # the first call imports scikit-learn or scipy
@given(st.integers(1, 4), st.integers(1, 12), st.data())
def test_micro_f1_agrees_with_its_definition_for_any_number_of_labels(width, rows, data):
    cells = st.lists(st.lists(st.integers(0, 1), min_size=width, max_size=width), min_size=rows, max_size=rows)
    got, truth = data.draw(cells), data.draw(cells)
    flat = [[cell for row in side for cell in row] for side in (got, truth)]
    assert metrics.compute(["micro_f1"], got, truth, classes=width)["micro_f1"] == pytest.approx(f1_of(1, *flat))
    constant = (f1_of(1, [*answer] * rows, flat[1]) for answer in itertools.product((0, 1), repeat=width))
    assert metrics.chance("micro_f1", truth, classes=width) == pytest.approx(max(constant))


@settings(deadline=None)  # the first call imports scikit-learn or scipy
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_matthews_of_two_classes_is_the_correlation_of_the_indicators(pairs):
    got, truth = (list(side) for side in zip(*pairs, strict=True))
    assert metrics.compute(["matthews"], got, truth, classes=2)["matthews"] == pytest.approx(
        correlation(got, truth), abs=1e-12
    )


@settings(deadline=None)  # the first call imports scikit-learn or scipy
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=40))
def test_correlations_agree_with_their_definitions(pairs):
    got, truth = ([value / 8 for value in side] for side in zip(*pairs, strict=True))
    scores = metrics.compute(["pearson", "spearman"], np.array(got), truth, classes=None)
    assert scores["pearson"] == pytest.approx(correlation(got, truth), abs=1e-9)
    assert scores["spearman"] == pytest.approx(correlation(ranks(got), ranks(truth)), abs=1e-9)


@pytest.mark.parametrize(
    "predictions",
    [
        np.full(5, 0.1, dtype=np.float32),
        np.array([0.1, 0.2, np.nan, 0.3, 0.4]),
        np.array([0.1, 0.2, np.inf, 0.3, 0.4]),
        1e6 + np.array([0, 1e-10, 0, 1e-10, 0]),
    ],
    ids=["constant", "nan", "inf", "constant up to rounding"],
)
@pytest.mark.parametrize("name", ["pearson", "spearman", "matthews"])
def test_predictions_that_say_nothing_score_zero_in_silence(name, predictions):
    labels = [0, 1, 0, 1, 1] if name == "matthews" else [0.5, 1.0, 2.0, 3.0, 4.0]
    assert metrics.compute([name], predictions, labels, classes=None) == {name: 0.0}


@pytest.mark.parametrize("name", ["pearson", "spearman", "matthews"])
def test_constant_labels_and_single_examples_score_zero(name):
    assert metrics.compute([name], [0, 1, 1], [1, 1, 1], classes=2) == {name: 0.0}
    assert metrics.compute([name], [1], [1], classes=2) == {name: 0.0}


def test_small_but_real_differences_count():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    assert metrics.compute(["pearson"], 1e-9 * values, values, classes=None)["pearson"] == pytest.approx(1.0)


def test_chance_is_the_best_constant_answer():
    assert metrics.chance("accuracy", [0, 0, 1, 2], classes=3) == 0.5
    # 279 of MRPC's 408 dev pairs are positive: precision .684, recall 1.
    assert metrics.chance("f1", [1] * 279 + [0] * 129, classes=2) == pytest.approx(2 * 279 / (279 + 408))
    assert metrics.chance("f1", [0, 0, 0, 1], classes=2) == pytest.approx(2 * 0.25 / 1.25)
    assert metrics.chance("f1", [0, 0, 1, 2], classes=3) == pytest.approx((2 * 2 / 6) / 3)
    assert all(metrics.chance(name, [0, 1, 1], classes=2) == 0.0 for name in ("matthews", "pearson", "spearman"))


def test_the_task_decides_what_f1_is_not_the_data():
    # Three classes, of which the dev set holds two: macro, with a stray prediction of the third and without.
    truth = [0, 0, 1, 1]
    for stray in (0, 2):
        got = [0, stray, 1, 1]
        expected = (f1_of(0, got, truth) + f1_of(1, got, truth)) / 2
        assert metrics.compute(["f1"], got, truth, classes=3)["f1"] == pytest.approx(expected)
    assert metrics.compute(["f1"], truth, truth, classes=3)["f1"] == 1.0
    assert metrics.chance("f1", truth, classes=3) == pytest.approx((2 * 2 / 6) / 2)
    assert metrics.chance("f1", truth, classes=2) == pytest.approx(2 * 2 / 6)


def test_names_keep_their_order():
    assert list(metrics.compute(["f1", "accuracy"], [0, 1], [0, 1], classes=2)) == ["f1", "accuracy"]


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(InputError, match=r"accuracy, f1, matthews, .* got 'Accuracy!'; did you mean 'accuracy'\?"):
        metrics.check("Accuracy!")


def test_a_metric_for_the_other_kind_of_labels():
    metrics.check("f1", metrics.CLASSIFICATION)
    metrics.check("pearson", metrics.REGRESSION)
    with pytest.raises(InputError, match=r"labels that are classes, got 'pearson'; use one of accuracy, f1, matthews"):
        metrics.check("pearson", metrics.CLASSIFICATION)
    with pytest.raises(InputError, match=r"numbers \(regression\), got 'f1'; use one of pearson, spearman"):
        metrics.check("f1", metrics.REGRESSION)
    with pytest.raises(InputError, match=r"labels that are tags of words, got 'f1'; use one of accuracy"):
        metrics.check("f1", metrics.of_kind("tags", ["NOUN", "O"]))


@pytest.mark.parametrize(("rows", "metric"), [(80, "accuracy"), (80, "matthews"), (450, "f1"), (450, "pearson")])
def test_the_standard_error_is_that_of_other_samples(rows, metric):
    """Against the spread of the score over fresh samples of the same law, also with groups of rows."""
    random = np.random.default_rng(0)

    def sample():
        truth = random.random(rows) < 0.3
        return (truth ^ (random.random(rows) < 0.2)).astype(int), truth.astype(int)

    def score(got, truth):
        return metrics.compute([metric], got, truth, classes=2)[metric]

    spread = np.std([score(*sample()) for _ in range(300)])
    found = []
    for _ in range(5):
        got, truth = sample()
        whole, values = metrics.pseudo_values(lambda kept, got=got, truth=truth: score(got[kept], truth[kept]), rows)
        assert whole == score(got, truth)
        assert len(values) == min(rows, 100)
        found.append(values.std(ddof=1) / math.sqrt(len(values)))
    assert np.mean(found) == pytest.approx(spread, rel=0.12)


@pytest.mark.parametrize(
    ("module", "name"), [("sklearn.metrics", "f1"), ("sklearn.metrics", "matthews"), ("scipy.stats", "pearson")]
)
def test_without_the_extra(monkeypatch, module, name):
    real = builtins.__import__

    def absent(wanted, *args, **kwargs):
        if wanted == module:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(wanted, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtraError, match=r'pip install "mixout\[hf\]"'):
        metrics.compute([name], [0, 1], [0, 1], classes=2 if name == "f1" else None)
