"""The verdicts of the studies of wrong labels and of another domain, on scores whose truth is known, and their data."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import regimes
from mixout.errors import InputError
from mixout.study.analysis.runs import Run
from mixout.study.entry import Entry
from mixout.study.ledger import Contents

ROOT = Path(__file__).parents[2]
RATES = [5e-5, 1e-4, 2e-4]
METHODS = [regimes.PLAIN, regimes.MIXOUT, regimes.MASK, regimes.HALF, regimes.SOFT, regimes.MIDDLE, regimes.HARD]


def runs(level, best, restarts=6):
    """Scores around ``level`` at a method's ``best`` rate, by default the second, and 5 points lower at the others."""
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "task": regimes.TASKS["noise"][0],
            "method": method,
            "restart": restart,
            "learning_rate": rate,
            "score": level.get(method, 0.7) - 0.05 * (rate != best.get(method, 1e-4)) + generator.normal(0, 0.002),
        }
        for method in [*METHODS, regimes.SHORT]
        for restart in range(restarts)
        for rate in RATES
    )


@pytest.mark.parametrize(
    ("level", "best", "words"),
    [
        ({regimes.MIXOUT: 0.75}, {}, "for mixout: shown above all four"),
        ({regimes.MIXOUT: 0.75}, {regimes.MIXOUT: 2e-4}, "for mixout: shown above all four"),  # each at its own rate
        ({regimes.SOFT: 0.75}, {}, f"against mixout: {regimes.SOFT} shown above it"),
        ({}, {}, "neither"),
        ({regimes.MIXOUT: 0.75, regimes.MASK: 0.75}, {}, f"neither; shown above {regimes.PLAIN}"),
    ],
)
def test_the_verdict_on_scores_of_known_order(level, best, words, tmp_path, monkeypatch, capsys):
    runs(level, best).to_csv(tmp_path / "runs.csv")
    monkeypatch.setattr(sys, "argv", ["regimes.py", "verdict", "noise", str(tmp_path / "runs.csv")])
    assert regimes.main() == 0
    printed = capsys.readouterr().out
    assert words in printed.splitlines()[-1]
    rate = best.get(regimes.MIXOUT, 1e-4)
    assert f"{regimes.MIXOUT}: {100 * level.get(regimes.MIXOUT, 0.7):.0f}" in printed.replace(".0 at", " at").replace(
        ".1 at", " at"
    )
    assert f" at {rate:g}, runs" in printed


def test_the_restarts_that_choose_a_rate_are_not_judged():
    """Restarts 0 and 1 like one rate, the others another: judged are the others at the rate of the former."""
    table = pd.DataFrame(
        {
            "task": regimes.TASKS["noise"][0],
            "method": regimes.PLAIN,
            "restart": restart,
            "learning_rate": rate,
            "score": 0.9 if (restart < 2) == (rate == 1e-4) else 0.5,
        }
        for restart in range(5)
        for rate in RATES
    )
    best, scores = regimes.judged(table, "noise")
    assert best == {regimes.PLAIN: 1e-4}
    assert scores[regimes.PLAIN].to_dict() == {2: 50.0, 3: 50.0, 4: 50.0}


def test_a_rate_is_chosen_at_home_and_judged_away():
    """An interpolation without a search of its own is judged at the rate of plain fine-tuning."""
    rows = [
        {"task": task, "method": method, "restart": k, "learning_rate": rate, "score": score}
        for method, k, rate, *scores in [
            *((regimes.PLAIN, k, 1e-4, 0.9, 0.3) for k in range(4)),
            *((regimes.PLAIN, k, 2e-4, 0.8, 0.6) for k in range(4)),
            *((regimes.HALF, k, 1e-4, 0.9, 0.5) for k in range(2, 4)),
        ]
        for task, score in zip(regimes.TASKS["shift"], scores, strict=True)
    ]
    best, scores = regimes.judged(pd.DataFrame(rows), "shift")
    assert best == {regimes.PLAIN: 1e-4, regimes.HALF: 1e-4}
    assert scores.loc[2].to_dict() == {regimes.PLAIN: 30.0, regimes.HALF: 50.0}


