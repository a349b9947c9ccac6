"""The files of a report: complete, exact, the same each time, and readable by other programs."""

from __future__ import annotations

import csv
import json
import math
import struct
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from mixout.errors import InputError
from mixout.finetune.record import write_atomically
from mixout.study import report as report_module
from mixout.study.analysis.runs import Run
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


def test_a_report_that_was_cut_off_is_written_again(study, tmp_path, monkeypatch):
    def cut_off(path, text):
        if path.name == "summary.json":
            raise OSError("disk full")
        write_atomically(path, text)

    monkeypatch.setattr(report_module, "write_atomically", cut_off)
    with pytest.raises(OSError, match="disk full"):
        write_report(study(plain=True), tmp_path / "report", title="t")
    monkeypatch.undo()
    page = write_report(study(plain=True), tmp_path / "report", title="t")
    assert "was not finished" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("margin", [0.0, -1.0, math.inf, math.nan])
def test_a_margin_that_is_none_is_refused(study, tmp_path, margin):
    with pytest.raises(InputError, match="margin > 0"):
        write_report(study(), tmp_path / "report", title="t", margin=margin)


def test_what_has_no_score_comes_last_where_scores_are_negative(tmp_path, parse):
    scores = {"a": -2.5, "b": -2.4, "c": math.nan}
    runs = [Run(task="lm", method=m, restart=k, score=s - 0.01 * k) for m, s in scores.items() for k in range(2)]
    page = parse(write_report(runs, tmp_path / "report", title="t").read_text(encoding="utf-8"))
    [table] = [one for one in page.all("table") if one.attributes["id"] == "table-scores-0"]
    rows = [row.words().split()[0] for row in table.all("tbody")[0].all("tr")]
    assert rows == ["b", "a", "c"]


@pytest.mark.usefixtures("undrawn")
def test_models_between_start_and_end_are_no_runs(study, tmp_path):
    """Scores that were published have no identity either, but they are runs, whatever their methods are called."""
    runs = study(plain=True, methods=("plain", "mixout(0.9)"))
    runs = [replace(run, id=f"{number:064}") for number, run in enumerate(runs)]
    between = [replace(run, method=f"{run.method} at t=0.5", status="failed", id="", between=True) for run in runs]
    runs += [
        Run(task="RTE", method="sampled at t=0.7", restart=k, score=0.7, metric="F1", chance=0.5) for k in range(6)
    ]
    page = write_report(runs + between, tmp_path / "report", title="t")
    for again in (page, write_report(read_scores(page.with_name("runs.csv")), tmp_path / "again", title="t")):
        text = again.read_text(encoding="utf-8")
        assert f"{len(runs)} runs \u00b7" in text
        assert f"\u00b7 {sum(run.failed for run in runs)} failed" in text
        assert "Unfinished runs" not in text


@pytest.mark.filterwarnings("error")
def test_letters_that_the_font_lacks_say_nothing(tmp_path):
    runs = [
        Run(task="\u4efb\u52a1", method=f"\u65b9\u6cd5 {m}", restart=k, score=0.1 * k) for m in "ab" for k in range(3)
    ]
    page = write_report(runs, tmp_path / "report", title="\U0001f600").read_text(encoding="utf-8")
    assert "\u4efb\u52a1" in page
