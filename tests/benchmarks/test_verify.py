"""The claims hold, agree with oracles of other make, and a wrong operation is found out."""

import csv
import doctest
import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian as hessian_of

import verify
from mixout.errors import InputError
from theory import adaptivity, claims, exact, least_squares

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("module", [claims, exact, least_squares], ids=lambda module: module.__name__)
def test_examples_of_docstrings(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("relation", ["=", ">=", "<="])
def test_a_claim_compares_in_its_direction_and_never_holds_of_nan(relation):
    def holds(found, tolerance=0.0, expected=1.0):
        return claims.Claim(
            topic="t", statement="s", p=0.5, relation=relation, expected=expected, found=found, tolerance=tolerance
        ).holds

    assert [holds(0.9), holds(1.0), holds(1.1)] == {"=": [0, 1, 0], ">=": [0, 1, 1], "<=": [1, 1, 0]}[relation]
    assert holds(0.9, 0.2)
    assert holds(1.1, 0.2)
    assert not holds(math.nan, 100.0)
    assert not holds(1.0, 100.0, math.nan)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_every_exact_claim_holds_at_other_p(p):
    found = list(exact.claims((p,)))
    assert len(found) == 10 + 4 + 2 + 5
    assert all(claim.holds for claim in found), [claim for claim in found if not claim.holds]


def test_the_inequalities_are_strict_where_the_hessian_is_not_m():
    slack = [c.found - c.expected for c in exact.theorem(exact.problem(), 0.5) if c.relation == ">="]
    assert len(slack) == 5
    assert min(slack) > 0.05


@pytest.mark.parametrize("law", ["bernoulli", "gaussian", "uniform"])
@pytest.mark.parametrize("p", [0.1, 0.7])
def test_masks_have_the_stated_mean_and_variance_and_are_independent(law, p):
    values, chances = exact.every_mask((1, 3), p, law, nodes=4)
    values = values.flatten(1)
    assert len(values) == (2 if law == "bernoulli" else 4) ** 3
    mean = chances @ values
    covariance = (values - mean).T @ (chances[:, None] * (values - mean))
    torch.testing.assert_close(mean, torch.full((3,), 1 - p, dtype=torch.float64))
    torch.testing.assert_close(covariance, p * (1 - p) * torch.eye(3, dtype=torch.float64))


def test_the_gap_is_the_sum_over_subsets_written_out():
    """Against equation 4 as the paper writes it, with Python loops and no library operation."""
    given, p, total = exact.problem(3), 0.3, 0.0
    for kept in itertools.product((0.0, 1.0), repeat=exact.IN):
        mask = torch.tensor(kept, dtype=torch.float64)
        phi = ((1 - mask) * given.anchor + mask * given.weight - p * given.anchor) / (1 - p)
        away = (phi - given.center).flatten()
        total += (1 - p) ** sum(kept) * p ** (len(kept) - sum(kept)) * float(0.5 * away @ given.hessian @ away)
    here = (given.weight - given.center).flatten()
    assert given.gap(given.quadratic, p) == pytest.approx(total - float(0.5 * here @ given.hessian @ here), rel=1e-12)


def test_the_losses_are_those_of_autograd():
    given = exact.problem(4)
    torch.testing.assert_close(
        hessian_of(lambda w: given.quadratic(w[None])[0], given.weight).view(8, 8), given.hessian
    )
    curvature = hessian_of(lambda w: given.logistic(w[None])[0], given.weight).view(8, 8)
    # Strongly convex with the ridge for a constant, and no more: shifting all classes' scores costs only the ridge.
    assert float(torch.linalg.eigvalsh(curvature)[0]) == pytest.approx(exact.RIDGE, rel=1e-9)


def test_a_wrong_operation_is_found_out(monkeypatch):
    """Without the rescaling by 1/(1-p), a common mistake; and with the paper's gradient for the exact one."""
    right = exact.mix
    monkeypatch.setattr(exact, "mix", lambda w, u, mask, scale, **rest: right(w, u, mask, 1.0, **rest))
    assert not any(claim.holds for claim in exact.units(exact.problem(), 0.5))
    monkeypatch.setattr(exact, "mix", lambda *a, gradient: right(*a, gradient="paper"))
    failed = {claim.statement.partition(":")[0] for claim in exact.gradients(exact.problem(), 0.5) if not claim.holds}
    assert failed == {"exact", "mixed forward, dense gradient", "gradient mask alone"}


@pytest.mark.parametrize("p", [0.3, 0.9])
def test_the_closed_form_is_the_minimum_of_the_enumerated_loss(p):
    inputs, outputs, target = least_squares.data()
    masks, chances = exact.every_mask((1, 2), p)

    def expected(w):
        phi = target + masks / (1 - p) * (w - target)
        return float(chances @ (phi[:, 0] @ inputs.T - outputs).square().mean(1) / 2)

    best = least_squares.closed_form(inputs, outputs, target, p)
    for step in (torch.tensor([1e-3, 0.0]), torch.tensor([0.0, 1e-3])):
        assert expected(best) < min(expected(best + step), expected(best - step))
        assert expected(best + step) == pytest.approx(expected(best - step), abs=1e-12)


@pytest.fixture
def small():
    """Images, a network near its start, and the exact sum over input units of d'Hd from the whole Hessian."""
    draw = torch.Generator().manual_seed(0)
    images = adaptivity.Images(
        pixels=torch.rand(24, 9, generator=draw, dtype=torch.float64), labels=torch.randint(4, (24,), generator=draw)
    )
    model = adaptivity.network(9, (6, 5)).double().eval()
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Linear):
                module.weight *= 20  # 0.02 is almost linear at this size
    start = {name: weight.detach().clone() for name, weight in adaptivity._mixed(model).items()}
    # So close to the anchor that no kink of ReLU is crossed, the second order is all there is.
    with torch.no_grad():
        for weight in adaptivity._mixed(model).values():
            weight += 1e-5 * torch.randn(weight.shape, generator=draw, dtype=torch.float64)
    names, weights = zip(*adaptivity._mixed(model).items(), strict=True)
    sizes = [weight.numel() for weight in weights]

    def loss(flat):
        parts = zip(names, flat.split(sizes), weights, strict=True)
        return adaptivity._loss(model, images, {name: part.view_as(weight) for name, part, weight in parts})

    flat = torch.cat([weight.detach().flatten() for weight in weights])
    delta = flat - torch.cat([start[name].flatten() for name in names])
    unit = torch.cat([torch.arange(w.numel()) % w.shape[1] + 1000 * layer for layer, w in enumerate(weights)])
    total = delta @ (hessian_of(loss, flat) * (unit[:, None] == unit[None, :])) @ delta
    return images, model, start, float(total)


