"""The notebooks run, and print what they hold: the same words, and numbers near those of the machine that ran them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# At a learning rate that is too high a run fails on one processor and not on the next.
UNSTEADY = {"learning_rate"}
NUMBER = re.compile(r"\d+\.\d+")


def printed(notebook):
    """The text that a notebook's cells have printed, and how many figures they hold. What libraries log is theirs."""
    outputs = [one for cell in notebook["cells"] for one in cell.get("outputs", [])]
    text = "".join("".join(one["text"]) for one in outputs if one.get("name") == "stdout")
    return text, sum("image/png" in one.get("data", {}) for one in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_from_top_to_bottom(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    streams = [one for cell in code for one in cell["outputs"] if one["output_type"] in {"stream", "error"}]
    assert {one.get("name") for one in streams} == {"stdout"}  # no warnings, no error
    text, figures = printed({"cells": cells})
    assert NUMBER.search(text)
    assert figures == 1


@pytest.mark.sweep
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
def test_a_notebook_prints_what_it_holds(path, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # of its kernel: what libraries say of each other
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))  # the kernel runs in another folder
    notebook = nbformat.read(path, as_version=4)
    held, figures = printed(notebook)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    again, drawn = printed(notebook)
    assert NUMBER.sub("#", again) == NUMBER.sub("#", held)
    assert drawn == figures
    if path.stem not in UNSTEADY:
        assert [*map(float, NUMBER.findall(again))] == pytest.approx([*map(float, NUMBER.findall(held))], abs=0.1)
