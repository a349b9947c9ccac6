"""The committed table of what share of each architecture is mixed: no silence below half, and of today's code."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

# By its path: tests/architectures.py has the same name.
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "architectures.py"
spec = importlib.util.spec_from_file_location("architectures_table", SCRIPT)
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)
ROWS = {row["architecture"]: row for row in table.read(table.HERE / "results" / "architectures.csv")}


def test_less_than_half_is_never_mixed_without_a_word():
    assert len(ROWS) > 400
    assert [name for name, row in ROWS.items() if float(row["flops_mixed"]) < 0.5 and not row["said"]] == []


@pytest.mark.parametrize("name", ["bert", "mixtral", "xlnet", "vivit", "wav2vec2"])
def test_a_row_is_what_the_code_says_today(name):
    assert table.row(name, table.architectures()) == ROWS[name]
