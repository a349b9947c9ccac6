"""Scores of predictions against labels, named and computed as GLUE does (scikit-learn and scipy underneath).

================  ==============================================================================
``accuracy``      share of rows that are right, in all of their labels; for tags: share of words
``f1``            two classes: F1 of class 1; more: unweighted mean over the classes that the labels hold
``matthews``      Matthews correlation of the two labelings
``pearson``       Pearson correlation
``spearman``      Spearman rank correlation
``micro_f1``      several labels a row: F1 over all pairs of a row and a label
``entity_f1``     tags of words, B-X, I-X and O (IOB2): F1 over entities, equal in type, first and last word (seqeval's)
================  ==============================================================================

Predictions that are constant or not finite carry no information, and score 0 in the three correlations, in
silence: a collapsed or diverged restart is a result to be counted, not a reason to lose the run. It knows
nothing of models and logits: predictions are class numbers or values; where a row has several labels, 1 or 0 for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from mixout._names import nearest
from mixout.errors import InputError, needs

with needs("hf", "metrics"):
    import numpy as np

CLASSIFICATION = ("accuracy", "f1", "matthews")
REGRESSION = ("pearson", "spearman")
MULTI_LABEL = ("micro_f1", "accuracy")
_ENTITIES = "entity_f1"
_GROUPS = 100  # of the jackknife
KNOWN = (*CLASSIFICATION, *REGRESSION, "micro_f1", _ENTITIES)


def of_kind(kind: str, names: Iterable[str] = ()) -> tuple[str, ...]:
    """The metrics of a kind of task, see :attr:`mixout.finetune.tasks.Task.kind`, with classes of these names."""
    if kind == "tags":
        iob2 = all(tag == "O" or tag.startswith(("B-", "I-")) for tag in names)
        return (_ENTITIES, "accuracy") if iob2 else ("accuracy",)
    return {"values": REGRESSION, "classes": CLASSIFICATION, "labels": MULTI_LABEL}[kind]


def compute(
    names: Iterable[str],
    predictions: Any,  # noqa: ANN401  an array, or ragged rows of tags
    labels: Any,  # noqa: ANN401
    *,
    classes: int | None,
    tags: Sequence[str] | None = None,
) -> dict[str, float]:
    """Score predictions, shape ``(n,)`` or ``(n, classes)``, against labels of the same shape.

    Args:
        names: metrics to compute, of those that fit the labels.
        predictions: of the model.
        labels: the truth.
        classes: number of the task's classes, of which ``labels`` need not hold all; ``None`` for a regression.
        tags: names of the classes, where each row holds those of its words.

    Example:
        >>> compute(["accuracy", "f1"], [1, 1, 0, 0], [1, 0, 0, 0], classes=2)
        {'accuracy': 0.75, 'f1': 0.6666666666666666}
    """
    with needs("hf", "metrics"):
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import f1_score, matthews_corrcoef
    if tags is not None:
        return {name: _of_words(name, predictions, labels, tags) for name in names}
    preds, expected = np.asarray(predictions), np.asarray(labels)
    # Averaged over the labels' classes: a prediction of another class is a miss, and adds no class to the mean.
    averaging = {"average": "binary"} if classes == 2 else {"average": "macro", "labels": np.unique(expected)}
    # There the libraries give 0 or nan, and warn.
    silent = _says_nothing(preds) or _says_nothing(expected)
    functions: dict[str, Callable[[], Any]] = {
        "accuracy": lambda: (preds == expected).reshape(len(preds), -1).all(axis=1).mean(),
        "micro_f1": lambda: f1_score(expected.ravel(), preds.ravel(), zero_division=0),
        "f1": lambda: f1_score(expected, preds, zero_division=0, **averaging),
        "matthews": lambda: 0.0 if silent else matthews_corrcoef(expected, preds),
        "pearson": lambda: 0.0 if silent else pearsonr(preds.astype("float64"), expected.astype("float64")).statistic,
        "spearman": lambda: 0.0 if silent else spearmanr(preds, expected).statistic,
    }
    return {name: float(functions[name]()) for name in names}


def _of_words(name: str, predictions: Any, labels: Any, tags: Sequence[str]) -> float:  # noqa: ANN401
    rows = [(tuple(predicted), tuple(truth)) for predicted, truth in zip(predictions, labels, strict=True)]
    if name == _ENTITIES:
        sets = [(_entities(predicted, tuple(tags)), _entities(truth, tuple(tags))) for predicted, truth in rows]
        total = sum(len(predicted) + len(truth) for predicted, truth in sets)
        hits = sum(len(predicted & truth) for predicted, truth in sets)
        return float(2 * hits / max(1, total))
    equal = [tag == true_tag for predicted, truth in rows for tag, true_tag in zip(predicted, truth, strict=True)]
    return sum(equal) / len(equal) if equal else float("nan")


@lru_cache(1 << 16)  # ``choose`` scores the same rows a thousand times
def _entities(row: tuple[int, ...], tags: tuple[str, ...]) -> set[tuple[str, int, int]]:
    return entities([tags[number] for number in row])


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, first word and the word after the last of each entity: begun by B-X, or by I-X after anything but X.

    Example:
        >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
        [('LOC', 3, 4), ('LOC', 4, 5), ('PER', 0, 2)]
    """
    spans, entity_type, start = set(), "", 0
    for index, tag in enumerate([*tags, "O"]):
        if entity_type and tag != f"I-{entity_type}":
            spans.add((entity_type, start, index))
            entity_type = ""
        if not entity_type and tag[:2] in ("B-", "I-"):
            entity_type, start = tag[2:], index
    return spans


