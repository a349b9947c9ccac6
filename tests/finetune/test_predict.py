"""Answers for the rows of a file: what is asked is what was trained on, or an error."""

from __future__ import annotations

import csv
import datetime
import json
import re
import shutil
from pathlib import Path

import pandas
import pyarrow.parquet
import pytest
import torch
import transformers
from tests.finetune.conftest import interrupted

from mixout.errors import InputError
from mixout.finetune import models
from mixout.finetune import predict as predicting
from mixout.finetune.predict import predict
from mixout.finetune.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")


def write(path: Path, **columns: list) -> Path:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def pairs(settings, tmp_path) -> Path:
    """A model for pairs of texts, with labels that a table stores as 0.0 and 1.0."""
    texts, seconds = (["bata", "dota", "kita", "luta"] * 3 for _ in range(2))
    columns = {"text": texts, "text_pair": seconds, "label": [0.0, 1.0] * 6}
    (tmp_path / "data").mkdir()
    for name in ("train", "dev"):
        write(tmp_path / f"data/{name}.jsonl", **columns)
    finetune(settings(task=tmp_path / "data", epochs=0.1), tmp_path / "out")
    return tmp_path / "out"


def test_rows_are_asked_as_in_training(pairs, tmp_path):
    found = predict(pairs, tmp_path / "data/dev.jsonl", tmp_path / "p.csv")
    assert "12 predictions" in found
    assert "; accuracy 0." in found  # labels such as 1.0 are the class 1, as in training
    alone = write(tmp_path / "alone.jsonl", text=["bata"])
    with pytest.raises(InputError, match="a column 'text_pair'"):
        predict(pairs, alone, tmp_path / "p.csv")
    other = write(tmp_path / "other.jsonl", text=["bata", "dota"], text_pair=["a", "b"], label=["1", "maybe"])
    assert predict(pairs, other, tmp_path / "p.csv").endswith(
        "; not scored: other.jsonl, line 2: expected a label that the model knows (0, 1), got 'maybe'; correct it, or "
        "name another column with --label-column"
    )
    assert predict(pairs, other, tmp_path / "p.csv", max_length=4).endswith("; 2 texts were cut after 4 tokens")
    with pytest.raises(InputError, match="max_length <= 64"):
        predict(pairs, other, tmp_path / "p.csv", max_length=65)


def test_rows_with_labels_that_the_model_does_not_know_are_not_scored(pairs, tmp_path):
    texts = ["bata", "dota", "kita"]
    most = write(tmp_path / "most.jsonl", text=texts, text_pair=texts, label=["1", "maybe", "0"])
    assert re.search(
        r"accuracy \d\.\d+.* of the 2 rows with a label that the model knows$", predict(pairs, most, tmp_path / "p.csv")
    )


def test_a_column_without_a_name_is_copied(pairs, tmp_path):
    """As pandas writes its index."""
    frame = pandas.DataFrame({"text": ["bata", "dota"], "text_pair": ["a", "b"]}, index=[7, 9])
    frame.to_csv(tmp_path / "indexed.csv")
    predict(pairs, tmp_path / "indexed.csv", tmp_path / "p.csv")
    assert list(pandas.read_csv(tmp_path / "p.csv", index_col=0).index) == [7, 9]


