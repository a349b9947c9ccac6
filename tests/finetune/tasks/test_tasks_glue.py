"""GLUE from its own files (counts known beforehand), from small files, and from a stand-in of the hub."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import pytest

from mixout.errors import InputError, MissingExtraError
from mixout.finetune.tasks import Columns, load_task

GLUE = Path(__file__).parents[4] / "shared" / "data" / "glue"
needs_glue = pytest.mark.skipif(not GLUE.is_dir(), reason="GLUE's TSV files are not beside this checkout")

PAIR = ("sentence1", "sentence2")


@needs_glue
@pytest.mark.parametrize(
    ("name", "train", "dev", "ones", "metrics", "labels"),
    [
        ("RTE", 2490, 277, 131, ("accuracy",), ("entailment", "not_entailment")),
        ("mrpc", 3668, 408, 279, ("f1", "accuracy"), ("not_equivalent", "equivalent")),
        ("CoLA", 8551, 1043, 721, ("matthews", "accuracy"), ("unacceptable", "acceptable")),
        ("sst2", 67349, 872, 444, ("accuracy",), ("negative", "positive")),
    ],
)
def test_the_real_files(name, train, dev, ones, metrics, labels):
    task = load_task(name, data_dir=GLUE)
    assert (len(task.train), len(task.dev), sum(task.dev.label)) == (train, dev, ones)
    assert (task.metrics, task.metric, task.labels) == (metrics, metrics[0], labels)
    assert (task.train.pair is None) == (name in ("CoLA", "sst2"))
    assert load_task(name, data_dir=GLUE / task.name).fingerprint() == task.fingerprint()
    assert str(GLUE) not in task.source


@needs_glue
def test_the_real_scores():
    task = load_task("sts-b", data_dir=GLUE)
    assert (len(task.train), len(task.dev), task.labels) == (5749, 1500, None)
    assert (task.metric, set(task.metrics)) == ("spearman", {"spearman", "pearson"})
    assert (min(task.dev.label), max(task.dev.label)) == (0.0, 5.0)
    assert task.dev.text[1] == "A young child is riding a horse."
    assert task.dev.pair[1] == "A child is riding a horse."
    assert task.dev.label[1] == 4.75


@needs_glue
def test_quotation_marks_and_the_byte_order_mark_do_no_harm():
    task = load_task("MRPC", data_dir=GLUE)
    assert task.dev.pair[0] == '" The foodservice pie business does not fit our long-term growth strategy .'
    assert task.dev.text[0].startswith("He said the foodservice pie business")
    assert task.dev.label[:3] == (1, 0, 0)


def write(folder, train, dev=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.tsv").write_bytes(train.encode())
    for name in ("dev.tsv", "dev_matched.tsv"):
        (folder / name).write_bytes((dev or train).encode())


@pytest.mark.parametrize(
    ("name", "folder", "lines", "text", "pair", "label"),
    [
        (
            "QNLI",
            "QNLI",
            "index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tentailment\n1\tWhy?\tIt.\tnot_entailment\n",
            ("Who?", "Why?"),
            ("He.", "It."),
            (0, 1),
        ),
        (
            "wnli",
            "wnli",
            "index\tsentence1\tsentence2\tlabel\r\n0\tA.\tB.\t1\r\n1\tC.\tD.\t0\r\n",
            ("A.", "C."),
            ("B.", "D."),
            (1, 0),
        ),
        (
            "MNLI",
            "MNLI",
            "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tA.\tB.\tneutral\tneutral\n"
            "1\tC.\tD.\tneutral\tentailment\n2\tE.\tF.\tneutral\tcontradiction\n",
            ("A.", "C.", "E."),
            ("B.", "D.", "F."),
            (1, 0, 2),
        ),
        (
            "qqp",
            "QQP",
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tA?\tB?\t1\n1\t3\t4\tC?\tD?\t0\n",
            ("A?", "C?"),
            ("B?", "D?"),
            (1, 0),
        ),
        ("sst_2", "SST-2", "sentence\tlabel\na\u2028b \t1\nc\x85\t0", ("a\u2028b ", "c\x85"), None, (1, 0)),
    ],
)
def test_small_files(tmp_path, name, folder, lines, text, pair, label):
    write(tmp_path / folder, lines)
    split = load_task(name, data_dir=tmp_path).train
    assert (split.text, split.pair, split.label) == (text, pair, label)


HEADER = "index\tsentence1\tsentence2\tlabel\n"


@pytest.mark.parametrize(
    ("dev", "message"),
    [
        (HEADER + "0\tA\tB\tmaybe\n", r"dev.tsv, line 2: expected the label entailment or not_entailment, got 'maybe'"),
        (HEADER + "0\tA\tB\tentailment\n1\tA\tB\n", r"dev.tsv, line 3: expected 4 cells .*got 3; check the sep"),
        (HEADER + "0\t \tB\tentailment\n", r"dev.tsv, line 2: expected sentence1 and sentence2, got an empty cell"),
        (HEADER + "\n0\tA\tB\tentailment\n", r"dev.tsv, line 2: expected sentence1 and sentence2, got an empty"),
        (HEADER, r"dev.tsv: expected rows under the header, got none"),
        ("a\tlabel\nb\t0\n", r"dev.tsv: expected a column 'sentence1' and a column 'sentence2', got .*'a', 'label'"),
    ],
)
def test_files_that_are_not_the_task(tmp_path, dev, message):
    write(tmp_path / "RTE", HEADER + "0\tA\tB\tentailment\n1\tC\tD\tnot_entailment\n", dev)
    with pytest.raises(InputError, match=message):
        load_task("RTE", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "train", "dev"),
    [
        ("RTE", HEADER + "0\tA\tB\tentailment\n1\tC\tD\tentailment\n", HEADER + "0\tA\tB\tnot_entailment\n"),
        ("STS-B", "sentence1\tsentence2\tscore\nA\tB\t2.5\nC\tD\t2.5\n", "sentence1\tsentence2\tscore\nA\tB\t1\n"),
    ],
)
def test_nothing_to_learn(tmp_path, name, train, dev):
    write(tmp_path, train, dev)
    with pytest.raises(InputError, match=r"train.tsv, line 2: expected at least 2 different labels to train on"):
        load_task(name, data_dir=tmp_path)


@pytest.mark.parametrize("score", ["5.5", "-1", "nan", "good"])
def test_scores_out_of_range(tmp_path, score):
    write(tmp_path, f"sentence1\tsentence2\tscore\nA\tB\t{score}\n")
    with pytest.raises(
        InputError, match=rf"train.tsv, line 2: expected a score from 0 to 5, got '{score}'; is this STS"
    ):
        load_task("STS-B", data_dir=tmp_path)


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(
        InputError, match=r"expected a folder of TSV files, got '.*nowhere', which is none; check data_dir"
    ):
        load_task("RTE", data_dir=tmp_path / "nowhere")
    (tmp_path / "train.tsv").write_text("x")
    with pytest.raises(InputError, match=r"expected RTE/train.tsv and RTE/dev.tsv, .* got no dev.tsv; check data_dir"):
        load_task("RTE", data_dir=tmp_path)


def hub(monkeypatch, split, validation=("validation",)):
    calls = []

    def load_dataset(*args):
        calls.append(args)
        return datasets.DatasetDict(
            train=datasets.Dataset.from_dict(split),
            **{end: datasets.Dataset.from_dict({k: v[:1] for k, v in split.items()}) for end in validation},
            test=datasets.Dataset.from_dict({k: v[:1] for k, v in split.items()}),
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize(
    ("name", "config", "texts", "pair"),
    [
        ("RTE", "rte", PAIR, True),
        ("MRPC", "mrpc", PAIR, True),
        ("CoLA", "cola", ("sentence",), False),
        ("SST-2", "sst2", ("sentence",), False),
        ("QNLI", "qnli", ("question", "sentence"), True),
        ("WNLI", "wnli", PAIR, True),
        ("STS-B", "stsb", PAIR, True),
        ("QQP", "qqp", ("question1", "question2"), True),
        ("MNLI", "mnli", ("premise", "hypothesis"), True),
    ],
)
def test_the_hub(monkeypatch, name, config, texts, pair):
    labels = [2.5, 5.0] if name == "STS-B" else [1, 0]
    rows = {column: [f"{column} 0", f"{column} 1"] for column in texts} | {"label": labels}
    ends = ("validation_matched", "validation_mismatched") if name == "MNLI" else ("validation",)
    calls = hub(monkeypatch, rows, ends)
    task = load_task(name)
    assert calls == [("nyu-mll/glue", config)]
    assert (len(task.train), len(task.dev)) == (2, 1)
    assert task.train.text == tuple(f"{texts[0]} {i}" for i in range(2))
    assert task.train.pair == (tuple(f"{texts[1]} {i}" for i in range(2)) if pair else None)
    assert task.train.label == tuple(labels)
    assert all(type(label) is (float if name == "STS-B" else int) for label in task.train.label)
    assert "nyu-mll/glue" in task.source


@pytest.mark.parametrize("error", [ConnectionError("Couldn't reach the Hub"), ValueError("Couldn't find cache")])
def test_a_hub_out_of_reach(monkeypatch, error):
    def load_dataset(*args):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        InputError, match=r"nyu-mll/glue \(rte\) from the hub, got: Couldn't .* TSV files: --data-dir DIR, in a study"
    ):
        load_task("RTE")


def test_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"'datasets' .* GLUE from the hub.*pip install \"mixout\[data\]\""):
        load_task("RTE")


def test_every_row_that_is_wrong_is_counted(tmp_path):
    dev = HEADER + "".join(f"{i}\tA\tB\t{'entailment' if i % 4 else 'maybe'}\n" for i in range(40))
    write(tmp_path, HEADER + "0\tA\tB\tentailment\n1\tC\tD\tnot_entailment\n", dev)
    with pytest.raises(
        InputError, match=r"line 2: .* got 'maybe'; 10 of 40 rows are like this \(lines 2, 6, 10, 14, 18, \.\.\."
    ):
        load_task("RTE", data_dir=tmp_path)


def test_options(tmp_path):
    write(tmp_path, HEADER + "0\tA\tB\tentailment\n1\tA\tB\tnot_entailment\n")
    assert load_task("RTE", data_dir=tmp_path, metric="f1").metrics == ("f1", "accuracy")
    assert load_task("RTE", data_dir=str(tmp_path), columns=Columns()).metric == "accuracy"
    with pytest.raises(InputError, match=r"labels that are classes, got 'spearman'"):
        load_task("RTE", data_dir=tmp_path, metric="spearman")
    with pytest.raises(InputError, match=r"names and kinds of labels only with files of your own, got them .* 'RTE'"):
        load_task("RTE", data_dir=tmp_path, columns=Columns(text="sentence1"))
