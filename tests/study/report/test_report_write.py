"""The files of a report: complete, exact, the same each time, and readable by other programs."""

from __future__ import annotations

import csv
import json
import struct
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from mixout.errors import InputError
from mixout.study.analysis.table import read_scores
from mixout.study.report import write_report

CHARTS = {"scores", "differences", "best-of", "losses", "over-steps"}


def test_every_file_is_there_and_the_page_leads_to_each(report, parse):
    found = {path.relative_to(report.parent).as_posix() for path in report.parent.rglob("*") if path.is_file()}
    figures = {f"figures/{name}.{kind}" for name in CHARTS for kind in ("svg", "png")}
    numbers = {"cells.csv", "comparisons.csv", "runs.csv", "summary.json"}
    assert found == {"index.html"} | figures | numbers
    linked = {one.attributes["href"] for one in parse(report.read_text()).all("a")}
    assert {address for address in linked if not address.startswith("#")} == figures | numbers


def test_figures_are_pictures(report):
    for name in CHARTS:
        png = (report.parent / "figures" / f"{name}.png").read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        svg = ElementTree.parse(report.parent / "figures" / f"{name}.svg").getroot()
        _, _, points_wide, points_high = map(float, svg.attrib["viewBox"].split())
        assert width / height == pytest.approx(points_wide / points_high, rel=0.01)


def test_cells_and_comparisons_are_exact(study, report):
    runs = study()
    with (report.parent / "cells.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            scores = [run.counted for run in runs if (run.task, run.method) == (row["task"], row["method"])]
            assert float(row["mean"]) == pytest.approx(np.mean(scores), rel=1e-12)
            assert float(row["median"]) == pytest.approx(np.median(scores), rel=1e-12)
    with (report.parent / "comparisons.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 2 * 3
    for row in rows:
        one, other = (
            {run.restart: run.counted for run in runs if (run.task, run.method) == (row["task"], method)}
            for method in (row["method"], "dropout(0.1)")
        )
        gaps = [one[restart] - other[restart] for restart in one if restart in other]
        assert float(row["difference"]) == pytest.approx(np.mean(gaps), rel=1e-9, abs=1e-12)


@pytest.mark.usefixtures("undrawn")
def test_runs_are_read_back(study, tmp_path):
    runs = study(plain=True)
    write_report(runs, tmp_path, title="T")
    assert read_scores(tmp_path / "runs.csv") == runs


@pytest.mark.usefixtures("undrawn")
def test_factors_are_columns_and_part_of_the_label(study, parse, tmp_path):
    runs = [replace(run, factors={"epochs": n, "size": "1"}) for n in ("3", "9") for run in study(plain=True)]
    page = write_report(runs, tmp_path, title="T")
    with (tmp_path / "cells.csv").open(newline="") as handle:
        assert {row["epochs"] for row in csv.DictReader(handle)} == {"3", "9"}
    heads, rows = (
        [[cell.words() for cell in row.all("th", "td")] for row in part.all("tr")]
        for table in parse(page.read_text()).all("table")
        if table.attributes["id"] == "table-scores-0"
        for part in (table.all("thead")[0], table.all("tbody")[0])
    )
    assert heads[0][:2] == ["method", "epochs"]
    assert ["dropout(0.1)", "9"] in [row[:2] for row in rows]
    assert "size" not in heads[0]  # the same everywhere


@pytest.mark.sweep
def test_the_same_runs_give_the_same_bytes(study, tmp_path):
    for name in ("one", "two"):
        write_report([run for run in study() if run.task == "RTE"], tmp_path / name, title="T")
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path


def test_the_summary_is_json(report):
    assert len(json.loads((report.parent / "summary.json").read_text())["cells"]) == 8


def test_a_wrong_baseline_writes_nothing(study, tmp_path):
    with pytest.raises(InputError, match=r"expected a baseline among .*mixout\(0\.5\)"):
        write_report(study(), tmp_path / "report", title="T", baseline="mixout(0.6)")
    assert not (tmp_path / "report").exists()