def test_values_with_a_dot_that_may_mean_thousands_are_told(settings, tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text(
            "text,label\n" + "".join(f"text {n},{900.5 + 50 * n}\n" for n in range(4))
        )
    finetune(settings(task=tmp_path, epochs=0.5, metric="pearson"), tmp_path / "out")
    (tmp_path / "asked.csv").write_text("text;label\ntext 1;950\ntext 2;1.000\ntext 3;1.050\n")
    found = predict(tmp_path / "out", tmp_path / "asked.csv", tmp_path / "p.csv")
    assert "the label '1.000' is read as 1; if its dot is a thousands sign" in found


def test_a_column_that_is_named_is_there_and_was_trained_on(settings, tiny_task, pairs, tmp_path):
    with pytest.raises(InputError, match="expected a column 'mood'"):
        predict(pairs, tmp_path / "data/dev.jsonl", tmp_path / "p.csv", label_column="mood")
    finetune(settings(task=tiny_task, epochs=0.1), tmp_path / "single")
    with pytest.raises(InputError, match="no pair_column for a model of single texts, got 'text_pair'"):
        predict(tmp_path / "single", tmp_path / "data/dev.jsonl", tmp_path / "p.csv", pair_column="text_pair")
    assert not (tmp_path / "p.csv").exists()


def test_a_second_text_that_was_not_trained_on_is_not_read(settings, tiny_task, tmp_path):
    finetune(settings(epochs=0.1), tmp_path / "out")
    one = write(tmp_path / "one.jsonl", text=["bata"])
    two = write(tmp_path / "two.jsonl", text=["bata"], text_pair=["dota"])
    shares = []
    for file in (one, two):
        predict(tmp_path / "out", file, tmp_path / "p.csv")
        shares.append((tmp_path / "p.csv").read_text().splitlines()[-1].split(",")[-2:])
    assert shares[0] == shares[1]


def test_cells_of_any_kind_are_copied(pairs, tmp_path):
    """Lists and objects as JSON, dates in them as ISO 8601."""
    days = [datetime.date(2024, 1, 2), datetime.datetime(2024, 1, 2, 3, 4)]
    cells = {"object": {"id": 1, "by": None}, "list": [True, {"a": [0.5, "\u00e9"]}]}
    dates = {"days": days[:1], "times": days[1:], "inside": {"day": days[0]}}
    write(tmp_path / "rows.jsonl", text=["bata"], text_pair=["dota"], **{name: [cell] for name, cell in cells.items()})
    table = {"text": ["bata"], "text_pair": ["dota"], **{name: [cell] for name, cell in (cells | dates).items()}}
    del table["list"]  # of several types, which Parquet does not have
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "rows.parquet")
    for file, names in (("rows.jsonl", ["object", "list"]), ("rows.parquet", ["object", *dates])):
        predict(pairs, tmp_path / file, tmp_path / "p.csv")
        [row] = csv.DictReader((tmp_path / "p.csv").read_text("utf-8").splitlines())
        found = {name: json.loads(row[name]) for name in names}
        said = {"days": ["2024-01-02"], "times": ["2024-01-02 03:04:00"], "inside": {"day": "2024-01-02"}}
        assert found == {name: (cells | said)[name] for name in names}


def test_a_folder_without_a_model_says_where_one_is(settings, tmp_path):
    rows = write(tmp_path / "rows.jsonl", text=["bata"])
    interrupted(settings(save=2), tmp_path / "run", 3)
    finetune(settings(epochs=0.1), tmp_path / "chosen/model")
    for name, said in (
        ("run", r"finish its run: mixout finetune --resume \S+/run$"),
        ("chosen", "name '.*/chosen/model'$"),
    ):
        with pytest.raises(InputError, match=rf"without config\.json; {said}"):
            predict(tmp_path / name, rows, tmp_path / "p.csv")
        with pytest.raises(InputError, match=said):
            models.load(str(tmp_path / name), labels=("a", "b"), init_seed=0)


def test_a_model_whose_answers_are_random_is_refused(tiny_bert, tmp_path):
    rows = write(tmp_path / "rows.jsonl", text=["bata"])
    with pytest.raises(InputError, match=r"with all its weights, got .* without classifier\.bias and others"):
        predict(tiny_bert, rows, tmp_path / "p.csv")


