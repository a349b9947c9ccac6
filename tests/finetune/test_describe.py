"""What is said of the data before training: numbers counted by hand, and what asks for a second look."""

from __future__ import annotations

import math

import pytest

from mixout.finetune.data import describe
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Split, Task, load_task
from mixout.finetune.tasks import Split as Documents
from mixout.finetune.tasks import Task as Corpus
from mixout.finetune.train import finetune


def task(train, dev=None, names=None, /, **changes):
    """A task with these labels; every text is another one."""
    names = tuple(sorted({*train, *(dev or train)})) if names is None else names
    parts = {
        side: Split(text=tuple(f"{side} {row}" for row in range(len(labels))), label=tuple(map(names.index, labels)))
        for side, labels in (("train", train), ("dev", dev or train))
    }
    kinds = {"labels": names, "metrics": ("accuracy",), "metric": "accuracy", "source": "", "name": "t"}
    return Task(**(parts | kinds | changes))


def notes(*args, **changes):
    return [line for line in describe(task(*args, **changes)) if line.startswith("note: ")]


def test_rows_classes_majority_and_standard_error():
    lines = describe(task(["a"] * 30 + ["b"] * 10, ["a"] * 60 + ["b"] * 40))
    error = 1.96 * 100 * math.sqrt(0.5 * 0.5 / 100)
    assert lines == [
        f"t: 40 training rows, 100 dev rows (95 % interval of an accuracy: ±{error:.1f} points)",
        "2 classes: 'a' (30 training rows), 'b' (10); always answering 'a' is right in 60 % of the dev rows",
    ]
    many = describe(task([f"intent {row % 40:02d}" for row in range(130)]))
    assert many[1].startswith("40 classes: 3 to 4 training rows each; always answering 'intent 00' is right in 3 % ")


def test_f1_says_of_which_class_it_is():
    said = [describe(task(["no", "yes"], metrics=metrics))[1] for metrics in (("accuracy", "f1"), ("accuracy",))]
    assert said == [f"{said[1]}; f1 is of 'yes'", said[1]]
    assert "f1" not in describe(task(["a", "b", "c"], metrics=("f1",)))[1]


def test_rows_that_repeat_or_contradict_others():
    texts = [f"text {row // 4}" for row in range(40)]
    many = Split(text=tuple(texts), label=tuple(row % 4 == 3 for row in range(40)))
    few = Split(text=tuple(f"dev {max(row, 1)}" for row in range(60)), label=(0, 1) * 30)
    said = [line for line in describe(task(["a", "b"], train=many, dev=few)) if line.startswith("note: ")]
    assert said == [
        "note: t: the 40 training rows have 10 different texts; the others add little",
        "note: t: 10 of 10 training texts have several labels: rows contradict each other",
    ]


def test_values_have_a_range():
    scores = Split(text=("a", "b", "c"), label=(0.5, 4.0, 2.0))
    other = Split(text=("d",), label=(1.0,))
    kinds = {"labels": None, "metrics": ("pearson",), "metric": "pearson", "source": ""}
    assert describe(Task(name="r", train=scores, dev=other, **kinds)) == [
        "r: 3 training rows, 1 dev row",
        "the labels are values from 0.5 to 4 (regression)",
    ]


def test_dev_rows_of_one_class_and_classes_without_dev_rows():
    (note,) = notes(["common"] * 5 + ["rare"], ["common"] * 4)
    assert "the dev rows have one class only, 'common'" in note
    (note,) = notes(["a", "b", "c", "d"], ["a", "c"])
    assert "no dev row has the class 'b', 'd'" in note
    assert notes(["a", "b"], ["a", "b"]) == []


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["1", "2", "3", "4", "5"], "the labels are numbers (1 to 5), and each is a class; if they are values"),
        (["0", "1"], None),
        (["0", "3", "0,3", "1", "1,3"], "labels such as '0,3' look like several in one cell"),
        (["joy", "fear", "joy|fear", "fear|joy"], "4 classes of 2 labels"),
        (["['joy']", "['fear']", "['joy', 'fear']"], "3 classes of 2 labels"),
        (["0", "1", "0 1"], "3 classes of 2 labels"),
        (["a;b", "b;c", "c;d"], "3 classes of 4 labels"),
        (["a", "b", "a/b"], "3 classes of 2 labels"),
        (["very good", "good", "very bad", "bad"], None),
        (["and/or", "either/or", "nor"], None),
        (["Paris, France", "Rome, Italy"], None),
        (["Yes", "no", "yes"], "the labels 'Yes', 'yes' differ in capitals alone"),
        (["NA", "no", "yes"], "the label 'NA' is a class like any other"),
        (["None", "null", "x"], "the label 'None', 'null' is a class like any other"),
        (["anger", "joy", "sadness"], None),
    ],
)
def test_labels_that_may_not_mean_classes(labels, said):
    found = notes(labels * 3)
    assert len(found) == (said is not None), found
    assert said is None or said in found[0]


def test_dev_rows_that_are_training_rows_are_counted():
    one = Split(text=("a", "b", "c"), pair=("x", "y", "z"), label=(0, 1, 0))
    other = Split(text=("a", "b", "c"), pair=("x", "Y", "z"), label=(1, 1, 0))
    line = describe(task(["p", "q"], train=one, dev=other))[-1]
    # The same texts count whatever their labels; a pair counts as a whole.
    assert line.startswith("note: t: 2 of 3 dev rows are also training rows")
    texts = Documents(text=("a", "b")), Documents(text=("b", "c", "d"))
    corpus = Corpus(name="c", train=texts[0], dev=texts[1], original=None, metric="log_likelihood", source="")
    assert describe(corpus) == [
        "c: 2 training documents, 3 dev documents",
        "note: c: 1 of 3 dev documents are also training documents: the score on new texts will be lower; remove them "
        "from one side",
    ]


def test_a_run_says_all_of_it_before_it_trains(tiny_bert, tmp_path):
    (tmp_path / "d").mkdir()
    rows = [(f"{'bata ' * (2 + 3 * (row % 5))}dovi", "ab"[row % 2]) for row in range(20)]
    for name, part in (("train", rows), ("dev", rows[:6])):
        (tmp_path / "d" / f"{name}.csv").write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in part))
    lines = []
    settings = Settings(model=tiny_bert, task=str(tmp_path / "d"), max_length=10, epochs=1.0, save="no", evaluate="end",
        learning_rate=1e-3, batch_size=8,
    )  # fmt: skip
    finetune(settings, tmp_path / "out", report=lines.append)
    started = next(number for number, line in enumerate(lines) if "from the start" in line)
    # With the tokens at both ends a text has 5, 8, 11, 14 or 17.
    assert lines[:started] == [
        *describe(load_task(str(tmp_path / "d")))[:2],
        "note: d: 12 of 20 training texts and 3 of 6 dev texts are cut: they are longer than max_length, 10 tokens",
        "note: d: 6 of 6 dev rows are also training rows: the score on new texts will be lower; remove them from one "
        "side",
        "note: d: the 20 training rows have 5 different texts; the others add little",
        "note: d: 5 of 5 training texts have several labels: rows contradict each other",
        "note: d: the 6 dev rows have 5 different texts; the others add little",
        "note: d: 1 of 5 dev texts has several labels: rows contradict each other",
        "method anchor_decay(radius=0.02): the weights of 2 layers, fewer than 6, go 4 times as far",
        "anchor_decay(radius=0.02): under Adam a weight goes about 0.02 from its start at most",
    ]
