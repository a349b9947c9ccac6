"""MoFO against a straightforward one in numpy's float64, which sorts."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import mixout
from mixout.optim import SAMPLE, MoFO


def oracle(weight, gradients, fraction, *, rate=0.1, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.0):
    w, m, v = weight.astype(np.float64), np.zeros(weight.shape), np.zeros(weight.shape)
    for t, g in enumerate(gradients, 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        update = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps) + decay * w
        count = w.size if w.ndim < 2 else max(1, round(fraction * w.size))
        largest = np.argsort(-np.abs(m), axis=None)[:count]
        w.flat[largest] -= rate * update.flat[largest]
    return w


def gradients_of(shape, steps=7):
    draw = np.random.default_rng(1)
    return draw.normal(size=(steps, *shape)) * 10.0 ** draw.integers(-3, 2, size=(1, *shape))


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(7, 9), (4, 3, 5), (11,), (600, 6)])
def test_it_moves_what_sorting_would_choose(shape, fraction, decay):
    start, gradients = np.random.default_rng(0).normal(size=shape), gradients_of(shape)
    weight = nn.Parameter(torch.tensor(start))
    optimizer = MoFO([weight], lr=0.1, fraction=fraction, weight_decay=decay)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), oracle(start, gradients, fraction, decay=decay), rtol=1e-9)


def test_all_of_it_is_adamw():
    torch.manual_seed(0)
    start, gradients = torch.randn(90, 80), torch.randn(3, 90, 80)
    found = []
    for kind, options in ((MoFO, {"fraction": 1}), (torch.optim.AdamW, {})):
        weight = nn.Parameter(start.clone())
        optimizer = kind([{"params": [weight], "weight_decay": 0.1}], lr=0.01, **options)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        found.append(weight.detach())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("fraction", [0.05, 0.2])
def test_of_a_large_weight_the_share_is_nearly_met_and_the_largest_move(fraction, transposed):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(700, 900).t() if transposed else torch.zeros(900, 700))
    optimizer = MoFO([weight], lr=0.1, fraction=fraction)
    for _ in range(3):
        before = weight.detach().clone()
        weight.grad = torch.randn(900, 700) * torch.rand(900, 1)
        optimizer.step()
        moved = weight.detach() != before
        assert moved.double().mean().item() == pytest.approx(fraction, abs=4 * (fraction / SAMPLE) ** 0.5)
        momentum = optimizer.state[weight]["exp_avg"].abs()
        assert momentum[moved].min() >= momentum[~moved].max()


def test_a_resumed_run_goes_on_and_its_state_is_adamws():
    torch.manual_seed(0)
    model = nn.Linear(5, 4)

    def steps(optimizer, numbers):
        for number in numbers:
            model.zero_grad()
            model(torch.randn(3, 5, generator=torch.Generator().manual_seed(number))).square().sum().backward()
            optimizer.step()

    steps(first := MoFO(model.parameters(), lr=0.1), range(3))
    saved, weights = copy.deepcopy(first.state_dict()), copy.deepcopy(model.state_dict())
    steps(first, range(3, 6))
    whole = copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    resumed = MoFO(model.parameters(), lr=0.5)
    resumed.load_state_dict(saved)
    steps(resumed, range(3, 6))
    assert all(value.equal(whole[name]) for name, value in model.state_dict().items())
    steps(plain := torch.optim.AdamW(model.parameters()), range(1))
    assert plain.state_dict()["state"][0].keys() == saved["state"][0].keys()


def loss_of(model, batch):
    return model(batch).square().sum()


def plainly(model, optimizer, batch):
    loss_of(model, batch).backward()
    optimizer.step()


def accumulated(model, optimizer, batch):
    for half in batch.chunk(2):
        loss_of(model, half).backward()
    optimizer.step()


def scaled(model, optimizer, batch):
    """And a step with an infinite gradient, which is skipped and leaves the moments as they were."""
    for infinite in (True, False):
        optimizer.zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        scaler.scale(loss_of(model, batch)).backward()
        if infinite:
            model[0].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)


def by_a_closure(model, optimizer, batch):
    def closure():
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    expected = loss_of(model, batch)
    assert optimizer.step(closure) == expected


@pytest.mark.parametrize("how", [accumulated, scaled, by_a_closure])
def test_a_training_loop_may_step_it_as_it_steps_adamw(how):
    """Accumulation, loss scaling, closures, a scheduler, a frozen layer: the same steps as in the plainest loop."""
    found = []
    for step in (plainly, how):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Linear(4, 2).requires_grad_(False))
        optimizer = MoFO(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        frozen = model[3].weight.clone()
        for batch in torch.randn(3, 8, 6):
            optimizer.zero_grad()
            step(model, optimizer, batch)
            schedule.step()
        assert model[3].weight.equal(frozen)
        found.append([parameter.detach() for parameter in model.parameters()])
    torch.testing.assert_close(*found)


def test_with_a_decay_each_weight_stays_within_its_radius():
    torch.manual_seed(0)
    model = mixout.apply_(nn.Sequential(nn.Linear(8, 8)), mixout.AnchorDecay(radius=0.01))
    optimizer = MoFO(model.parameters(), lr=0.003)
    for _ in range(50):
        optimizer.zero_grad()
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
    assert 0 < mixout.radius_used(model)["0.weight"] <= 1.001


@pytest.mark.parametrize("options", [{"fraction": 0}, {"fraction": 1.1}, {"lr": -1}, {"betas": (0.9, 1.0)}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"expected {next(iter(options))} "):
        MoFO([nn.Parameter(torch.zeros(2, 2))], **options)


def test_sparse_gradients_are_refused():
    layer = nn.Embedding(4, 2, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="expected dense gradients"):
        MoFO(layer.parameters()).step()
