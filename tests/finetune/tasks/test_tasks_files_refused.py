"""Files that cannot be used are refused, with the file, the line, and what to do."""

from __future__ import annotations

import hashlib
import json
import re
import sys

import pandas as pd
import pytest
from tests.finetune.tasks.conftest import GOOD, folder, rows, save

from mixout.errors import InputError, MissingExtraError
from mixout.finetune.tasks import Columns, load_task
from mixout.finetune.tasks.tables import read

CASES = {
    "missing column": (
        "sentence,label\na,good\n",
        GOOD,
        {},
        r"train.csv: expected a column 'text', got the columns 'sentence', 'label'; rename",
    ),
    "missing in dev": (GOOD, "text\na\n", {}, r"dev.csv: expected a column 'label', got the columns 'text'"),
    "named pair": (
        GOOD,
        GOOD,
        {"columns": Columns(pair="text_pair")},
        r"train.csv: expected a column 'text_pair', got",
    ),
    "pair in dev only": (GOOD, "text,text_pair,label\na,b,good\n", {}, r"train.csv: expected a column 'text_pair'"),
    "pair in train only": (
        "text,text_pair,label\na,b,good\nc,d,bad\n",
        GOOD,
        {},
        r"dev.csv: expected a column 'text_p",
    ),
    "column twice": ("text,text,label\na,b,good\n", GOOD, {}, r"train.csv, line 1: .* got 'text' twice; rename"),
    "blank line": (
        'text,label\n"a\nb",good\n\nc,bad\n',
        GOOD,
        {},
        r"train.csv, line 4: expected text in column 'text', got an empty cell; fill or remove the row",
    ),
    "empty text": (GOOD, "text,label\na,good\n ,bad\n", {}, r"dev.csv, line 3: expected text in column 'text', got an"),
    "empty label": (GOOD + "c,\n", GOOD, {}, r"train.csv, line 4: expected a label .* in column 'label', got an empty"),
    "too many cells": (
        GOOD + "c,d,e\n",
        GOOD,
        {},
        r"train.csv, line 4: expected 2 cells \(text, label\), got 3; check",
    ),
    "open quote": (GOOD + '"c,bad\n', GOOD, {}, r"train.csv, line 4: expected comma-separated .*quotation marks"),
    "not UTF-8": (
        b"text,label\na,good\nb\xe9,bad\n",
        GOOD,
        {},
        r"train.csv, line 3: .* got byte 0xe9 at offset 19; save .* as UTF-8 \(in Excel: Save as, CSV UTF-8\)",
    ),
    "empty file": (GOOD, "", {}, r"dev.csv: expected rows, got an empty file"),
    "header only": (GOOD, "text,label\n", {}, r"dev.csv: expected rows under the header, got none"),
    "one class": (
        "text,label\na,x\nb,x\n",
        GOOD,
        {},
        r"train.csv, line 2: .* at least 2 different labels .* got 'x' in",
    ),
    "new class": (GOOD, GOOD + "c,fair\n", {}, r"dev.csv, line 4: .* training rows \(bad, good\), got 'fair'; correct"),
    "a slip in scores": (
        "text,label\na,1.5\nb,2.5\nc,bad\n",
        GOOD,
        {},
        r"train.csv, line 4: expected a number as label \(regression\), got 'bad'; correct",
    ),
    "dev scores": ("text,label\na,1.5\nb,2\n", GOOD, {}, r"dev.csv, line 2: expected a number as label .* got 'good'"),
    "infinite": (
        "text,label\na,1.5\nb,2\nc,inf\n",
        GOOD,
        {},
        r"train.csv, line 4: expected a number as label .* 'inf'",
    ),
    "accuracy of scores": (
        "text,label\na,1.5\nb,2\n",
        GOOD,
        {"metric": "accuracy"},
        r"labels that are numbers \(regression\), got 'accuracy'; use one of pearson, spearman",
    ),
    "correlation of classes": (
        GOOD,
        GOOD,
        {"metric": "pearson"},
        r"labels that are classes, got 'pearson'; use one of",
    ),
    "unknown metric": (
        GOOD,
        GOOD,
        {"metric": "acuracy"},
        r"expected a metric of .*, got 'acuracy'; did you mean 'accur",
    ),
    "data_dir": (GOOD, GOOD, {"data_dir": "x"}, r"expected data_dir only with a GLUE task, got it with the task '"),
}


@pytest.mark.parametrize(("train", "dev", "options", "message"), CASES.values(), ids=CASES)
def test_files_that_cannot_be_used(tmp_path, train, dev, options, message):
    with pytest.raises(InputError, match=message):
        load_task(folder(tmp_path, train, dev), **options)


