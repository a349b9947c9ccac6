"""The page, read by the standard library's HTML parser: whole, harmless, and with the numbers that NumPy finds."""

from __future__ import annotations

import base64
import hashlib
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from mixout.study.analysis.summary import analyse
from mixout.study.report import write_report


@pytest.fixture(scope="module")
def page(report, parse):
    return parse(report.read_text())


def _section(page, name):
    return next(one for one in page.all("section") if one.attributes["id"] == name)


def _rows(table):
    return [[cell.words() for cell in row.all("th", "td")] for row in table.all("tbody")[0].all("tr")]


def test_nothing_is_loaded_from_anywhere(page):
    for element in page.all():
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            address = element.attributes.get(name) or ""
            assert not re.match(r"\s*(?:[a-z]+:)?//|\s*(?:https?|javascript|file):", address, re.I), address
    style = page.all("style")[0].words()
    assert "@import" not in style
    assert "url(" not in style


def test_ids_are_unique_and_references_lead_somewhere(page):
    ids = [one.attributes["id"] for one in page.all() if one.attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert not any(re.search(r"\s", one) for one in ids)
    used = [(one.attributes.get("href") or "") for one in page.all()]
    targets = {address[1:] for address in used if address.startswith("#")}
    for one in page.all():
        targets |= set(re.findall(r"url\(#([^)]+)\)", " ".join(filter(None, one.attributes.values()))))
        targets |= set((one.attributes.get("aria-labelledby") or "").split())
        targets |= set((one.attributes.get("aria-describedby") or "").split())
    assert targets
    assert targets <= set(ids)


def test_every_drawing_has_words_or_is_decoration(page):
    drawn = 0
    for picture in page.all("img"):
        kind, _, content = picture.attributes["src"].partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(content)).tag.endswith("svg")
        drawn += picture.attributes["alt"] != ""
        if picture.attributes["alt"]:
            assert re.match(r"[^,]+, (RTE|a task): .{10}", picture.attributes["alt"], re.DOTALL)
    assert drawn == 2 * 7  # two tasks, all charts


def test_text_does_not_break_out(page):
    [script] = page.all("script")
    assert "alert" not in script.words()
    assert not page.all("b", "i")
    assert page.all("h1")[0].words() == "<b>Title</b>"
    assert "<script>alert('out of memory')</script>" in _section(page, "failures").words()
    assert "</pre><script>alert(1)</script>" in _section(page, "reproduce").words()
    assert any("<script>alert('x')</script>" in row[0] for row in _rows(page.all("table")[0]))


def test_only_the_pages_own_script_may_run(report, parse):
    text = report.read_text()
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [one.attributes["content"] for one in parse(text).all("meta") if one.attributes.get("http-equiv")]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_the_tables_hold_the_numbers(study, page):
    runs = study()
    tables = {one.attributes["id"]: one for one in page.all("table")}
    first = _rows(tables["table-scores-0"])
    names = [cell.words() for cell in tables["table-scores-0"].all("thead")[0].all("th")]
    at = {name: place for place, name in enumerate(names)}
    assert [row[0] for row in first] == list(dict.fromkeys(run.method for run in runs))
    for row in first:
        # The run without a score counts as chance.
        scores = np.array([run.counted for run in runs if run.task == "RTE" and run.method == row[0]])
        assert float(row[2].split()[0]) == pytest.approx(scores.mean(), abs=5e-4)
        assert float(row[at["sd"]]) == pytest.approx(scores.std(ddof=1), abs=5e-4)
        assert float(row[at["max"]]) == pytest.approx(scores.max(), abs=5e-4)
        assert row[at["failed"]] == f"{(scores <= 0.5).sum()} of {len(scores)}"
    means = [float(row[2].split()[0]) for row in first]
    assert [row[2].endswith("highest") for row in first] == [mean == max(means) for mean in means]


def test_the_verdict_is_in_the_words_of_the_analysis(study, page):
    summary = analyse(study())
    said = [one.words() for one in _section(page, "verdict").all("li")]
    sentences = [" ".join(one.sentence.split()) for one in summary.comparisons]
    assert sorted(one for one in said if one in sentences) == sorted(sentences)
    p_values = [summary.comparisons[sentences.index(one)].p_holm for one in said if one in sentences]
    assert p_values == sorted(p_values)
    assert " ".join(summary.verdict.split()) == _section(page, "verdict").all("p")[0].words()


def test_settings_are_read_without_knowing_python(page):
    names, values = ([one.words() for one in _section(page, "settings").all(tag)] for tag in ("dt", "dd"))
    assert names == ["epochs", "names", "nothing"]
    assert values == ["3", "a, b", "none"]


def test_what_has_no_data_is_left_out(study, parse, tmp_path):
    page = parse(write_report(study(plain=True), tmp_path, title="T").read_text())
    names = [one.attributes["id"] for one in page.all("section")]
    assert names == ["verdict", "tables", "scores", "over-p", "differences", "best-of", "enough", "reading", "files"]
    assert [one.attributes["href"] for one in page.all("nav")[0].all("a")] == [f"#{name}" for name in names]


def test_a_single_run_makes_a_page(study, parse, tmp_path):
    page = parse(write_report(study(plain=True)[:1], tmp_path, title="T").read_text())
    assert [one.attributes["id"] for one in page.all("section")] == ["verdict", "tables", "scores", "reading", "files"]


def test_the_papers_eleven_methods_on_four_tasks(paper, parse, tmp_path):
    page = parse(write_report(paper, tmp_path, title="T", baseline="dropout(0.1)+wdecay(0,0.01)").read_text())
    tables = {one.attributes["id"]: one for one in page.all("table")}
    [mixout] = [row for row in _rows(tables["table-overview"]) if row[0] == "mixout(w_pre,0.7)"]
    # The paper's table 1: mean (max).
    assert [cell.removesuffix(" highest").split()[0] for cell in mixout[1:]] == ["61.6", "87.1", "57.4", "89.6"]
    [rte] = [row for row in _rows(tables["table-scores-0"]) if row[0] == "mixout(w_pre,0.7)"]
    assert "7 of 20" in rte
