"""Scores of predictions against labels, named and computed as GLUE does (scikit-learn and scipy underneath).

================  ==============================================================================
``accuracy``      share of equal pairs; of rows with equal labels, where they have several; of words with equal tags
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
_KNOWN = (*CLASSIFICATION, *REGRESSION, "micro_f1", _ENTITIES)


def of_kind(kind: str, names: Iterable[str] = ()) -> tuple[str, ...]:
    """The metrics of a kind of task, see :attr:`mixout.finetune.tasks.Task.kind`, with classes of these names."""
    if kind == "tags":
        named = all(tag == "O" or tag.startswith(("B-", "I-")) for tag in names)
        return (_ENTITIES, "accuracy") if named else ("accuracy",)
    return {"values": REGRESSION, "classes": CLASSIFICATION, "labels": MULTI_LABEL}[kind]


def compute(
    names: Iterable[str],
    predictions: Any,  # noqa: ANN401  an array, or ragged rows of tags
    labels: Any,  # noqa: ANN401
    *,
    classes: int | None,
    tags: Sequence[str] | None = None,
) -> dict[str, float]:
    """Score predictions, shape ``(n,)`` or ``(n, classes)``, against the truth of the same shape.

    Args:
        names: metrics to compute.
        predictions: of the model.
        labels: the truth.
        classes: number of the task's classes, of which ``labels`` need not hold all; ``None`` for a regression.
        tags: names of the classes, where each row holds those of its words.

    Raises:
        InputError: a name is unknown.
        ValueError: the shapes differ, or there is nothing to score.

    Example:
        >>> compute(["accuracy", "f1"], [1, 1, 0, 0], [1, 0, 0, 0], classes=2)
        {'accuracy': 0.75, 'f1': 0.6666666666666666}
    """
    with needs("hf", "metrics"):
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import f1_score, matthews_corrcoef
    wanted = list(names)
    for name in wanted:
        check(name)
    if tags is not None:
        return {name: _of_words(name, predictions, labels, tags) for name in wanted}
    got, expected = np.asarray(predictions), np.asarray(labels)
    if got.ndim not in (1, 2) or got.shape != expected.shape or not got.size:
        raise ValueError(
            f"expected predictions and labels of the same shape (n,), n > 0, "
            f"got {got.shape} and {expected.shape}; pass one prediction for each label"
        )
    # Over the labels' classes: a stray prediction of another one is a miss, and must not change what is averaged.
    mean = {"average": "binary"} if classes == 2 else {"average": "macro", "labels": np.unique(expected)}
    # The libraries give 0 or nan, and warn.
    silent = _says_nothing(got) or _says_nothing(expected)
    functions: dict[str, Callable[[], Any]] = {
        "accuracy": lambda: (got == expected).reshape(len(got), -1).all(axis=1).mean(),
        "micro_f1": lambda: f1_score(expected.ravel(), got.ravel(), zero_division=0),
        "f1": lambda: f1_score(expected, got, zero_division=0, **mean),
        "matthews": lambda: 0.0 if silent else matthews_corrcoef(expected, got),
        "pearson": lambda: 0.0 if silent else pearsonr(got.astype("float64"), expected.astype("float64")).statistic,
        "spearman": lambda: 0.0 if silent else spearmanr(got, expected).statistic,
    }
    return {name: float(functions[name]()) for name in wanted}


def _of_words(name: str, predictions: Any, labels: Any, tags: Sequence[str]) -> float:  # noqa: ANN401
    rows = [(tuple(got), tuple(true)) for got, true in zip(predictions, labels, strict=True)]
    if name == _ENTITIES:
        sets = [(_entities(got, tuple(tags)), _entities(true, tuple(tags))) for got, true in rows]
        total = sum(len(got) + len(true) for got, true in sets)
        hits = sum(len(got & true) for got, true in sets)
        return float(2 * hits / max(1, total))
    equal = [one == other for got, true in rows for one, other in zip(got, true, strict=True)]
    return float(sum(equal) / len(equal))


@lru_cache(1 << 16)  # choose asks for the same rows a thousand times
def _entities(row: tuple[int, ...], tags: tuple[str, ...]) -> set[tuple[str, int, int]]:
    return entities([tags[one] for one in row])


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, first word and the word after the last of each entity: begun by B-X, or by I-X after anything but X.

    Example:
        >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
        [('LOC', 3, 4), ('LOC', 4, 5), ('PER', 0, 2)]
    """
    found, kind, start = set(), "", 0
    for at, tag in enumerate([*tags, "O"]):
        if kind and tag != f"I-{kind}":
            found.add((kind, start, at))
            kind = ""
        if not kind and tag[:2] in ("B-", "I-"):
            kind, start = tag[2:], at
    return found


def chance(
    metric: str,
    labels: Any,  # noqa: ANN401
    *,
    classes: int | None,
    tags: Sequence[str] | None = None,
) -> float:
    """Score of the best predictor that gives every example the same answer: for accuracy, the majority class.

    That of words gives every word the same tag. Every correlation with a constant is 0.

    Example:
        >>> chance("accuracy", [0, 1, 1, 1], classes=2), chance("matthews", [0, 1, 1, 1], classes=2)
        (0.75, 0.0)
    """
    check(metric)
    if metric in ("matthews", *REGRESSION):
        return 0.0
    if tags is not None:
        rows = ([[tag] * len(row) for row in labels] for tag in {tag for row in labels for tag in row})
        return max(_of_words(metric, constant, labels, tags) for constant in rows)
    expected = np.asarray(labels)
    if expected.ndim == 2:
        # Of F1 the most frequent labels, as many as are best.
        often = np.argsort(-expected.sum(axis=0))
        answers = [np.isin(np.arange(len(often)), often[:count]).astype(int) for count in range(len(often) + 1)]
        answers.append(np.array(Counter(map(tuple, expected.tolist())).most_common(1)[0][0]))
    else:
        answers = list(np.unique(expected))
    constants = (np.broadcast_to(answer, expected.shape) for answer in answers)
    return max(compute([metric], constant, expected, classes=classes)[metric] for constant in constants)


def check(name: str, fitting: Sequence[str] = _KNOWN) -> None:
    """Refuse, by an InputError, a metric that does not exist or is none of those that fit the labels."""
    if name not in _KNOWN:
        raise InputError(f"expected a metric of {', '.join(_KNOWN)}, got {name!r}{nearest(name, _KNOWN)}")
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
