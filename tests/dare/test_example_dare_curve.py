"""examples/dare_curve.py: its table against accuracies of weights that are put together by hand."""

import runpy
from pathlib import Path

import pytest
import torch

from mixout.dare.scores import table

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLE = Path(__file__).parents[2] / "examples" / "dare_curve.py"


def test_the_curve_leads_from_the_fine_tuned_model_to_its_anchor(capsys):
    with torch.random.fork_rng():
        found = runpy.run_path(str(EXAMPLE), run_name="__main__")
    base, tuned, accuracy, curve = (found[name] for name in ("base", "tuned", "accuracy", "curve"))
    u, w = base.state_dict(), {name: value.clone() for name, value in tuned.state_dict().items()}
    expected = {0.0: accuracy(tuned), 1.0: accuracy(base)}
    tuned.load_state_dict({name: (u[name] + w[name]) / 2 for name in w})
    expected[0.5] = accuracy(tuned)
    tuned.load_state_dict(w)
    scores = curve(base, tuned)
    line = {one.removed: one.score for one in scores if one.curve == "interpolation"}
    assert line == pytest.approx(expected, abs=0.002)  # one image of 797
    assert expected[0.0] > expected[1.0] + 0.3  # else there was nothing to drop
    half, most = ([one.score for one in scores if one.curve == "element" and one.removed == p] for p in (0.5, 0.99))
    assert min(half) > max(most)
    assert all(value.equal(w[name]) for name, value in tuned.state_dict().items())
    assert capsys.readouterr().out.strip() == table(scores, "accuracy")
