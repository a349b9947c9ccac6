"""``mixout verify`` from the command line, end to end in its short form."""

import csv

import pytest

from mixout import cli
from mixout.verify import theorem
from mixout.verify.claim import Claim
from mixout.verify.plans import plan
from mixout.verify.transfer import PAPER

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_short_form_holds_and_writes_its_tables_and_figures(tmp_path, capsys):
    place = tmp_path / "deep" / "out"
    assert cli.main(["verify", "--short", "--output-dir", str(place)]) == 0
    printed = capsys.readouterr()
    assert f"65 claims, all hold; tables and figures in {place}" in printed.out
    assert " NO" not in printed.out
    assert "paper, adam, mixout" in printed.out
    assert {path.name for path in place.iterdir()} == {
        "verify_claims.csv", "verify_least_squares.csv", "verify_pull.csv", "verify_section4.csv",
        "verify-least-squares.png", "verify-pull.png", "verify-section4.png",
    }  # fmt: skip
    with (place / "verify_claims.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 65
    assert {row["holds"] for row in rows} == {"True"}
    assert all(row["torch"] and row["processor"] and "stand-in" in row["data"] for row in rows)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in place.glob("*.png"))


def test_p_of_section_4_can_be_chosen():
    assert plan("full", mnist=True, ps=(0.8, 0.4, 0.8)).transfer.ps == (0.0, 0.4, 0.8)
    assert plan("full", mnist=True).transfer.ps == tuple(PAPER)


def test_a_claim_that_does_not_hold_is_status_1(tmp_path, capsys, monkeypatch):
    from mixout.verify import suite

    wrong = Claim(topic="t", statement="two is one", p=None, relation="=", expected=1.0, found=2.0, tolerance=0.0)
    found = suite.Findings(data="none", claims=[wrong, *theorem.claims((0.5,))], fits=[], points=[], cells=[])
    monkeypatch.setattr(suite, "verify", lambda *_: found)
    monkeypatch.setattr("mixout.cli.verify._write", lambda *_: None)
    monkeypatch.setattr("mixout.verify.figures.draw", lambda *_: None)
    monkeypatch.setattr("mixout.verify.transfer.table", lambda _: "")
    assert cli.main(["verify", "--short", "--output-dir", str(tmp_path)]) == 1
    assert "1 do not hold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mnist", "nowhere.npz"], "expected a .npz file"),
        (["--emnist", "nowhere.npz"], "expected --mnist beside --emnist"),
        (["--p", "0.5", "1"], "expected every p between 0 and 1, got 0.5, 1.0"),
        (["--short", "--full"], "not allowed with argument --short"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(words, said, tmp_path, capsys):
    place = tmp_path / "out"
    assert cli.main(["verify", *words, "--output-dir", str(place)]) == 2
    assert said in capsys.readouterr().err
    assert not place.exists()
