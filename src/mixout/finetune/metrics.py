"""Scores of predictions against labels, named and computed as GLUE does (scikit-learn and scipy underneath).

================  ==============================================================================
``accuracy``      share of equal pairs
``f1``            two classes: F1 of class 1; more: unweighted mean over the classes that the labels hold
``matthews``      Matthews correlation of the two labelings
``pearson``       Pearson correlation
``spearman``      Spearman rank correlation
================  ==============================================================================

Predictions that are constant or not finite carry no information, and score 0 in the three correlations, in
silence: a collapsed or diverged restart is a result to be counted, not a reason to lose the run. It knows
nothing of models and logits: predictions are class numbers or values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from mixout._names import nearest
from mixout.errors import InputError
from mixout.finetune.extras import needs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Values = np.ndarray[Any, np.dtype[Any]]

CLASSIFICATION = ("accuracy", "f1", "matthews")
REGRESSION = ("pearson", "spearman")


def compute(
    names: Iterable[str], predictions: npt.ArrayLike, labels: npt.ArrayLike, *, classes: int | None
) -> dict[str, float]:
    """Score predictions: class numbers or values, shape ``(n,)``, against the truth of the same shape.

    Args:
        names: metrics to compute.
        predictions: of the model.
        labels: the truth.
        classes: number of the task's classes, of which ``labels`` need not hold all; ``None`` for a regression.

    Raises:
        InputError: a name is unknown.
        ValueError: the shapes differ, or there is nothing to score.

    Example:
        >>> compute(["accuracy", "f1"], [1, 1, 0, 0], [1, 0, 0, 0], classes=2)
        {'accuracy': 0.75, 'f1': 0.6666666666666666}
    """
    with needs("hf", "metrics"):
        import numpy as np
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import f1_score, matthews_corrcoef
    got, expected = np.asarray(predictions), np.asarray(labels)
    if got.ndim != 1 or got.shape != expected.shape or not got.size:
        raise ValueError(
            f"expected predictions and labels of the same shape (n,), n > 0, "
            f"got {got.shape} and {expected.shape}; pass one prediction for each label"
        )
    # Over the labels' classes: a stray prediction of another one is a miss, and must not change what is averaged.
    mean = {"average": "binary"} if classes == 2 else {"average": "macro", "labels": np.unique(expected)}
    # The libraries give 0 or nan, and warn.
    silent = _says_nothing(got) or _says_nothing(expected)
    functions: dict[str, Callable[[], Any]] = {
        "accuracy": lambda: (got == expected).mean(),
        "f1": lambda: f1_score(expected, got, zero_division=0, **mean),
        "matthews": lambda: 0.0 if silent else matthews_corrcoef(expected, got),
        "pearson": lambda: 0.0 if silent else pearsonr(got.astype("float64"), expected.astype("float64")).statistic,
        "spearman": lambda: 0.0 if silent else spearmanr(got, expected).statistic,
    }
    wanted = list(names)
    for name in wanted:
        check(name)
    return {name: float(functions[name]()) for name in wanted}


def chance(metric: str, labels: npt.ArrayLike, *, classes: int | None) -> float:
    """Score of the best predictor that gives every example the same answer: for accuracy, the majority class.

    Every correlation with a constant is 0.

    Example:
        >>> chance("accuracy", [0, 1, 1, 1], classes=2), chance("matthews", [0, 1, 1, 1], classes=2)
        (0.75, 0.0)
    """
    if metric not in ("accuracy", "f1"):
        check(metric)
        return 0.0
    with needs("hf", "metrics"):
        import numpy as np
    expected = np.asarray(labels)
    constants = (np.full_like(expected, answer) for answer in np.unique(expected))
    return max(compute([metric], constant, expected, classes=classes)[metric] for constant in constants)


def check(name: str, *, regression: bool | None = None) -> None:
    """Refuse, by an InputError, a metric that does not exist or does not fit the labels, if their kind is known."""
    known = (*CLASSIFICATION, *REGRESSION)
    if name not in known:
        raise InputError(f"expected a metric of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    fitting = known if regression is None else REGRESSION if regression else CLASSIFICATION
    if name not in fitting:
        kind = "numbers (regression)" if regression else "classes"
        raise InputError(f"expected a metric for labels that are {kind}, got {name!r}; use one of {', '.join(fitting)}")


def _says_nothing(values: Values) -> bool:
    """Whether the values are constant up to the rounding of float64, or not all finite."""
    import numpy as np

    exact = values.astype("float64")
    if not np.isfinite(exact).all():
        return True
    # 1e-13 of the mean is where scipy itself calls a correlation unreliable, and warns.
    spread: float = np.linalg.norm(exact - exact.mean()).item()
    return spread <= 1e-13 * abs(float(exact.mean()))
