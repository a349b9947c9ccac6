"""The user's own files: what they become, and what is said when they cannot be used."""

from __future__ import annotations

import csv
import datetime
import re
import subprocess
import sys
from decimal import Decimal

import pandas as pd
import pyarrow.parquet
import pytest
from tests.finetune.tasks.conftest import folder, save

from mixout.errors import InputError
from mixout.finetune.data import describe
from mixout.finetune.tasks import Columns, load_task
from mixout.finetune.tasks.files import halves
from mixout.finetune.tasks.tables import read

TEXTS = ['He said "no", twice', "two\nlines", "ünïcode \u2028 text", "x, y", "=1+1", "NA"]
LABELS = ["good", "bad", "good", "bad", "NA", "good"]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("first", ["", "sep=;"])
def test_the_separator_is_what_the_header_has_outside_quotation_marks(tmp_path, first, ends):
    lines = [first] * bool(first) + [
        'id;text;label;"remark, free"',
        "1;a;good;x",
        "2;b;bad;y, z",
        "3;c;good;",
        "4;d;bad",
    ]
    (tmp_path / "x.csv").write_bytes(ends.join(lines[:-1]).encode())
    table = read(tmp_path / "x.csv")
    assert dict(table.columns)["remark, free"] == ("x", "y, z", "")
    assert list(table.lines) == [number + len(lines) - 5 for number in (2, 3, 4)]
    (tmp_path / "x.csv").write_bytes(ends.join(lines).encode())
    with pytest.raises(InputError, match=rf"x.csv, line {len(lines)}: expected 4 cells .*, got 3"):
        read(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "cells",
    [
        [[1, 0, 1], [0, 0, 1], [0, 1, 0]],
        [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]],
        ["[1, 0, 1]", "0 0 1", "0,1,0"],
    ],
    ids=["integers", "floats", "text"],
)
def test_vectors_of_0_and_1_are_labels_by_position(tmp_path, cells):
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": cells})
    for stem in ("train", "dev"):
        save(tmp_path / f"{stem}.parquet", frame)
    task = load_task(str(tmp_path), columns=Columns(holds="labels"))
    assert (task.labels, task.train.label) == (("0", "1", "2"), ((1, 0, 1), (0, 0, 1), (0, 1, 0)))


def test_shards_need_no_columns_without_a_name(tmp_path):
    for number, header in enumerate((",text,label", "text,label")):
        first = "7," * header.startswith(",")
        rows = "".join(f"{first}{text},{label}\n" for text, label in (("a", "good"), ("b", "bad")))
        for stem in ("train", "dev"):
            (tmp_path / f"{stem}-0000{number}-of-00002.csv").write_text(f"{header}\n{rows}")
    assert load_task(str(tmp_path)).train.text == ("a", "b", "a", "b")


def test_labels_of_a_data_base_are_read(tmp_path):
    days = [datetime.date(2026, 1, day) for day in (1, 2, 1, 2)]
    for name, labels in {"values": [Decimal("1.50"), Decimal("2.25")] * 2, "days": days}.items():
        (tmp_path / name).mkdir()
        for stem in ("train", "dev"):
            save(tmp_path / name / f"{stem}.parquet", pd.DataFrame({"text": ["a", "b", "c", "d"], "label": labels}))
    assert load_task(str(tmp_path / "values")).train.label == (1.5, 2.25, 1.5, 2.25)
    assert load_task(str(tmp_path / "days")).labels == ("2026-01-01", "2026-01-02")


