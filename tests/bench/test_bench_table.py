"""Rows as text and as CSV, there and back."""

import csv
import io
from dataclasses import replace

import pytest
import torch

import mixout
from mixout.bench.table import Row, environment, from_csv, table, to_csv
from mixout.errors import InputError

ROW = Row(
    what="step", case="minilm", tokens=4096, precision="fp32", compiled=False, method="mixout", p=0.9, mode="train",
    anchor="", quantity="time", ratio=0.6871, low=1 / 3, high=0.71, pairs=10, floor=0.7098, plain=1.23456789,
    value=0.84827,
)  # fmt: skip
ROWS = [
    ROW,
    replace(ROW, mode="eval", compiled=True, p=0.1),
    replace(ROW, what="memory", quantity="saved", floor=None, anchor="bf16"),
]


def test_csv_there_and_back():
    assert from_csv(to_csv(ROWS, {"date": "2026-01-01", "gpu": "one, with a comma"})) == ROWS


def test_csv_says_on_what_and_when():
    (line,) = csv.DictReader(io.StringIO(to_csv([ROW], environment())))
    assert line["torch"] == torch.__version__
    assert line["mixout"] == mixout.__version__
    assert line["threads"] == str(torch.get_num_threads())
    assert {"date", "processor", "cores", "gpu", "system", "transformers"} <= line.keys()


@pytest.mark.parametrize("text", ["a,b\n1,2\n", to_csv([ROW], {}).replace("0.6871", "fast")])
def test_another_file_is_refused(text):
    with pytest.raises(InputError, match="mixout bench"):
        from_csv(text)


def test_the_table_has_ratios_and_no_absolute_times():
    lines = table(ROWS).splitlines()
    assert len(lines) == 4
    assert lines[1].split() == [
        "step", "minilm", "4,096", "fp32", "mixout(0.9)", "time", "0.687", "0.333", "0.710", "10", "0.710",
    ]  # fmt: skip
    assert "mixout(0.1), eval" in lines[2]
    assert "fp32 compiled" in lines[2]
    assert "mixout(0.9), bf16 anchor" in lines[3]
    assert "1.23" not in table(ROWS)