def test_folders_that_lack_a_file(tmp_path):
    with pytest.raises(
        InputError, match=r"expected one file train in .* ends in .csv, .tsv, .* got an empty folder; add"
    ):
        load_task(str(tmp_path))
    (tmp_path / "train.csv").write_text(GOOD)
    (tmp_path / "dev.xlsx").write_text(GOOD)
    with pytest.raises(
        InputError, match=r"expected one file dev or validation in .*, got dev.xlsx, train.csv; add it, or"
    ):
        load_task(str(tmp_path))
    (tmp_path / "dev.csv").write_text(GOOD)
    (tmp_path / "validation.csv").write_text(GOOD)
    with pytest.raises(InputError, match=r"got dev.csv, validation.csv; remove all but one"):
        load_task(str(tmp_path))


def test_a_folder_with_a_test_file_is_split_and_tested(tmp_path):
    path = folder(tmp_path, GOOD, name="test.csv")
    command = re.escape(f"split train: mixout finetune {path}/train.csv --test {path}/test.csv")
    with pytest.raises(InputError, match=rf"got test.csv, train.csv; add it, or {command}$"):
        load_task(path)


def test_single_files_that_cannot_be_used(tmp_path):
    (tmp_path / "data.xlsx").write_text(GOOD)
    with pytest.raises(
        InputError,
        match=r"data.xlsx: expected a file that ends in .csv, .*, got '.xlsx'; save it .*Excel: Save as, CSV",
    ):
        load_task(str(tmp_path / "data.xlsx"))
    with pytest.raises(
        InputError, match=r"expected a file or folder that exists, .*dta.xlsx'; did you mean 'data.xlsx'"
    ):
        load_task(str(tmp_path / "dta.xlsx"))
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(InputError, match=r"got '.json'; write one object a line, .* a file that ends in .jsonl"):
        load_task(str(tmp_path / "data.json"))
    (tmp_path / "data").write_text(GOOD)
    with pytest.raises(InputError, match=r"got 'no ending'; convert it"):
        load_task(str(tmp_path / "data"))
    (tmp_path / "data.csv").write_text("text,label\na,x\na,y\n")
    with pytest.raises(
        InputError, match=r"data.csv: expected enough different texts .* got 2 rows that all fall on one"
    ):
        load_task(str(tmp_path / "data.csv"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            '{"text": "a", "label": 1}\n{"text": "b" "label": 2}\n',
            r"data.jsonl, line 2: expected a JSON object, got what",
        ),
        ('["a", 1]\n', r"data.jsonl, line 1: expected a JSON object, got list; write"),
        ('{"text": "a", "label": 1}\n{"text": "b"}\n', r"data.jsonl, line 2: expected a label .* got an empty cell"),
        ('{"text": "a", "label": {"a": 1}}\n', r"data.jsonl, line 1: expected a label .* got \{'a': 1\}"),
        ('{"text": 5, "label": 1}\n', r"data.jsonl, line 1: expected text in column 'text', got 5;"),
        ('{"text": null, "label": 1}\n', r"data.jsonl, line 1: expected text in column 'text', got an empty cell"),
        (
            '{"text": "a", "label": 1}\n\n{"text": "a", "label": 1}',
            r"data.jsonl, line 2: expected text .* an empty cell",
        ),
        ('{"text": "\\ud800", "label": 1}\n', r"data.jsonl, line 1: expected a JSON object, .*surrogates"),
        (
            '{"text": "a", "label": 1}\n{"text": "a", "label": 1, "text_pair": "b"}\n',
            r"data.jsonl, line 1: expected text in column 'text_pair', got an empty cell",
        ),
    ],
)
def test_json_lines_that_cannot_be_used(tmp_path, lines, message):
    (tmp_path / "data.jsonl").write_text(lines)
    with pytest.raises(InputError, match=message):
        load_task(str(tmp_path / "data.jsonl"))


def test_parquet_that_cannot_be_used(tmp_path, monkeypatch):
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 this is none")
    with pytest.raises(InputError, match=r"data.parquet: expected a Parquet file, got what pyarrow cannot read"):
        load_task(str(path))
    save(path, pd.DataFrame({"text": [], "label": []}))
    with pytest.raises(InputError, match=r"data.parquet: expected at least one row, got none"):
        load_task(str(path))
    save(path, pd.DataFrame({"text": ["a", "b"], "label": [1.0, None]}))
    with pytest.raises(InputError, match=r"data.parquet, row 2: expected a label .* got an empty cell"):
        load_task(str(path))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"'pyarrow' .* Parquet files.*pip install \"mixout\[data\]\""):
        load_task(str(path))


def test_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "train.csv").mkdir()
    with pytest.raises(InputError, match=r"train.csv: expected a file that can be read, got Is a directory; check"):
        read(tmp_path / "train.csv")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("RET", r"did you mean 'rte'\?"),
        ("docstring", r"did you mean 'docstrings'\?"),
        ("data/colla", r"did you mean 'cola'\?"),
        ("stsbench", r"did you mean 'stsb'\?"),
        ("x" * 300, "check the path"),
    ],
)
def test_a_task_that_does_not_exist(name, hint):
    with pytest.raises(
        InputError, match=rf"expected a file or folder that exists, or a task \(RTE, .*, docstrings\), .*; {hint}"
    ):
        load_task(name)