def test_classes_of_two_rows_are_each_trained_on(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\n" + "".join(f"text {row},class {row // 2}\n" for row in range(400)))
    task = load_task(str(tmp_path / "x.csv"))
    assert task.classes == len({*task.train.label}) == 200


@pytest.mark.parametrize("label", ["{}.75%", "\u2212{}.5", "{} EUR"])
def test_many_classes_that_are_numbers_for_people_are_told(tmp_path, label):
    rows = "".join(f"text {row},{label.format(row % 40)}\n" for row in range(400))
    (tmp_path / "x.csv").write_text("text,label\n" + rows)
    assert any(
        "each is a class; if '" in line and "' is a value, write it" in line
        for line in describe(load_task(str(tmp_path / "x.csv")))
    )


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet", ".CSV"])
def test_what_pandas_writes_is_read_back(tmp_path, ending):
    texts = [text.replace("\n", " ") for text in TEXTS] if ending == ".tsv" else TEXTS
    frame = pd.DataFrame({"id": range(6), "text": texts, "label": LABELS})
    for stem in ("train", "dev"):
        save(tmp_path / (stem + ending.lower()), frame)
        (tmp_path / (stem + ending.lower())).rename(tmp_path / (stem + ending))
    task = load_task(str(tmp_path))
    assert task.train.text == tuple(texts)
    assert task.labels == ("NA", "bad", "good")
    assert task.train.label == (2, 1, 2, 1, 0, 2)
    assert (task.dev, task.train.pair, task.metric) == (task.train, None, "accuracy")
    assert task.metrics == ("accuracy", "f1", "matthews")
    assert (task.name, str(tmp_path) in task.source) == (tmp_path.name, False)


def test_a_table_of_a_spreadsheet_may_have_semicolons(tmp_path):
    frame = pd.DataFrame({"text": [*TEXTS, "x; y"], "label": [*LABELS, "bad"]})
    frame.to_csv(tmp_path / "a.csv", index=False, sep=";")
    table = read(tmp_path / "a.csv")
    assert (list(table.columns["text"]), list(table.columns["label"])) == (list(frame.text), list(frame.label))


def test_a_table_may_have_tabs_whatever_it_is_called(tmp_path):
    frame = pd.DataFrame({"text": [*TEXTS, "x\ty; z"], "label": [*LABELS, "bad"]})
    frame.to_csv(tmp_path / "a.csv", index=False, sep="\t")
    table = read(tmp_path / "a.csv")
    assert (list(table.columns["text"]), list(table.columns["label"])) == (list(frame.text), list(frame.label))


VALUES = [0.5, 1.0, 0.0, -2.25, 3.0, 0.5, 1.0, 4.0]


@pytest.mark.parametrize("metric", [None, "pearson"])
@pytest.mark.parametrize("places", ["%g", "%.2f"])
def test_a_spreadsheets_decimal_commas_are_values(tmp_path, places, metric):
    """As pandas writes them for a country that has them, which pandas reads back with decimal=","."""
    frame = pd.DataFrame({"text": [f"text {row}" for row in range(len(VALUES))], "label": VALUES})
    for name in ("train", "dev"):
        frame.to_csv(tmp_path / f"{name}.csv", index=False, sep=";", decimal=",", float_format=places)
    task = load_task(str(tmp_path), metric=metric)
    assert (task.labels, task.train.label, task.dev.label) == (None, tuple(VALUES), tuple(VALUES))
    assert not any("--multi-label" in line for line in describe(task))
    assert describe(task)[1].endswith("(regression), read with the comma as decimal sign")
    for name in ("train", "dev"):
        frame.to_csv(tmp_path / f"{name}.csv", index=False, sep=";", float_format=places)
    assert describe(load_task(str(tmp_path), metric=metric))[1].endswith("(regression)")


def test_decimal_commas_may_be_classes_and_a_slip_among_values_is_named(tmp_path):
    whole = "text;label\na;1,0\nb;2,0\nc;1,0\n"
    assert load_task(folder(tmp_path, whole, whole)).labels == ("1", "2")
    with pytest.raises(InputError, match=r"train.csv, line 4: expected a number as label .*, got 'good'"):
        load_task(folder(tmp_path, "text;label\na;1,5\nb;2,0\nc;good\n", whole))
    # Elsewhere a comma stands between labels.
    several = "text;label\na;0,3\nb;1,2\nc;3,1\n"
    assert load_task(folder(tmp_path, several, several), columns=Columns(holds="labels")).labels == ("0", "1", "2", "3")
    quoted = 'text,label\na,"0,3"\nb,"1,2"\n'
    assert load_task(folder(tmp_path, quoted, quoted)).labels == ("0,3", "1,2")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["1.050", "2.831", "758"], "note: t: the label '1.050' is read as 1.05; if its dot is .* the column: 1050"),
        (["1.000", "2.000", "758"], "note: t: the label '1.000' is read as 1; if its dot is .* the column: 1000"),
        (["1.050", "2.831", "0.758"], None),  # here another number shows that the dot is a decimal sign
        (["1.050", "2.83", "758"], None),
        (["1.050", "mk2", "mk3"], None),  # classes
    ],
)
def test_dots_that_may_separate_thousands_are_told(tmp_path, labels, told):
    (tmp_path / "t").mkdir()
    table = "text;label\n" + "".join(f"{row};{label}\n" for row, label in enumerate(labels))
    for text, expected in ((table, told), (table.replace(";", ","), None)):
        task = load_task(folder(tmp_path / "t", text, text))
        said = [line for line in describe(task) if "thousands" in line]
        assert len(said) == (expected is not None)
        assert all(re.fullmatch(expected, line) for line in said)


