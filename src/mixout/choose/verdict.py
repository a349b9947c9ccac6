"""What a search has found: the expected score on new data, what cannot be told apart, and one sentence; as a report.

The expected score is nested: each judged part is scored by the candidate that is chosen without it. Its interval is
over rows: Wilson's for an accuracy, else the jackknife's with Student's t, which no seed can change. So is that of the
gain, where both answer the same rows: for an accuracy it is the t interval of paired differences (B. Efron and
R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11). Differences between candidates are paired over
parts and repeats. Their t interval is widened by sqrt(1 + n/4) for n of them, since two runs share most of their
training rows: C. Nadeau and Y. Bengio, Inference for the generalization error, Machine Learning 52 (2003) 239-281.

The report is ``report.md``; every run, ``choose.csv``; a figure of score over learning rate, ``choose.png``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from mixout._names import count
from mixout.choose.parts import PARTS
from mixout.choose.search import PLAIN, USEFUL, Candidate, Search
from mixout.errors import needs
from mixout.finetune import card, metrics
from mixout.finetune.defaults import in_short
from mixout.finetune.record import write_atomically
from mixout.finetune.tasks import Task
from mixout.study.analysis.stats import SMALLEST, mean_interval, wilson
from mixout.study.analysis.words import in_words
from mixout.study.report.canvas import looks, style

with needs("demo", "figures"):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

FEW = "too few runs to compare"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def points(self, unit: str = " points") -> str:
        """As a difference in points."""
        value, low, high = (f"{100 * number:+.1f}" for number in (self.value, self.low, self.high))
        return f"{value}{unit} ({low} to {high})"


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What a choice is worth on rows that had no part in it."""

    value: Estimate  # the score on new data
    default: float  # of the default on the same rows
    gain: Estimate  # how much higher the first is
    rows: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate in the table of what was tried."""

    candidate: Candidate
    runs: int
    seconds: float
    mean: float  # the best of several is too good to be expected again
    difference: Estimate | None  # from the chosen one over the runs of both; None with fewer than three, and of itself
    verdict: str  # in words


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and what that is worth."""

    method: str
    learning_rate: float
    metric: str
    expected: Estimate | None  # score on new data of a model that is chosen so; None where no part was judged
    default: float | None  # score of the default on the same rows
    gain: Estimate | None  # how much higher it is than that of the default
    judged_rows: int
    table: tuple[Row, ...]  # everything that was tried, the chosen one first
    alike: tuple[str, ...]  # what cannot be told apart from the chosen one
    runs: int  # without the final training
    seconds: float
    dev: Mapping[str, float]  # scores of the final model on the dev rows, where there are some; not used before
    model: Path
    sentence: str  # how the choice compares with the default
    warning: str = ""  # where the final training has hardly learned


def expected(
    search: Search, finalists: Sequence[Candidate], task: Task, parts: Sequence[Sequence[int]]
) -> Worth | None:
    """The nested score beside the default's.

    None without rows, and where too few parts were judged: the choice, the first of ``finalists``, would have been the
    default without any of them.
    """
    chosen = search.left_out(finalists)
    if not chosen or (finalists[0] != search.default and set(chosen.values()) == {search.default}):
        return None
    repeats = search.repeats([*chosen], finalists)
    truth = _array(task.train.label[row] for part in chosen for row in parts[part])

    def answers(who: Callable[[int], Candidate]) -> list[NDArray[np.object_]]:
        return [
            _array(answer for part in chosen for answer in search.runs[who(part)][part, repeat].predictions)
            for repeat in repeats
        ]

    nested, plain = answers(chosen.__getitem__), answers(lambda _: search.default)

    def score(of: list[NDArray[np.object_]], rows: NDArray[np.int64]) -> float:
        true = truth[rows].tolist()
        scores = [
            metrics.compute([task.metric], run[rows].tolist(), true, classes=task.classes, tags=task.tags) for run in of
        ]
        return math.fsum(values[task.metric] for values in scores) / len(scores)

    def estimate(value: float, pseudo: NDArray[np.float64], lowest: float, highest: float) -> Estimate:
        low, high = mean_interval(pseudo) or (value, value)
        half = (high - low) / 2
        return Estimate(value=value, low=max(lowest, value - half), high=min(highest, value + half))

    (value, nested_values), (default, default_values) = (
        metrics.pseudo_values(partial(score, of), len(truth)) for of in (nested, plain)
    )
    lowest = -1.0 if task.metric in (*metrics.REGRESSION, "matthews") else 0.0
    on_new_data = estimate(value, nested_values, lowest, 1.0)
    if task.metric == "accuracy":
        low, high = wilson(round(value * len(truth)), len(truth))
        on_new_data = Estimate(value=value, low=low, high=high)
    gain = estimate(value - default, nested_values - default_values, lowest - 1, 1 - lowest)
    return Worth(value=on_new_data, default=default, gain=gain, rows=len(truth))


def _array(rows: Iterable[Any]) -> NDArray[np.object_]:
    """Rows to be picked from, which may be tuples of any length."""
    return np.fromiter(rows, dtype=object)


