from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

pytestmark = [pytest.mark.sweep, pytest.mark.usefixtures("one_thread")]
EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "causal_lm.py"))


def test_the_example_shows_what_is_learned_and_what_is_forgotten(capsys, tmp_path):
    EXAMPLE["main"](original=40, new=16, dev=8, epochs=1.0)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["method", "new", "domain", "original", "domain"]
    numbers = {row.split()[0]: [float(number) for number in re.findall(r"\d\.\d{3}", row)] for row in rows}
    assert tuple(numbers) == EXAMPLE["METHODS"]
    # One pretrained model; each method learns, and each ends elsewhere.
    assert len({(new, original) for new, _, original, _ in numbers.values()}) == 1
    assert all(after < before - 0.05 for before, after, _, _ in numbers.values())
    assert len({tuple(row) for row in numbers.values()}) == 3


def test_its_text_is_real_and_stands_on_one_side_only(tmp_path):
    EXAMPLE["write_text"]("networkx", tmp_path / "text", train=30, dev=10)
    train, dev = ((tmp_path / "text" / f"{name}.txt").read_text().split("\n\n") for name in ("train", "dev"))
    assert (len(train), len(dev)) == (30, 10)
    assert set(train).isdisjoint(dev)
    assert sum("node" in text or "graph" in text.lower() for text in train) > 10