def test_one_column_has_one_decimal_sign(tmp_path):
    both = "text;label\na;1.050\nb;2,5\nc;0,5\n"
    with pytest.raises(
        InputError, match=r"line 2: expected numbers with one sign, .* got '1.050'; write 1.050 as 1050"
    ):
        load_task(folder(tmp_path, both, both))


def sides() -> tuple[list[str], list[str]]:
    """Texts that a single file trains on, and those that it holds out."""
    texts = [f"text {row}" for row in range(60)]
    return tuple([texts[row] for row in part] for part in halves("t", texts, "texts"))


def test_of_a_single_file_it_is_said_what_was_held_out(tmp_path):
    train, dev = sides()
    labelled = [f"{text},{'ab'[row % 2]}\n" for part in (train, dev) for row, text in enumerate(part)]
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(labelled))
    first = describe(load_task(str(tmp_path / "one.csv")))[0]
    assert first.startswith(f"one: {len(train)} training rows, {len(dev)} dev rows held out of the same table (95 %")
    two = folder(tmp_path, "text,label\n" + "".join(labelled), "text,label\n" + "".join(labelled))
    assert "held out" not in describe(load_task(two))[0]


@pytest.mark.parametrize(
    ("trained", "held_out", "said"),
    [
        ("a", "b", r"one.csv \(without the fifth that is the dev set\), line 2: .* got 'a' in every row; .* add rows"),
        ("ab", "c", r"one.csv \(the fifth that is the dev set\), line \d+: .* got 'c'; .* give training rows with it"),
    ],
)
def test_a_class_on_one_side_of_a_single_file_is_not_called_missing_from_it(tmp_path, trained, held_out, said):
    lines = [
        f"{text},{labels[row % len(labels)]}\n"
        for part, labels in zip(sides(), (trained, held_out), strict=True)
        for row, text in enumerate(part)
    ]
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(lines))
    with pytest.raises(InputError, match=said):
        load_task(str(tmp_path / "one.csv"))


def test_a_class_that_only_the_held_out_fifth_has_is_trained_on(tmp_path):
    """All other rows stay where the hash puts them."""
    train, dev = sides()
    labels = {text: "ab"[row % 2] for part in (train, dev) for row, text in enumerate(part)} | {dev[3]: "rare"}
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(f"{text},{labels[text]}\n" for text in labels))
    task = load_task(str(tmp_path / "one.csv"))
    assert (set(task.train.text), set(task.dev.text)) == ({*train, dev[3]}, {*dev} - {dev[3]})
    assert task.labels == ("a", "b", "rare")
    assert "note: one: no dev row has the class 'rare'" in describe(task)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_pairs_scores_and_named_columns(tmp_path, ending):
    frame = pd.DataFrame({"q": ["a", "b", "c"], "p": ["d", "e", "f"], "score": [1.0, 2.5, 3.0]})
    save(tmp_path / f"train{ending}", frame)
    save(tmp_path / f"validation{ending}", frame.iloc[:2])
    task = load_task(str(tmp_path), columns=Columns(text="q", pair="p", label="score"))
    assert (task.train.text, task.train.pair, task.train.label) == (("a", "b", "c"), ("d", "e", "f"), (1.0, 2.5, 3.0))
    assert (len(task.dev), task.labels, task.metric, task.metrics) == (2, None, "spearman", ("spearman", "pearson"))


def test_kinds_of_labels(tmp_path):
    whole = folder(tmp_path, "text,label\na,10\nb,9\nc,2\n", "text,label\na,2\n")
    assert load_task(whole).labels == ("2", "9", "10")
    assert load_task(whole, metric="f1").metrics == ("f1", "accuracy", "matthews")
    scores = load_task(whole, metric="pearson")
    assert (scores.labels, scores.train.label, scores.metrics) == (None, (10.0, 9.0, 2.0), ("pearson", "spearman"))
    floats = folder(tmp_path, "text,label\na,1.0\nb,0\nc,0.0\n", "text,label\na,1\n")
    assert load_task(floats).labels == ("0", "1")
    with pytest.raises(InputError, match=r"line 3: expected a label .* got 'NaN'"):
        load_task(folder(tmp_path, "text,label\na,1\nb,NaN\nc,0\n", "text,label\na,1\n"))
    versions = folder(tmp_path, "text,label\na,3.5\nb,gpt\nc,bert\n", "text,label\na,gpt\n")
    assert load_task(versions).labels == ("3.5", "bert", "gpt")