def table(search: Search, chosen: Candidate) -> tuple[Row, ...]:
    """Everything that was tried, the chosen one first, then the rest by how much was run of it and how it scored."""
    rows = []
    for candidate, splits in search.runs.items():
        difference = _difference(search, candidate, chosen)
        verdict = FEW if difference is None else "cannot be told apart"
        if difference is not None and not difference.low <= 0 <= difference.high:
            verdict = "lower" if difference.high < 0 else "higher"
        rows.append(
            Row(
                candidate=candidate,
                runs=len(splits),
                seconds=math.fsum(trained.seconds for trained in splits.values()),
                mean=search.mean(candidate, list(splits)),
                difference=difference,
                verdict="chosen" if candidate == chosen else verdict,
            )
        )
    return tuple(sorted(rows, key=lambda row: (row.candidate != chosen, -row.runs, -row.mean)))


def sentence(metric: str, tried: Sequence[Row], default: Candidate, worth: Worth | None, reason: str = "") -> str:
    """How the choice, the first of what was tried, compares with the default, and what to expect.

    ``reason``: why the default is kept, if not because nothing else was better.
    """
    chosen, is_default = tried[0].candidate, tried[0].candidate == default
    usual = "nothing else was clearly better" if len(tried) > 1 else "the budget was too small to try anything else"
    start = f"The default, {default}, is kept: {reason or usual}" if is_default else f"{chosen} was chosen"
    if worth is None:
        return f"{start}. The budget was too small to say what to expect on new data; give a larger one."
    value, gain = worth.value, worth.gain
    expect = f"Expect {metric} {value.value:.3f} on new data (95 % interval {value.low:.3f} to {value.high:.3f})"
    if is_default:
        return f"{start}. {expect}."
    if gain.low > 0:
        return f"{start}. {expect}: better than the default, {default}, by {gain.points()}."
    return f"{start}. {expect}: not shown to be better than the default, {default}; the difference is {gain.points()}."


def _difference(search: Search, candidate: Candidate, chosen: Candidate) -> Estimate | None:
    """The mean over splits where both have a score; Student's interval, widened for the parts' common training rows."""
    runs, splits = search.runs, search.common([candidate, chosen])
    with_nan = np.array([runs[candidate][split].score - runs[chosen][split].score for split in splits])
    differences = with_nan[np.isfinite(with_nan)]
    if candidate == chosen or len(differences) < SMALLEST:
        return None
    mean = float(differences.mean())
    low, high = mean_interval(differences) or (mean, mean)  # the same difference in all
    half_width = (high - low) / 2 * math.sqrt(1 + len(differences) / (PARTS - 1))
    return Estimate(value=mean, low=mean - half_width, high=mean + half_width)


def result(choice: Choice) -> str:
    """The sentence, and the scores that are worth something: for report and model card."""
    paragraphs = [choice.sentence]
    if choice.expected is not None and choice.gain is not None:
        by_default = choice.gain.low == choice.gain.high == 0
        who = "the default" if by_default else "the candidate that is chosen without it"
        paragraphs.append(
            f"The expected score is from {choice.judged_rows} training rows in parts. Each part was answered by "
            f"{who}, trained on the other rows. The default has "
            f"{choice.metric} {choice.default:.3f} on the same rows. The model itself is trained on all rows."
        )
    if choice.dev:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in choice.dev.items())
        paragraphs.append(f"On the dev rows, which were not used before: {scores}.")
    if choice.warning:
        paragraphs.append(f"**The final training failed: {choice.warning}.**")
    return "\n\n".join(paragraphs)


def text(choice: Choice) -> str:
    """The report, Markdown."""
    values = {"count": count, "in_words": in_words, "in_short": in_short, "useful": USEFUL, "few": FEW}
    return card.rendered("mixout.choose", "report.md.j2", choice=choice, result=result(choice), **values)


def write(choice: Choice, search: Search, place: Path) -> None:
    """Write the report, the table of runs, and the figure."""
    write_atomically(place / "report.md", text(choice))
    rows = [
        (candidate.method, candidate.rate, part, repeat, trained.score, round(trained.seconds, 2))
        for candidate, splits in search.runs.items()
        for (part, repeat), trained in splits.items()
    ]
    table = pandas.DataFrame(rows, columns=["method", "learning_rate", "part", "repeat", choice.metric, "seconds"])
    write_atomically(place / "choose.csv", table.to_csv(index=False, lineterminator="\n"))
    _figure(choice, place / "choose.png")


def _figure(choice: Choice, path: Path) -> None:
    """One line per method: mean score over learning rate; larger points have more runs."""
    with style():
        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for method, look in looks([row.candidate.method for row in choice.table], PLAIN).items():
            rows = sorted(
                (row for row in choice.table if row.candidate.method == method), key=lambda row: row.candidate.rate
            )
            rates, means = [row.candidate.rate for row in rows], [row.mean for row in rows]
            axes.plot(rates, means, color=look.color, linestyle=look.line, marker=look.mark, label=method)
            axes.scatter(rates, means, [20.0 * row.runs for row in rows], color=look.color, marker=look.mark)
        axes.set(xscale="log", xlabel="learning rate", ylabel=f"mean {choice.metric} (larger points: more runs)")
        ticks = sorted({row.candidate.rate for row in choice.table if row.candidate.method == PLAIN})
        axes.set_xticks(ticks, [in_short(rate) for rate in ticks])
        axes.minorticks_off()
        axes.legend()
        figure.savefig(path, dpi=150, metadata={"Software": None})