def test_random_signs_estimate_the_block_sum(small):
    images, model, start, expected = small
    deltas = {name: weight.detach() - start[name] for name, weight in adaptivity._mixed(model).items()}
    mean, error = adaptivity.spread(
        adaptivity.block_curvature(partial(adaptivity._loss, model, images), adaptivity._mixed(model), deltas, 1500)
    )
    assert abs(mean - expected) < 4.5 * error
    assert error < 0.1 * abs(expected)


def test_the_measured_pull_is_the_prediction_for_a_small_delta(small):
    images, model, start, total = small
    here, pulls = adaptivity.sampled_pulls(
        partial(adaptivity._loss, model, images), adaptivity._mixed(model), start, 0.5, 4010
    )
    assert len(pulls) == 4010
    assert here == pytest.approx(nn.functional.cross_entropy(model(images.pixels), images.labels).item())
    mean, error = adaptivity.spread(pulls)
    expected = 0.5 / (2 * 0.5) * total
    assert abs(mean - expected) < 4.5 * error + 0.02 * abs(expected)
    assert error < 0.1 * abs(expected)


def test_the_pull_is_claimed_where_the_curvature_is_positive_and_at_the_end():
    def point(step, measured, predicted, p=0.1):
        return adaptivity.Point(
            step=step, p=p, loss=1.0, squared_distance=1.0, measured=measured, measured_error=0.01,
            predicted=predicted, predicted_error=0.01, fixed=1.0,
        )  # fmt: skip

    found = [point(1, 0.5, -1), point(2, 1.1, 1), point(3, 1.6, 1), point(3, 9, 1, p=0.9), point(4, 0.5, -1)]
    assert [(claim.statement, claim.holds) for claim in adaptivity.claims(found)] == [
        ("after 2 steps", True),
        ("after 3 steps", False),
        ("after 4 steps", False),
    ]


def test_images_of_a_file_sorted_by_class_are_mixed_and_other_files_refused(tmp_path):
    x = np.zeros((20, 4, 4), dtype=np.uint8)
    x[:, 0, 0], x[:, 0, 1] = np.arange(20), 255
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=np.arange(20) // 2)
    images = adaptivity.digits(tmp_path / "mnist.npz")
    assert torch.equal(images.labels, (images.pixels[:, 0] * 255).round().long() // 2)
    assert not torch.equal(images.labels, images.labels.sort().values)
    assert images.transposed().pixels[:, 4].eq(1).all()
    for flat in ({"x_train": x.reshape(20, 16), "y_train": np.arange(20)}, {"x": x}):
        np.savez(tmp_path / "other.npz", **flat)
        with pytest.raises(InputError, match="expected"):
            adaptivity.digits(tmp_path / "other.npz")
    with pytest.raises(InputError, match=r"expected a \.npz file"):
        adaptivity.digits(tmp_path / "none.npz")


@pytest.mark.sweep
def test_the_short_form_holds_from_the_command_line(tmp_path, capsys):
    place = tmp_path / "deep" / "out"
    assert verify.main(["--short", "--output", str(place)]) == 0
    assert "all hold" in capsys.readouterr().out
    assert {path.name for path in place.iterdir()} == {
        "verify_claims.csv", "verify_least_squares.csv", "verify_pull.csv",
        "verify-least-squares.png", "verify-pull.png",
    }  # fmt: skip
    with (place / "verify_claims.csv").open() as handle:
        found = list(csv.DictReader(handle))
    assert len(found) > 50
    assert {row["holds"] for row in found} == {"True"}
    assert {row["torch"] for row in found} == {torch.__version__}


def test_a_claim_that_does_not_hold_is_status_1(tmp_path, monkeypatch, capsys):
    right = exact.mix
    monkeypatch.setattr(exact, "mix", lambda w, u, mask, scale, **rest: right(w, u, mask, 1.0, **rest))
    monkeypatch.setattr(verify.adaptivity, "points", lambda *_, **__: [])
    monkeypatch.setattr(verify.figures, "draw", lambda *_: None)
    assert verify.main(["--short", "--output", str(tmp_path)]) == 1
    assert "do not hold" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        verify.main(["--short", "--output", str(tmp_path / "file")])
    assert stopped.value.code == 2
    assert "name another place with --output" in capsys.readouterr().err
