"""What is said of the data before a run trains on them: how many rows and classes, and what often goes wrong with them.

A line that begins with "note: " asks for a second look at the data; the others state numbers. Nothing is refused here:
all of it can be meant.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mixout.finetune.environment import NOTE
from mixout.finetune.tasks import Split, Task
from mixout.finetune.tasks.documents import Corpus, Documents
from mixout.finetune.tasks.tables import number

_NAMED = 6  # so many classes are named one by one
_MISSING = ("na", "n/a", "nan", "none", "null", "unknown", "?", "-")


def describe(task: Task | Corpus, *, cut: tuple[int, int] = (0, 0), max_length: int = 0) -> list[str]:
    """Describe the data in a few lines; ``cut`` counts the training and dev texts longer than ``max_length`` tokens.

    Example:
        >>> split = Split(text=("a", "b", "c", "d"), label=(0, 1, 0, 1))
        >>> words = {"name": "t", "labels": ("no", "yes"), "metrics": ("f1",), "metric": "f1", "source": ""}
        >>> task = Task(train=split, dev=split.select([0, 1]), **words)
        >>> for line in describe(task, cut=(3, 0), max_length=8):
        ...     print(line)
        data t: 4 training rows, 2 dev rows (standard error of an accuracy of 0.5: 35.4 points)
        2 classes: 'no' (2 training rows), 'yes' (2); always answering 'no' is right in 50 % of the dev rows
        note: t: 3 of 4 training texts and 0 of 2 dev texts are cut: they are longer than max_length, 8 tokens
        note: t: 2 of 2 dev rows are also training rows: the score on new texts will be lower; remove them from one side
    """
    kind = "documents" if isinstance(task, Corpus) else "rows"
    lines = [f"data {task.name}: {len(task.train)} training {kind}, {len(task.dev)} dev {kind}"]
    notes = []
    if isinstance(task, Task) and task.labels is not None:
        # sqrt(p (1 - p) / n) at p = 0.5, where it is largest.
        error = 100 * math.sqrt(0.25 / len(task.dev))
        lines[0] += f" (standard error of an accuracy of 0.5: {error:.1f} points)"
        lines.append(_classes(task, task.labels))
        notes += _labels(task, task.labels)
    elif isinstance(task, Task):
        values = task.train.label
        lines.append(f"the labels are values from {min(values):g} to {max(values):g} (regression)")
    if any(cut):
        notes.append(
            f"{cut[0]} of {len(task.train)} training texts and {cut[1]} of {len(task.dev)} dev texts are cut: they are "
            f"longer than max_length, {max_length} tokens"
        )
    known = set(_keys(task.train))
    double = sum(key in known for key in _keys(task.dev))
    if double:
        notes.append(
            f"{double} of {len(task.dev)} dev {kind} are also training {kind}: the score on new texts will be "
            "lower; remove them from one side"
        )
    return lines + [f"{NOTE}{task.name}: {note}" for note in notes]


def _keys(part: Split | Documents) -> list[tuple[str, str | None]]:
    """What a row asks, without its answer."""
    if isinstance(part, Documents):
        return list(zip(part.text, part.prompt or [None] * len(part), strict=True))
    return list(zip(part.text, part.pair or [None] * len(part), strict=True))


def _classes(task: Task, names: Sequence[str]) -> str:
    counts = Counter(task.train.label)
    answer, right = Counter(task.dev.label).most_common(1)[0]
    share = 100 * right / len(task.dev)
    if len(names) <= _NAMED:
        first, *others = (f"{name!r} ({counts[label]}" for label, name in enumerate(names))
        of_each = ", ".join([f"{first} training rows)", *(f"{other})" for other in others)])
    else:
        of_each = f"{min(counts.values())} to {max(counts.values())} training rows each"
    name = names[int(answer)]
    return f"{len(names)} classes: {of_each}; always answering {name!r} is right in {share:.0f} % of the dev rows"


def _labels(task: Task, names: Sequence[str]) -> list[str]:
    """What looks as if the labels did not mean classes."""
    notes = []
    present = sorted(set(task.dev.label))
    if len(present) == 1:
        notes.append(
            f"the dev rows have one class only, {names[int(present[0])]!r}: a constant answer is right in all of them, "
            "so the dev score says nothing; give a dev file with rows of every class"
        )
    elif len(present) < len(names):
        lacking = [repr(name) for label, name in enumerate(names) if label not in present]
        notes.append(f"no dev row has the class {', '.join(lacking[:_NAMED])}{', ...' if lacking[_NAMED:] else ''}")
    if len(names) > 2 and all(number(name) is not None for name in names):
        notes.append(
            f"the labels are numbers ({names[0]} to {names[-1]}), and each is a class; if they are values, "
            "choose --metric spearman"
        )
    elif parts := _parts(names):
        notes.append(
            f"labels such as {max(names, key=len)!r} look like several in one cell, and each combination is a class: "
            f"{len(names)} classes of {len(parts)} labels; give each row one label"
        )
    same = Counter(name.casefold() for name in names)
    alike = [repr(name) for name in names if same[name.casefold()] > 1]
    if alike:
        notes.append(f"the labels {', '.join(alike[:_NAMED])} differ in capitals alone, and are different classes")
    missing = [repr(name) for name in names if name.casefold() in _MISSING]
    if missing:
        notes.append(f"the label {', '.join(missing)} is a class like any other; remove its rows if it means no label")
    return notes


def _parts(names: Sequence[str]) -> set[str]:
    """The labels that classes such as "0,3" or "joy|fear" look like combinations of; none where they do not.

    Then some of them occur in several classes. Blanks and slashes stand in the name of one class too: there the labels
    must also be fewer than the classes, and with blanks all be numbers.
    """
    for separator in (",", ";", "|", "+", "/", " "):
        split = [{part.strip(" []{}()'\"") for part in name.split(separator)} - {""} for name in names]
        parts = set().union(*split)
        several = max(map(len, split)) > 1 and sum(map(len, split)) > len(parts)
        surely = separator in ",;|" or len(parts) < len(names)
        if several and surely and (separator != " " or all(number(part) is not None for part in parts)):
            return parts
    return set()