@pytest.mark.parametrize("name", ["prediction", "probability of 0", "probability of else"])
def test_columns_of_the_file_are_never_answers(pairs, tmp_path, monkeypatch, name):
    rows = write(tmp_path / "rows.jsonl", text=["bata"], text_pair=["dota"], **{name: ["mine"]})
    monkeypatch.setattr(predicting, "_outputs", lambda *_: pytest.fail("it was computed before"))
    with pytest.raises(InputError, match=f"no column '{name}', which is to hold answers, got one; rename or remove it"):
        predict(pairs, rows, tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_rows_without_a_label_are_answered_and_not_scored(settings, tiny_task, tmp_path):
    finetune(settings(), tmp_path / "run")
    rows = [
        f"{line},{label}"
        for line, label in (("bata bavi", "first"), ("dota dovi", ""), ("dopo", " "), ("bapo", "first"))
    ]
    for name, kept in (("some", rows), ("labelled", [rows[0], rows[3]]), ("none", rows[1:3])):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "\n".join(kept) + "\n")
    some, labelled, none = (
        predict(tmp_path / "run", tmp_path / f"{name}.csv", tmp_path / f"{name}-answers.csv")
        for name in ("some", "labelled", "none")
    )
    assert some.startswith("4 predictions: ")
    assert some.endswith(" of the 2 rows with a label")
    assert some.partition("; ")[2].removesuffix(" of the 2 rows with a label") == labelled.partition("; ")[2]
    assert ";" not in none
    with pytest.raises(InputError, match=r"expected output as CSV, got 'answers.parquet'"):
        predict(tmp_path / "run", tmp_path / "some.csv", tmp_path / "answers.parquet")


def test_words_without_tags_are_tagged(settings, names, tmp_path):
    """A file with a word a line is what one with a tag beside each word is, but for the scores."""
    finetune(settings(task=names, task_type="token-classification", epochs=1.0), tmp_path / "out")
    rows = [json.loads(line) for line in (names / "dev.jsonl").read_text().splitlines()]
    for file, tagged in (("words.conll", False), ("tags.conll", True)):
        lines = ["\n".join(f"{word} {tag}" if tagged else word for word, tag in zip(row["text"], row["label"],
            strict=True)) for row in rows]  # fmt: skip
        (tmp_path / file).write_text("-DOCSTART-\n\n" + "\n\n".join(lines) + "\n")
    said = [
        predict(tmp_path / "out", tmp_path / f"{name}.conll", tmp_path / f"{name}.csv") for name in ("words", "tags")
    ]
    assert ["entity_f1" in one for one in said] == [False, True]
    words, tags = (pandas.read_csv(tmp_path / f"{name}.csv") for name in ("words", "tags"))
    assert words.columns.tolist() == ["text", "prediction"]
    pandas.testing.assert_frame_equal(words, tags[["text", "prediction"]])
    (tmp_path / "some.conll").write_text("bata B-X\ndota\n")
    with pytest.raises(InputError, match=r"some\.conll, line 2: expected a word and its tag"):
        predict(tmp_path / "out", tmp_path / "some.conll", tmp_path / "p.csv")


def test_another_classifier_answers_as_it_does_itself(tiny_bert, tmp_path):
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig.from_pretrained(tiny_bert)).eval()
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny_bert) / name, tmp_path / "model")
    rows = write(tmp_path / "rows.jsonl", text=["bata bavi"])
    predict(tmp_path / "model", rows, tmp_path / "p.csv")
    tokens = transformers.AutoTokenizer.from_pretrained(tiny_bert)("bata bavi", return_tensors="pt")
    expected = model(**tokens).logits.softmax(1)[0].tolist()
    found = (tmp_path / "p.csv").read_text().splitlines()[-1].split(",")[-2:]
    assert list(map(float, found)) == pytest.approx(expected, rel=1e-5)


def test_lists_are_json_and_advice_is_of_this_command(settings, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train", "dev"):
        write(tmp_path / f"data/{name}.jsonl", text=["bata", "dota"] * 6, label=[0.5, 1.5] * 6)
    finetune(settings(task=tmp_path / "data", epochs=0.1), tmp_path / "out")
    table = pyarrow.table({"text": ["bata"], "label": ["none"], "list": [[1.0, float("nan")]], "accent": [["\u00e9"]]})
    pyarrow.parquet.write_table(table, tmp_path / "new.parquet")
    said = predict(tmp_path / "out", tmp_path / "new.parquet", tmp_path / "p.csv")
    assert "got 'none'; correct or remove the row, or name another column with --label-column" in said
    assert "--multi-label" not in said
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as handle:
        [row] = csv.DictReader(handle)
    assert (row["list"], json.loads(row["accent"])) == ("[1.0, null]", ["\u00e9"])