def test_the_data_are_made_of_glue_files(tmp_path):
    """Labels that differ from SST-2's are about 30 %, and dev rows keep their order."""
    tab = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "escapechar": "\\", "lineterminator": "\n"}
    sentences = [(f"a sentence of number {k}", k % 2) for k in range(6500)]
    pairs = [("main-captions" if k % 3 else "news", f"one {k}", f"two {k}", k % 6) for k in range(60)]
    for name, head, rows in (
        ("SST-2", ("sentence", "label"), sentences),
        ("STS-B", ("genre", "sentence1", "sentence2", "score"), pairs),
    ):
        (tmp_path / name).mkdir()
        for part in ("train", "dev"):
            with (tmp_path / name / f"{part}.tsv").open("w", newline="") as file:
                csv.writer(file, **tab).writerows([head, *rows])
    regimes.make_data(tmp_path, tmp_path / "out")
    noise, clean = (pd.read_csv(tmp_path / "out" / "noise" / f"{part}.csv") for part in ("train", "dev"))
    wrong = noise["label"] != noise["text"].str.split().str[-1].astype(int) % 2
    assert len(noise) == 6000
    assert wrong.mean() == pytest.approx(0.3, abs=0.02)
    assert list(clean["label"]) == [label for _, label in sentences]
    captions, everything = (pd.read_csv(tmp_path / "out" / "shift" / f"{part}.csv") for part in ("train", "dev"))
    assert list(captions["text"]) == [one for genre, one, *_ in pairs if genre == "main-captions"]
    assert list(everything["label"]) == [score for *_, score in pairs]


def test_scores_by_domain_are_those_of_the_predictions(tmp_path, monkeypatch):
    """Perfect at home, reversed away."""
    truth = np.random.default_rng(0).permutation(1000) / 200
    dev = tmp_path / "dev.csv"
    pd.DataFrame({"text": "a", "text_pair": "b", "label": truth}).to_csv(dev, index=False)
    predicted = (*truth[: regimes.HOME], *-truth[regimes.HOME :])
    run = Run(
        task="T", method=regimes.PLAIN, restart=3, score=0.1, metric="spearman", chance=0.0, predictions=predicted
    )

    def table(study, run):
        entry = Entry(folder=tmp_path, run=run, settings={"learning_rate": 1e-4}, record=None)
        monkeypatch.setattr(regimes.Ledger, "read", lambda _: Contents(entries={"one": entry}))
        regimes.write_table(study, tmp_path / "ledger", tmp_path / "runs.csv", dev)
        return pd.read_csv(tmp_path / "runs.csv").set_index("task")

    found = table("shift", run)
    home, away = regimes.TASKS["shift"]
    assert found["score"].to_dict() == {home: pytest.approx(1.0), away: pytest.approx(-1.0)}
    assert list(found["restart"]) == [3, 3]
    assert list(found["learning_rate"]) == [1e-4, 1e-4]
    assert list(table("noise", run)["score"]) == [0.1]
    with pytest.raises(InputError, match=r"expected 1000 predictions of dropout\(0\.0\), restart 3, got 999"):
        table("shift", replace(run, predictions=predicted[:-1]))


@pytest.mark.parametrize(
    ("study", "row", "said"),
    [
        (
            "noise",
            f"{regimes.HARD} - {regimes.PLAIN} 4.5011 2.8262 6.1761 0.0101",
            "4.5 points more than plain fine-tuning (2.8 to 6.2), p-value 0.010",
        ),
        (
            "noise",
            f"{regimes.MIXOUT} - {regimes.PLAIN} 1.3761 -0.0136 2.7659 0.2048",
            "The smallest p-value is 0.20 after Holm.",
        ),
        (
            "shift",
            f"{regimes.MIXOUT} - {regimes.HALF} 30.0178 23.0261 37.0095 0.0034",
            "above the interpolation alone** (p-value 0.003 after Holm)",
        ),
        (
            "shift",
            f"{regimes.MIXOUT} - {regimes.SOFT} -2.5510 -10.0177 4.9157 0.3860",
            "the other three the smallest p-value is 0.39.",
        ),
    ],
)
def test_what_is_said_of_the_studies(study, row, said, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["regimes.py", "verdict", study, str(ROOT / "results" / f"{study}.csv")])
    regimes.main()
    printed = " ".join(capsys.readouterr().out.split())
    assert row in printed
    words = {"noise": "neither", "shift": f"neither; shown above {regimes.HALF}"}[study]
    assert printed.endswith(words)
    assert said in " ".join((ROOT / "docs" / "evidence-details.md").read_text(encoding="utf-8").split())
