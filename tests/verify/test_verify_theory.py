"""The enumerated claims hold, agree with oracles of other make, and a wrong operation is found out."""

import itertools

import pytest
import torch
from torch.autograd.functional import hessian as hessian_of

from mixout.verify import correlation, enumeration, gradients, least_squares, partial, sampling, theorem
from mixout.verify.enumeration import every_mask, expectation
from mixout.verify.losses import RIDGE, block_sum, logistic, problem, quadratic

MODULES = (theorem, correlation, partial, gradients)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_every_claim_holds_at_other_p(module, p):
    found = module.claims((p,))
    assert found
    assert all(claim.holds for claim in found), [claim for claim in found if not claim.holds]


def test_the_inequalities_are_strict_where_the_hessian_is_not_m():
    slack = [c.found - c.expected for c in theorem.claims((0.5,)) if c.relation == ">="]
    assert len(slack) == 5
    assert min(slack) > 0.05


@pytest.mark.parametrize("law", ["bernoulli", "gaussian", "uniform"])
@pytest.mark.parametrize("p", [0.1, 0.7])
def test_masks_have_the_stated_mean_and_variance_and_are_independent(law, p):
    masks = every_mask((1, 3), p, law=law, nodes=4)
    values = masks.values.flatten(1)
    assert len(values) == (2 if law == "bernoulli" else 4) ** 3
    mean = masks.weights @ values
    covariance = (values - mean).T @ (masks.weights[:, None] * (values - mean))
    torch.testing.assert_close(mean, torch.full((3,), 1 - p, dtype=torch.float64))
    torch.testing.assert_close(covariance, p * (1 - p) * torch.eye(3, dtype=torch.float64))


def test_enumeration_is_the_sum_over_subsets_written_out():
    """Against equation 4 as the paper writes it, with Python loops and no library operation."""
    given, p = problem(3), 0.3
    total = 0.0
    for kept in itertools.product((0.0, 1.0), repeat=given.weight.shape[1]):
        mask = torch.tensor(kept, dtype=torch.float64)
        phi = ((1 - mask) * given.anchor + mask * given.weight - p * given.anchor) / (1 - p)
        chance = (1 - p) ** sum(kept) * p ** (len(kept) - sum(kept))
        away = (phi - given.center).flatten()
        total += chance * float(0.5 * away @ given.hessian @ away)
    found = expectation(lambda phi: quadratic(phi, given.center, given.hessian), given.weight, given.anchor, p)
    assert found == pytest.approx(total, rel=1e-12)


def test_the_losses_are_those_of_autograd():
    given = problem(4)
    hessian = hessian_of(lambda w: quadratic(w[None], given.center, given.hessian)[0], given.weight)
    torch.testing.assert_close(hessian.reshape(8, 8), given.hessian)
    curvature = hessian_of(lambda w: logistic(w[None], given.features, given.labels)[0], given.weight)
    # Strongly convex with the ridge for a constant, and no more: shifting all classes' scores costs only the ridge.
    assert float(torch.linalg.eigvalsh(curvature.reshape(8, 8))[0]) == pytest.approx(RIDGE, rel=1e-9)


def test_the_block_sum_is_that_of_the_hessian_with_other_units_cut_out():
    given = problem(5)
    column = torch.arange(8) % 4
    cut = given.hessian * (column[:, None] == column[None, :])
    flat = given.delta.flatten()
    assert block_sum(given.delta, given.hessian) == pytest.approx(float(flat @ cut @ flat), rel=1e-12)


def test_a_wrong_operation_is_found_out(monkeypatch):
    """Without the rescaling by 1/(1-p), a common mistake, the theorem's claims fail."""
    right = enumeration.mix
    monkeypatch.setattr(enumeration, "mix", lambda w, u, mask, scale: right(w, u, mask, 1.0))
    assert not all(claim.holds for claim in theorem.claims((0.5,)))
    assert not any(claim.holds for claim in correlation.claims((0.5,)))


def test_a_wrong_gradient_is_found_out(monkeypatch):
    right = gradients.mix
    monkeypatch.setattr(gradients, "mix", lambda *a, gradient: right(*a, gradient="paper"))
    failed = {claim.statement for claim in gradients.claims((0.5,)) if not claim.holds}
    assert {statement.partition(":")[0] for statement in failed} == {
        "exact",
        "mixed forward, dense gradient",
        "gradient mask alone",
    }


def test_sampled_passes_agree_and_a_wrong_p_does_not(monkeypatch):
    assert all(claim.holds for claim in sampling.claims((0.5,), passes=400))
    monkeypatch.setattr(sampling.mixout, "Mixout", lambda p, right=sampling.mixout.Mixout: right(p + 0.2))
    mixed, connected = sampling.claims((0.5,), passes=400)
    assert not mixed.holds
    assert connected.holds


@pytest.mark.usefixtures("one_thread")
def test_least_squares_training_finds_the_closed_form():
    fits = least_squares.fits(steps=600, chains=32)
    found = least_squares.claims(fits)
    assert all(claim.holds for claim in found), [claim for claim in found if not claim.holds]


@pytest.mark.parametrize("p", [0.3, 0.9])
def test_the_closed_form_is_the_minimum_of_the_enumerated_loss(p):
    given = least_squares.data()

    def loss(phi):
        return (phi[:, 0] @ given.inputs.T - given.outputs).square().mean(1) / 2

    def expected(w):
        return expectation(loss, w, given.target[None], p)

    best = least_squares.closed_form(given, p)[None]
    for step in (torch.tensor([[1e-3, 0.0]]), torch.tensor([[0.0, 1e-3]])):
        assert expected(best) < expected(best + step)
        assert expected(best) < expected(best - step)
        # Symmetric around the minimum, to second order.
        assert expected(best + step) == pytest.approx(expected(best - step), abs=1e-12)
