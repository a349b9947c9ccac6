"""What was asked: the data behind the scores, three examples, and those on which restarts disagree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixout.study.analysis.cells import Cell
from mixout.study.analysis.predictions import Instability
from mixout.study.analysis.runs import Run, if_one
from mixout.study.analysis.words import count
from mixout.study.report.charts import Runs
from mixout.study.report.page import Examples, Pairs
from mixout.study.report.wording import Labels, Scores, number

_LETTERS, _EXAMPLES, _FLIPS, _METHODS, _CLASSES = 280, 3, 5, 6, 12

KINDS = {
    "plain": "fine-tuning without a method",
    "dropout": "activations are dropped at random, the usual practice",
    "mixout": "random columns of the weights are replaced by the pretrained ones in each step",
    "mixconnect": "single weights, at random, are replaced by the pretrained ones in each step",
    "dropconnect": "single weights, at random, are dropped in each step",
    "gradient_mask": "mixout's mask on the gradient alone, without a pull to the pretrained weights",
    "anchor_decay": "weight decay towards the pretrained weights",
    "output_anchor": "a penalty keeps the answers near those of the pretrained model",
}


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the runs of one task were trained and tested on."""

    source: str = ""  # where it is from, in words
    train_size: int | None = None  # rows trained on; None where unknown, or where runs differ
    dev_size: int | None = None  # rows tested on
    labels: tuple[str, ...] | None = None  # names of the classes; None for values
    texts: tuple[str, ...] = ()  # of the dev set, in its order; empty where the data are not at hand
    answers: tuple[str, ...] = ()  # the right ones, as many

    def name(self, answer: float) -> str:
        """A prediction in words."""
        if self.labels is not None and answer.is_integer() and 0 <= answer < len(self.labels):
            return self.labels[int(answer)]
        return f"{answer:g}" if answer.is_integer() else number(answer, 2)


def asked(data: Data, cells: Sequence[Cell]) -> Pairs:
    """What a task is, in names and values."""
    text = Scores(score for cell in cells for score in cell.scores)
    rows = [("trained on", data.train_size), ("tested on (dev set)", data.dev_size)]
    sizes = ", ".join(f"{count(size, 'row')} {what}" for what, size in rows if size is not None)
    names = data.labels or ()
    classes = ", ".join(names[:_CLASSES]) + (" and others" if len(names) > _CLASSES else "")
    chance = "" if cells[0].chance is None else f"; a constant answer scores {text.value(cells[0].chance)}"
    pairs = {
        "Data": data.source,
        "Rows": sizes,
        "Question": f"which of {len(names)} classes: {classes}" if names else "",
        "Score": "" if cells[0].metric == "score" and not chance else f"{cells[0].metric}, higher is better{chance}",
    }
    return Pairs(tuple((name, value) for name, value in pairs.items() if value))


def methods(names: Sequence[str]) -> Pairs:
    """What the methods do, as far as their labels say."""
    words = {word for name in names for word in re.findall(r"\w+", name)}
    return Pairs(tuple((kind, text) for kind, text in KINDS.items() if kind in words))


def three(data: Data) -> Examples:
    """The first examples, each of another class where there are as many."""
    chosen: dict[str, int] = {}
    for at, answer in enumerate(data.answers):
        chosen.setdefault(answer, at)
    places = sorted(chosen.values())[:_EXAMPLES] if len(chosen) >= _EXAMPLES else range(min(_EXAMPLES, len(data.texts)))
    return Examples(tuple((_short(data.texts[at]), (f"answer: {data.answers[at]}",)) for at in places))


def flips(instabilities: Sequence[Instability], of_cell: Runs, data: Data, labels: Labels) -> Examples:
    """The examples that restarts answer most differently, and who answered what."""
    several = [one for one in instabilities if one.kind == "classes"][:_METHODS]
    spread: dict[int, float] = {}
    for one in several:
        for at in one.flipping:
            spread[at] = spread.get(at, 0.0) + one.spread[at]
    found = []
    for at in sorted(spread, key=lambda at: (-spread[at], at))[:_FLIPS]:
        lines = [f"answer: {data.answers[at]}"] if data.answers else []
        lines += [f"{labels.of(one)}: {_counted(of_cell[one.key], at, data)}" for one in several]
        found.append((_short(data.texts[at]) if data.texts else f"row {at} of the dev set, from 0", tuple(lines)))
    return Examples(tuple(found))


def _counted(runs: Sequence[Run], at: int, data: Data) -> str:
    answers = Counter(data.name(float(run.predictions[at])) for run in runs if len(run.predictions) > at)
    return ", ".join(f"{answer} ({times})" for answer, times in answers.most_common())


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS].rstrip()} \u2026"


def known(runs: Sequence[Run], given: Mapping[str, Data]) -> dict[str, Data]:
    """The data of each task, as far as they are given; a table of scores may know the size of a dev set."""
    found: dict[str, Data] = {}
    for task in dict.fromkeys(run.task for run in runs):
        found[task] = given.get(task) or Data(dev_size=if_one(run.dev_size for run in runs if run.task == task))
    return found
