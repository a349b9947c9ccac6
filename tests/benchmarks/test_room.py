"""The pre-registered verdict on scores whose truth is known."""

import sys

import numpy as np
import pandas as pd
import pytest

import room

RATES = [2.5e-5 * 2**k for k in range(8)]
METHODS = [room.PLAIN, room.MIXOUT, room.MASK, *room.DECAYS]


def runs(shift, width, restarts=8):
    """Scores fall as a parabola beside the best rate, which lies ``shift`` steps of the grid above plain's."""
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "method": method,
            "restart": restart,
            "learning_rate": rate,
            "score": 0.8
            - 0.02 * ((k - 2 - shift.get(method, 0)) / width.get(method, 1.0)) ** 2
            + generator.normal(0, 0.003),
        }
        for method in METHODS
        for restart in range(restarts)
        for k, rate in enumerate(RATES)
    )


@pytest.mark.parametrize(
    ("shift", "width", "words"),
    [
        ({room.MIXOUT: 1}, {}, "shifted"),
        ({}, {room.MIXOUT: 2.0}, "robust"),
        ({}, {}, "neither"),
        ({}, {room.MIXOUT: 2.0, room.DECAYS[2]: 3.0}, "shifted"),  # a decay loses less still
    ],
)
def test_the_verdict_on_curves_of_known_shape(shift, width, words, tmp_path, monkeypatch, capsys):
    runs(shift, width).to_csv(tmp_path / "runs.csv")
    monkeypatch.setattr(sys, "argv", ["room.py", str(tmp_path / "runs.csv")])
    assert room.main() == 0
    printed = capsys.readouterr().out
    assert f"mixout(0.7): {words}" in printed
    assert ("; below 2 points" in printed) == (room.DECAYS[2] in width)


def test_the_best_rate_is_chosen_on_the_other_restarts():
    """By hand. Restart 0's own best is 4, the others' mean is highest at 1; above the grid its highest rate counts."""
    scores = pd.DataFrame([[50.0, 60.0, 95.0], [80.0, 50.0, 40.0], [60.0, 85.0, 30.0]], columns=[1.0, 2.0, 4.0])
    found = room.losses(scores)
    assert found.best == [1.0, 2.0, 4.0]
    assert found.loss.tolist() == [50.0 - 95.0, 50.0 - 40.0, 30.0 - 30.0]
    assert found.beyond == 2


def test_a_restart_that_lacks_a_run_is_left_out():
    table = room.complete(runs({}, {}).iloc[1:])
    assert list(table.index) == list(range(1, 8))


def test_too_few_restarts_are_refused(tmp_path, monkeypatch):
    runs({}, {}, restarts=2).to_csv(tmp_path / "runs.csv")
    monkeypatch.setattr(sys, "argv", ["room.py", str(tmp_path / "runs.csv")])
    with pytest.raises(room.InputError, match="three complete restarts, got 2"):
        room.main()
