"""``mixout bench`` from the command line, end to end on a tiny model; no time is asserted."""

import re

import pytest

from mixout import cli
from mixout.bench import layer
from mixout.bench.cases import CASES
from mixout.bench.figures import draw
from mixout.bench.plan import plan
from mixout.bench.table import from_csv
from mixout.bench.variants import WEIGHTS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def tiny(bert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "tiny", bert)


def test_quick_runs_end_to_end(tmp_path, capsys, monkeypatch: pytest.MonkeyPatch):
    measured = layer.measure_one
    monkeypatch.setattr(layer, "measure_one", lambda rows, *_: measured(8, 6, 4, *_[2:]))
    place = tmp_path / "deep" / "out"
    assert cli.main(["bench", "--quick", "--case", "tiny", "--pairs", "1", "--output-dir", str(place)]) == 0
    printed = capsys.readouterr()
    assert {path.name for path in place.iterdir()} == {
        "step.csv", "layer.csv", "memory.csv", "ratio-over-p.png", "ratio-over-tokens.png", "memory-over-p.png",
    }  # fmt: skip
    rows = {what: from_csv((place / f"{what}.csv").read_text()) for what in ("step", "layer", "memory")}
    assert len(rows["step"]) == 8 + 3  # every variant, and three with a quarter of the batch
    assert {row.tokens for row in rows["step"]} == {24, 6}
    assert [row.label for row in rows["layer"]] == [str(variant) for variant in WEIGHTS]
    assert len(rows["memory"]) == 2 * 7
    assert all(row.what == what and row.ratio > 0 for what in rows for row in rows[what])
    assert len(re.findall(r"^(?:step|layer|memory) ", printed.out, re.MULTILINE)) == 11 + 5 + 14
    assert "step: tiny-bert, 24 tokens, mixout(0.9): 1 pairs with plain" in printed.err
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in place.glob("*.png"))


def test_one_kind_alone_writes_its_file_anew(tmp_path, capsys):
    (tmp_path / "memory.csv").write_text("of another time")
    assert cli.main(["bench", "--what", "memory", "--case", "tiny", "--output-dir", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory-over-p.png", "memory.csv"]
    assert len(from_csv((tmp_path / "memory.csv").read_text())) == 14


def test_a_layer_alone():
    row = layer.measure_one(8, 6, 4, WEIGHTS[2], plan(pairs=1))
    assert (row.case, row.tokens, row.label) == ("6x4", 8, "mixout(0.9)")
    assert row.floor == pytest.approx(0.7)


def test_figures_without_numbers_are_not_drawn(tmp_path):
    assert draw([], tmp_path) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--case", "minlm"], "minilm"),
        (["--pairs", "0"], "expected pairs >= 1"),
        (["--what", "speed"], "memory"),
        (["--quik"], "--quick"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(words, said, tmp_path, capsys):
    place = tmp_path / "out"
    assert cli.main(["bench", *words, "--output-dir", str(place)]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert re.fullmatch(r"mixout: error: [^\n]+\n", printed.err)
    assert not place.exists()