def test_labels_of_json_and_parquet_keep_their_meaning(tmp_path):
    for stem in ("train", "dev"):
        save(tmp_path / f"{stem}.parquet", pd.DataFrame({"text": ["a", "b"], "label": [1.0, 0.0]}))
    assert load_task(str(tmp_path)).labels == ("0", "1")
    rows = '{"text": "a", "label": true}\n{"text": "b", "label": false}\n'
    (tmp_path / "rows").mkdir()
    for stem in ("train", "dev"):
        (tmp_path / "rows" / f"{stem}.jsonl").write_text(rows)
    assert load_task(str(tmp_path / "rows")).labels == ("False", "True")


def test_a_single_file_is_split_by_its_text(tmp_path):
    frame = pd.DataFrame({"text": [f"text {i % 500}" for i in range(1000)], "label": ["x", "y"] * 500})
    save(tmp_path / "all.csv", frame)
    save(tmp_path / "mixed.csv", frame.sample(frac=1, random_state=0))
    task, mixed = load_task(str(tmp_path / "all.csv")), load_task(str(tmp_path / "mixed.csv"))
    assert len(task.train) + len(task.dev) == 1000
    assert 140 <= len(task.dev) <= 260
    assert not set(task.train.text) & set(task.dev.text)
    assert sorted(task.dev.text) == sorted(mixed.dev.text)
    assert (task.name, "80/20" in task.source) == ("all", True)


def test_windows_files(tmp_path):
    path = folder(tmp_path, b"\xef\xbb\xbftext,label\r\na,x\r\nb,y\r\n\r\n", "text,label\r\na,x\r\n")
    assert load_task(path).train.text == ("a", "b")


def test_a_cell_may_be_longer_than_the_limit_of_the_csv_module(tmp_path):
    limit = csv.field_size_limit()
    text = "word " * (limit // 4)
    assert load_task(folder(tmp_path, f'text,label\n"{text}",good\nb,bad\n')).train.text[0] == text
    assert csv.field_size_limit() == limit
    # Also where the file is refused: the limit is the whole process's.
    with pytest.raises(InputError, match=r"train.csv, line 2: expected comma-separated .*quotation marks"):
        load_task(folder(tmp_path, f'text,label\n"{text},good\n'))
    assert csv.field_size_limit() == limit


def test_what_spreadsheets_add_is_left_out(tmp_path):
    sheet = 'v1,v2,,,\nham,"Go, now",,,\nspam,Win,x,,\n,,,,\n,,,,\n'
    columns = Columns(text="v2", label="v1")
    task = load_task(folder(tmp_path, sheet, sheet), columns=columns)
    assert (task.train.text, task.labels, task.train.label) == (("Go, now", "Win"), ("ham", "spam"), (0, 1))
    # An empty row between others may be a mistake.
    with pytest.raises(InputError, match=r"train.csv, line 3: expected text in column 'v2', got an empty cell"):
        load_task(folder(tmp_path, "v1,v2,,\nham,a,,\n,,,\nspam,b,,\n", sheet), columns=columns)
    # A column without a name cannot be asked for, and a missing one is named with the option that helps.
    with pytest.raises(InputError, match=r"expected a column 'text' .*, got the columns 'v1', 'v2'; .*--text-column"):
        load_task(str(tmp_path))


@pytest.mark.sweep
def test_parquet_leaves_no_thread_behind_that_could_abort_the_process(tmp_path, monkeypatch):
    frame = pd.DataFrame({"text": ["a", "b"], "label": [1, 0]})
    for stem in ("train", "dev"):
        save(tmp_path / f"{stem}.parquet", frame)
    sources = []
    original = pyarrow.parquet.read_table
    monkeypatch.setattr(
        pyarrow.parquet, "read_table", lambda source, **options: sources.append(source) or original(source, **options)
    )
    assert load_task(str(tmp_path)).labels == ("0", "1")
    # A Python object is read by pyarrow's threads, which call back into an interpreter that ends.
    assert sources == [tmp_path / "train.parquet", tmp_path / "dev.parquet"]
    program = f"from mixout.finetune.tasks import load_task; load_task({str(tmp_path)!r})"
    assert [subprocess.run([sys.executable, "-c", program]).returncode for _ in range(3)] == [0, 0, 0]
