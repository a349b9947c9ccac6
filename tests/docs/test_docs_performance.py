"""The tables of docs/performance.md say what benchmarks/results/*.csv hold, to the last digit that they show."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Row = dict[str, str]
# A row's first cell: what the files call it (method, p, mode, anchor), and what host.csv and decay.csv do.
NAMES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "mixout(0.9)": ({"method": "mixout", "p": "0.9", "mode": "train", "anchor": ""}, {}),
    "mixout(0.5)": ({"method": "mixout", "p": "0.5", "mode": "train", "anchor": ""}, {}),
    "mixout(0.1)": ({"method": "mixout", "p": "0.1", "mode": "train", "anchor": ""}, {}),
    "mixout(0.9), anchor in bfloat16": ({"method": "mixout", "anchor": "bf16"}, {}),
    "mixout(0.9), anchor on the host": ({"method": "mixout", "anchor": "host"}, {}),
    'mixout(0.9), `form="fast"`': ({}, {"method": "mixout(0.9), fast"}),
    "mixout(0.9), `seed=1`": ({}, {"method": "mixout(0.9), seed 1"}),
    "mixconnect(0.9)": ({"method": "mixconnect"}, {}),
    "dropout(0.1)": ({"method": "dropout"}, {"method": "dropout(0.1)"}),
    "the authors' formulation, p = 0.9": ({"method": "authors"}, {"method": "none"}),
    "eval mode, same computation": ({"mode": "eval"}, {"method": "none"}),
    "eval mode": ({"mode": "eval"}, {"method": "none"}),
    "plain, against itself": ({"method": "none"}, {"method": "dropout(0.0)"}),
    "anchor_decay with Fisher weights": ({"method": "none"}, {"method": "anchor_decay(weights)"}),
}


@cache
def read(name: str) -> tuple[Row, ...]:
    with (ROOT / "benchmarks" / "results" / f"{name}.csv").open(newline="") as file:
        return tuple(csv.DictReader(file))


def ratio(name: str, column: str = "ratio", **wanted: str) -> float | None:
    found = [row for row in read(name) if all(row[key] == value for key, value in wanted.items())]
    assert len(found) <= 1, (name, wanted)
    return float(found[0][column]) if found else None


def tables() -> list[list[list[str]]]:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]] for table in found
    ]


def cpu() -> Iterator[tuple[str, float | None]]:
    for name, *cells in tables()[0]:
        if name == "its aim":
            continue
        step, on_host = NAMES.get(name, ({"method": "none"}, {}))
        places = [("bert-base-3", "4096"), *(("minilm", tokens) for tokens in ("512", "256", "128", "64"))]
        values = [ratio("step-cpu", case=case, tokens=tokens, **step) if step else None for case, tokens in places]
        method = on_host.get("method", name)
        if "decay" in name or name.startswith("plain"):
            values[1] = ratio("decay", case="minilm", method=method)
        values.append(
            ratio("decay", case="costs-nothing", method=method)
            if "decay" in name
            else ratio("host", what="process time", method=method)
        )
        yield from zip(cells, values, strict=True)


def gpu() -> Iterator[tuple[str, float | None]]:
    for case, name, measured, predicted, _aim in tables()[1][:10]:
        assert case in {"", "BERT-large, 4,096 tokens"}
        step, on_host = NAMES[name]
        yield measured.replace("not measured", ""), ratio("step-cuda", **step) if step else None
        if predicted and name != "eval mode":
            method = on_host.get("method", name) + ", fast" * (name == "mixout(0.9)")  # what a GPU gets
            yield predicted, ratio("host", what="process time", method=method)
    large, llama = tables()[1][10:12]
    done = [ratio("busy-cuda", "done_ms", form=form, tokens="16384", note="") for form in ("native", "plain")]
    assert done[0] is not None
    assert done[1] is not None
    yield large[2], done[0] / done[1]
    yield llama[2], ratio("step-cuda-fused", case="llama-1b", **NAMES["mixout(0.9)"][0])


def memory() -> Iterator[tuple[str, float | None]]:
    for name, _kept, saved, anchored, peak in tables()[2]:
        step = NAMES[name][0] if name in NAMES else {"method": "none"}
        for cell, quantity in ((saved, "saved"), (anchored, "saved+anchor")):
            yield cell, ratio("memory-cpu", case="bert-base-12", quantity=quantity, **step)
        yield peak, ratio("memory-cuda", quantity="peak", **step)


def disk() -> Iterator[tuple[str, float | None]]:
    measured = [ratio("state", "value", what=name) or 0.0 for name in ("apply_", "save_state", "distance")]
    for (_what, seconds, *_), value in zip(tables()[3], [*measured, sum(measured[1:])], strict=True):
        yield seconds.removesuffix(" s"), value


@pytest.mark.parametrize("table", [cpu, gpu, memory, disk], ids=lambda table: table.__name__)
def test_a_table_says_what_was_measured(table):
    wrong = [
        (cell, value)
        for cell, value in table()
        if (value is None) != (cell == "") or (value is not None and abs(float(cell) - value) > 0.005 + 1e-9)
    ]
    assert wrong == []
    assert len(tables()) == 4


def test_compilation_is_what_was_measured():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    ratio, aim, step = map(
        float, re.findall(r"a ratio of (\S+) \(aim: (\S+)\)\. A compiled step takes (\S+) of", text)[0]
    )
    measured = {row["what"]: float(row["ratio"]) for row in read("compile-cpu")}
    assert (ratio, step) == (round(measured["time to compile"], 2), round(measured["compiled step"], 2))
    assert ratio <= aim


def test_one_thread_and_memory_that_is_kept_are_what_was_measured():
    text = " ".join((ROOT / "docs" / "performance.md").read_text(encoding="utf-8").split())
    steps = {(row["tokens"], row["method"]): row["ratio"] for row in read("step-cpu-one-thread")}
    every, lean, element, plain = "mixout(0.9, every=16)", "mixout(0.9), lean", "mixconnect(0.9)", "dropout(0.0)"
    few, many = ("mixout(0.9)", every, element, plain), ("mixout(0.9)", every, lean, element, plain)
    expected = [steps["64", name] for name in few] + [steps["512", name] for name in many]
    said = text.partition("**One thread, memory kept,**")[2].partition("Ten pairs")[0]
    assert re.findall(r"(?<!aim )\b\d\.\d\d\b", said) == [f"{float(ratio):.2f}" for ratio in expected]
    kept = {(row["method"], row["tokens"]): f"{float(row['ratio']):.2f}" for row in read("allocator")}
    said = text.partition("**Memory that goes back and forth:**")[2].partition("`mixout finetune`")[0]
    order = [(method, tokens) for method in (plain, "mixout(0.9)") for tokens in ("64", "512")]
    assert re.findall(r"\b\d\.\d\d\b", said) == [kept[one] for one in order]