def pseudo_values(score: Callable[[Any], Any], rows: int) -> tuple[Any, Any]:
    """The score of all rows, and the jackknife's pseudo-values: its standard error is that of their mean.

    One value belongs to a group of rows; there are 100 groups, or as many as rows. ``score`` takes the numbers of rows
    and gives a number, or an array of several. M. H. Quenouille, Biometrika 1956; J. W. Tukey, Annals of Mathematical
    Statistics 1958.

    Example:
        >>> values = np.array([1.0, 2.0, 4.0])
        >>> whole, each = pseudo_values(lambda rows: values[rows].mean(), 3)  # of a mean: the values themselves
        >>> round(float(whole), 3), each.round(3).tolist()
        (2.333, [1.0, 2.0, 4.0])
    """
    every, groups = np.arange(rows), min(rows, _GROUPS)
    without = np.array([score(every[every % groups != group]) for group in range(groups)])
    whole = score(every)
    return whole, groups * whole - (groups - 1) * without


def chance(
    metric: str,
    labels: Any,  # noqa: ANN401
    *,
    classes: int | None,
    tags: Sequence[str] | None = None,
) -> float:
    """Score of the best predictor that gives every example the same answer: for accuracy, the majority class.

    For tags every word gets the same tag. Every correlation with a constant is 0.

    Example:
        >>> chance("accuracy", [0, 1, 1, 1], classes=2), chance("matthews", [0, 1, 1, 1], classes=2)
        (0.75, 0.0)
    """
    if metric in ("matthews", *REGRESSION):
        return 0.0
    if tags is not None:
        rows = ([[tag] * len(row) for row in labels] for tag in {tag for row in labels for tag in row})
        return max(_of_words(metric, constant, labels, tags) for constant in rows)
    expected = np.asarray(labels)
    if expected.ndim == 2:
        # For F1: the most frequent labels, as many as score best.
        ranked = np.argsort(-expected.sum(axis=0))
        answers = [np.isin(np.arange(len(ranked)), ranked[:count]).astype(int) for count in range(len(ranked) + 1)]
        answers.append(np.array(Counter(map(tuple, expected.tolist())).most_common(1)[0][0]))
    else:
        answers = list(np.unique(expected))
    constants = (np.broadcast_to(answer, expected.shape) for answer in answers)
    return max(compute([metric], constant, expected, classes=classes)[metric] for constant in constants)


def check(name: str, fitting: Sequence[str] = KNOWN) -> None:
    """Refuse, by an InputError, a metric that does not exist or is none of those that fit the labels."""
    if name not in KNOWN:
        raise InputError(f"expected a metric of {', '.join(KNOWN)}, got {name!r}{nearest(name, KNOWN)}")
    if name not in fitting:
        kinds = {REGRESSION: "numbers (regression)", CLASSIFICATION: "classes", MULTI_LABEL: "several a row"}
        kind = kinds.get((*fitting,), "tags of words")
        raise InputError(f"expected a metric for labels that are {kind}, got {name!r}; use one of {', '.join(fitting)}")


def _says_nothing(values: np.ndarray[Any, np.dtype[Any]]) -> bool:
    """Whether the values are constant up to the rounding of float64, or not all finite."""
    exact = values.astype("float64")
    if not np.isfinite(exact).all():
        return True
    # 1e-13 of the mean is where scipy itself calls a correlation unreliable, and warns.
    spread: float = np.linalg.norm(exact - exact.mean()).item()
    return spread <= 1e-13 * abs(float(exact.mean()))
