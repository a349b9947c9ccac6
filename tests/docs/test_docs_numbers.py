"""Tables of pages that show single results say what benchmarks/results/*.csv hold, to the last digit that they show."""

from __future__ import annotations

import re
from pathlib import Path

import pandas
import pytest

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e-?\d+)?")


def read(name):
    return pandas.read_csv(ROOT / "benchmarks" / "results" / f"{name}.csv")


def rows(page, header):
    """The table whose header holds a text: of each row the first cell, and the numbers of the others."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("|") and header in line)
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        name, _, rest = line.strip("| ").partition(" | ")
        yield name.strip("`*"), NUMBER.findall(rest)


def quickstart():
    runs = read("quickstart").query("seed < 5").groupby(["learning_rate", "method"]).accuracy
    for rate, found in rows("quickstart.md", "without the line"):
        names = [(float(rate), "none"), (float(rate), "anchor_decay(radius=0.005)")]
        yield found, [getattr(runs, what)()[name] for name in names for what in ("mean", "min", "max")]


def stay_close():
    runs = read("stay_close").set_index(["method", "learning_rate"]).sort_index()
    for name, found in rows("compared.md", "best of three rates"):
        labels = runs.index.levels[0]
        label = "dropout(0.0)" if name == "no dropout" else next(one for one in labels if name.startswith(one))
        best = runs.loc[label].score.idxmax()
        values = [runs.loc[(label, rate)] for rate in (best, 1.6e-3)]
        yield found, [values[0].score, best, values[0].original, values[1].score, values[1].original]


def demo():
    runs = read("demo").pivot(index="method", columns="learning_rate", values="score")
    for name, found in rows("demo.md", "points lost"):
        yield found, [*runs.loc[name], 100 * (runs.loc[name].iloc[0] - runs.loc[name].iloc[-1])]


def demo_tie():
    runs = read("demo_tie").set_index("method")
    for name, found in rows("demo.md", "training seconds"):
        one = runs.loc[name]
        yield found, [one[key] for key in ("mean", "sd", "min", "max", "failed", "restarts", "seconds")]


def dare():
    plain, mixed = (read(f"dare_sst2_{name}").groupby(["curve", "removed"]).score for name in ("plain", "mixout"))
    for curve, found in rows("dare.md", "dropout(0.0) | mixout(0.9)"):
        key = (curve, float(found[0]))
        spread = [] if curve == "interpolation" else ["std"]
        yield found[1:], [getattr(of, what)()[key] for of in (plain, mixed) for what in ("mean", *spread)]


TABLES = [quickstart, stay_close, demo, demo_tie, dare]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_a_table_says_what_its_file_holds(table):
    checked = [*table()]
    assert checked
    for found, expected in checked:
        assert len(found) == len(expected), found
        for text, value in zip(found, expected, strict=True):
            digits = 9 if "e" in text else len(text.partition(".")[2])
            assert float(text) == pytest.approx(value, rel=0, abs=0.5 * 10**-digits + 1e-9)
