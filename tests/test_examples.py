"""Each example runs as it stands, leaves nothing behind, is short, and is shown on a page."""

from __future__ import annotations

import ast
import os
import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# It trains a model first.
LONG = {"causal_lm"}
RUNS = [pytest.param(path, marks=pytest.mark.sweep if path.stem in LONG else (), id=path.stem) for path in EXAMPLES]
PAGES = sorted((ROOT / "docs" / "integrations").glob("*.md"))

pytestmark = [
    # Of the trainers, none of them about mixout: of Lightning's on workers; TRL's default; a machine without a GPU;
    # what DeepSpeed calls of torch.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\)"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # peft asks for it
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.filterwarnings("ignore:`torch.distributed.all_gather_into_tensor` is deprecated"),
]


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        found |= {name.partition(".")[0] for name in names}
    return found


@pytest.mark.usefixtures("one_thread", "fresh_accelerate", "timm")
@pytest.mark.parametrize("path", RUNS)
def test_an_example_runs_and_leaves_nothing(path, tmp_path, monkeypatch, capsys):
    missing = sorted(name for name in imported(path) if find_spec(name) is None)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    with torch.random.fork_rng(), mock.patch.dict(os.environ):
        runpy.run_path(str(path), run_name="__main__")
    # What it says of the model or of the run: an example that does nothing says nothing.
    assert re.search(r"\d", capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_shown(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    # There is no pretrained causal language model offline: that example first makes one.
    assert len(text.splitlines()) <= (150 if path.stem == "causal_lm" else 60)
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert any(f"examples/{path.name}" in page.read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_short_and_its_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links
    assert all((page.parent / link).exists() for link in links), links
