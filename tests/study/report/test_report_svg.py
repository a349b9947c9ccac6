"""Drawings of matplotlib as parts of a page; marks in a figure stand where their numbers are."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from mixout.study.report.canvas import Chart, page_svgs
from mixout.study.report.curves import Curve, curves
from mixout.study.report.looks import COLORS, INK, MARKS, PERIOD, look, style
from mixout.study.report.rows import Estimate, Strip, forest, strips
from mixout.study.report.svg import inline

LABEL = 'a <b> & "c" $x_1$ \u2026'


def _drawn() -> str:
    with style():
        figure = Figure()
        axes = figure.add_subplot()
        axes.plot([0, 1], [1, 2], "o", color=COLORS[0])[0].set_gid("method-4")
        axes.set_title(LABEL)
        text = io.StringIO()
        figure.savefig(text, format="svg")
    return text.getvalue()


def test_two_drawings_share_no_id():
    one, two = (ElementTree.fromstring(inline(_drawn(), prefix=name, title="T", description="D")) for name in "ab")
    ids = [[element.attrib["id"] for element in root.iter() if "id" in element.attrib] for root in (one, two)]
    assert all(ids)
    assert not set(ids[0]) & set(ids[1])
    for root, known in zip((one, two), ids, strict=True):
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', ElementTree.tostring(root, encoding="unicode"))
        assert used
        assert set(used) <= set(known)


def test_colors_follow_the_page():
    text = inline(_drawn(), prefix="a", title="T", description="D")
    assert not re.search(r"#[0-9a-fA-F]{6}\b", text)
    assert "currentColor" in text
    assert "var(--m0)" in text
    assert "font-family" not in text
    assert INK not in text


def test_a_label_stays_text():
    root = ElementTree.fromstring(inline(_drawn(), prefix="a", title=LABEL, description="D"))
    assert LABEL in [element.text for element in root.iter("text")]
    assert root.find("title").text == LABEL
    assert root.find(".//*[@class='method m4']") is not None
    assert root.find(".//style") is None


def test_decoration_is_hidden_from_readers():
    root = ElementTree.fromstring(inline(_drawn(), prefix="a"))
    assert root.attrib["aria-hidden"] == "true"
    assert root.find("title") is None


def test_looks_differ_by_more_than_color():
    looks = [look(number) for number in range(len(COLORS) * len(MARKS))]
    assert len({(one.color, one.mark) for one in looks}) == len(looks)
    for one, other in zip(looks, looks[len(COLORS) :], strict=False):
        assert one.color == other.color
        assert one.mark != other.mark
    assert look(PERIOD) == look(0)


def _marks(panel, number: int) -> np.ndarray:
    chart = Chart(name="c", title="T", caption="", panels=(panel,))
    root = ElementTree.fromstring(page_svgs(chart)[0])
    groups = root.findall(f".//g[@class='method m{number}']")
    return np.array([[float(use.attrib["x"]), float(use.attrib["y"])] for g in groups for use in g.iter("use")])


def test_every_restart_stands_at_its_score():
    draw = np.random.default_rng(0)
    scores = np.round(draw.choice([0.5, 0.52, 0.7, 0.9], 40) + draw.normal(0, 0.01, 40), 2)
    failed = scores <= 0.51
    rows = [
        Strip(number=0, label="one", note="", scores=(0.4, 1.0), failed=(True, False), mean=0.7, low=None, high=None),
        Strip(
            number=1,
            label="two " * 20,
            note="n",
            scores=tuple(scores),
            failed=tuple(failed),
            mean=0.6,
            low=0.5,
            high=0.7,
        ),
    ]
    panel = strips("T", rows, axis="a", chance=0.51, description="d")
    ends = _marks(panel, 0)
    marks = _marks(panel, 1)
    assert len(marks) == 40
    scale = (ends[:, 0].max() - ends[:, 0].min()) / 0.6
    back = 0.4 + (marks[:, 0] - ends[:, 0].min()) / scale
    assert np.sort(back) == pytest.approx(np.sort(scores), abs=1e-4)
    # Equal scores do not cover each other, and stay in their row.
    places = {(round(x, 2), round(y, 2)) for x, y in marks}
    assert len(places) == 40
    assert np.ptp(marks[:, 1]) <= 20


def test_an_estimate_stands_between_its_ends():
    rows = [
        Estimate(number=n, label=f"m{n}", note="", value=v, low=v - 1, high=v + 2) for n, v in ((0, -3.0), (1, 4.0))
    ]
    panel = forest("T", rows, axis="a", description="d")
    one, two = (_marks(panel, n)[-1] for n in (0, 1))
    assert one[1] < two[1]  # the first row is above
    chart = Chart(name="c", title="T", caption="", panels=(panel,))
    root = ElementTree.fromstring(page_svgs(chart)[0])
    scale = (two[0] - one[0]) / 7.0
    for number, mark in ((0, one), (1, two)):
        bar = root.find(f".//g[@class='method m{number}']/path")
        xs = [float(x) for x in re.findall(r"[ML] (\S+) \S+", bar.attrib["d"])]
        assert xs == pytest.approx([mark[0] - scale, mark[0] + 2 * scale], abs=0.01)


def test_a_line_without_spread_or_with_one_point_is_drawn():
    for lines in (
        [Curve(number=0, label="a", x=(1.0,), y=(0.5,))],
        [Curve(number=0, label="a", x=(1.0, 2.0), y=(0.5, 0.5), low=(None, 0.4), high=(None, 0.6))],
    ):
        panel = curves("T", lines, axis="k", value="v", description="d", chance=0.5)
        assert len(_marks(panel, 0)) == len(lines[0].x)