@pytest.mark.parametrize("names", [{"text": "label"}, {"text": ""}, {"pair": "text"}, {"label": "text_pair"}])
def test_column_names_that_cannot_be(names):
    with pytest.raises(InputError, match=r"expected three different column names, got \("):
        Columns(**names)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            rows(100, lambda i: i % 2, lambda i: "" if i % 5 < 2 else f"t{i}"),
            r"line 2: expected text .* an empty cell; 40 of 100 rows are like this \(lines 2, 3, 7, 8, 12, \.\.\.\); "
            r"fill or remove the rows$",
        ),
        (
            rows(9, lambda i: "" if i in (3, 6) else i % 2),
            r"line 5: expected a label .* 2 of 9 rows are like this \(lines 5, 8\); fill",
        ),
        (
            rows(9, lambda i: "b,c" if i in (2, 5, 8) else "a"),
            r"line 4: expected 2 cells \(text, label\), got 3; 3 of 9 rows are like this \(lines 4, 7, 10\); check",
        ),
        (
            rows(9, lambda i: "bad" if i == 4 else i + 0.5),
            r"line 6: expected a number as label \(regression\), got 'bad'; correct or remove the row, or use --multi-",
        ),
    ],
    ids=["texts", "labels", "cells", "one"],
)
def test_all_bad_rows_are_counted_and_the_first_are_named(tmp_path, train, message):
    with pytest.raises(InputError, match=message):
        load_task(folder(tmp_path, train))


def test_rows_of_a_single_file_keep_their_lines(tmp_path):
    texts = [f"text {i}" for i in range(200)]
    held_out = {i for i, text in enumerate(texts) if int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) % 5 == 0}
    first, second = sorted(held_out)[3:5]
    (tmp_path / "t.csv").write_text(rows(200, lambda i: "odd" if i in (first, second) else i / 4))
    with pytest.raises(
        InputError, match=rf"line {first + 2}: .* got 'odd'; 2 of {len(held_out)} rows .*{second + 2}\)"
    ):
        load_task(str(tmp_path / "t.csv"))


def test_a_column_of_names_is_no_column_of_classes(tmp_path):
    with pytest.raises(InputError, match=r"\(n01, n02, .*, \.\.\.\).* have 50 labels: is it another --label-column"):
        load_task(folder(tmp_path, rows(50, lambda i: f"n{i + 1:02d}"), rows(2, lambda i: "n00")))


@pytest.mark.parametrize("count", [50, 33])
def test_a_column_of_whole_values_says_how_to_learn_values(tmp_path, count):
    train = rows(50, lambda i: 7 * (i % count))
    with pytest.raises(InputError, match="; if they are values, choose --metric spearman"):
        load_task(folder(tmp_path, train, rows(2, lambda i: 1)))
    assert load_task(folder(tmp_path, train, rows(2, lambda i: 1)), metric="spearman").kind == "values"


@pytest.mark.parametrize(
    ("cell", "separator"),
    [("1.0{},50", ";"), ("{}.50 \u20ac", ";"), ('"1,0{}"', ","), ("${}.50", ","), ("{} kg", ",")],
)
def test_numbers_for_people_are_named(tmp_path, cell, separator):
    """Numbers with a thousands sign or a unit: as classes that differ in each row, and as values."""
    header, first = f"text{separator}label\n", cell.format(10).strip('"')
    table = header + "".join(f"text {row}{separator}{cell.format(row)}\n" for row in range(10, 60))
    with pytest.raises(
        InputError, match=re.escape(f"if {first!r} is a value, write it without thousands sign and unit")
    ):
        load_task(folder(tmp_path, table, f"{header}a{separator}other\n"))
    with pytest.raises(
        InputError, match=rf"line 2: .* got {re.escape(repr(first))}; .*write numbers without thousands"
    ):
        load_task(folder(tmp_path, table, table), metric="spearman")


def test_a_label_that_is_new_is_named_also_among_many_classes(tmp_path):
    with pytest.raises(InputError, match=r"line 2: expected a label that also .*, got '99'.*have 12 labels: is it"):
        load_task(folder(tmp_path, rows(23, lambda i: i % 12 + 1), rows(2, lambda i: 99)))


def test_a_row_says_where_it_stands_in_a_long_file(tmp_path):
    rows = [json.dumps({"text": f"t{i}", "label": i % 2}) for i in range(2000)]
    rows[1234] = json.dumps({"text": "", "label": 0})
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    with pytest.raises(InputError, match=r"data.jsonl, line 1235: "):
        load_task(str(tmp_path / "data.jsonl"))
