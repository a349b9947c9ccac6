"""anchor_decay against closed forms: no optimizer hook, no mixout, only the equation."""

import math

import pytest
import torch
from decay_steps import ETA, LEFT, RATE, adamw, batches, loss_of, net, sgd, step_of_nothing, train
from torch import nn

import mixout
from body_and_head import WithHead
from mixout import AnchorDecay, Mixout
from mixout.methods.optimizer_hooks import targets


@pytest.mark.parametrize("build", [sgd, adamw, lambda m: sgd(m, momentum=0.9), lambda m: adamw(m, foreach=True)])
@pytest.mark.parametrize("first", ["optimizer", "apply"])
def test_decoupled_decay_is_the_closed_form(build, first):
    """w <- u + exp(-eta rate) (w - u) after each step.

    Traps: an optimizer that was built before apply_ is orphaned; an anchor that is the live parameter decays nothing.
    """
    model, oracle = net(), net()
    optimizer = build(model) if first == "optimizer" else None
    mixout.apply_(model, AnchorDecay(RATE))
    optimizer = optimizer or build(model)
    start = {name: p.detach().clone() for name, p in oracle.named_parameters()}

    @torch.no_grad()
    def by_hand():
        for name, parameter in oracle.named_parameters():
            if parameter.dim() == 2:  # never biases and norms
                parameter.copy_(start[name] + LEFT * (parameter - start[name]))

    train(model, optimizer, batches(5))
    train(oracle, build(oracle), batches(5), by_hand)
    for (name, mine), theirs in zip(model.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("build", [sgd, adamw])
def test_coupled_decay_is_the_penalty_in_the_loss(build):
    """wdecay(u, lambda): L(w) + lambda/2 ||w - u||^2, by autograd."""
    model, oracle = net(), net()
    mixout.apply_(model, AnchorDecay(RATE, decoupled=False))
    start = [p.detach().clone() for p in oracle.parameters()]
    train(model, build(model), batches(5))
    optimizer = build(oracle)
    for x in batches(5):
        optimizer.zero_grad()
        penalty = sum((w - u).pow(2).sum() for w, u in zip(oracle.parameters(), start, strict=True) if w.dim() == 2)
        (loss_of(oracle, x) + RATE / 2 * penalty).backward()
        optimizer.step()
    for mine, theirs in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_a_parameter_without_gradient_does_not_move():
    model = mixout.apply_(net(), AnchorDecay(RATE))
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[2].weight.add_(1.0)
    before = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    model[0].requires_grad_(False)
    optimizer = sgd(model)
    optimizer.zero_grad()
    loss_of(model, batches(1)[0]).backward()
    optimizer.step()
    assert model[0].weight.equal(before[0])
    assert not model[2].weight.equal(before[1])


class Pretrained(WithHead):
    def __init__(self):
        super().__init__()
        self.body, self.head = net(), nn.Linear(2, 2).double()


def test_head_and_biases_are_not_decayed():
    """Trap: a decay that also pulls the new head to its random initialisation."""
    torch.manual_seed(3)
    model = mixout.apply_(Pretrained(), AnchorDecay(RATE))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
            parameter.grad = torch.zeros_like(parameter)  # a step that moves nothing by itself
    sgd(model).step()
    for name, parameter in model.named_parameters():
        moved = name in ("body.0.weight", "body.2.weight")
        expected = LEFT if moved else 1.0
        torch.testing.assert_close(parameter.detach() - start[name], torch.full_like(parameter, expected))


@pytest.mark.parametrize("decoupled", [True, False])
def test_tied_weights_decay_once(decoupled):
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    model = mixout.apply_(nn.Sequential(a, b), AnchorDecay(RATE, decoupled=decoupled))
    start = a.weight.detach().clone()
    with torch.no_grad():
        a.weight.add_(1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    sgd(model).step()
    torch.testing.assert_close(a.weight - start, torch.full((3, 3), LEFT if decoupled else 1 - ETA * RATE))


def test_accumulation_decays_once_a_step_and_is_not_scaled():
    """Trap: penalty added to the loss: scaled by loss scaling and accumulation."""
    whole, parts = (mixout.apply_(net(), AnchorDecay(RATE, decoupled=False)) for _ in range(2))
    x = torch.cat(batches(4))
    optimizers = sgd(whole), sgd(parts)
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(whole, x).backward()
        for part in x.split(5):
            loss_of(parts, part).backward()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_copy_decays_its_own(duplicate):
    model = mixout.apply_(net(), AnchorDecay(RATE))
    train(model, sgd(model), batches(2))
    twin = duplicate(model)
    before = [p.detach().clone() for p in model.parameters()]
    train(twin, sgd(twin), batches(3, seed=2))
    assert all(p.equal(b) for p, b in zip(model.parameters(), before, strict=True))
    train(model, sgd(model), batches(3, seed=2))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert a.equal(b)
    mixout.remove_(model)
    for one, decays in ((twin, True), (model, False)):  # removing it from one leaves the other's
        weight = one[0].weight.detach().clone()
        step_of_nothing(sgd(one), one)
        assert one[0].weight.equal(weight) is not decays


def test_decay_beside_mixout_uses_one_anchor():
    model = mixout.apply_(net(), [Mixout(0.5), AnchorDecay(RATE)])
    assert targets(model)["0.weight"].anchor is model[0]._mixed.anchor
    train(model, adamw(model), batches(3))
    assert mixout.distance(model).total > 0


def test_sparse_gradients_are_not_broken():
    model = mixout.apply_(nn.Embedding(5, 2, sparse=True), AnchorDecay(RATE))
    start = model.weight.detach().clone()
    model(torch.tensor([1, 1])).sum().backward()
    sgd(model).step()
    torch.testing.assert_close(model.weight[1], start[1] - ETA * 2 * LEFT)
    torch.testing.assert_close(model.weight[0], start[0])


def test_each_parameter_group_decays_with_its_own_rate():
    model = mixout.apply_(net(), AnchorDecay(RATE))
    start = [model[i].weight.detach().clone() for i in (0, 2)]
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.01}]
    optimizer = torch.optim.SGD(groups)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for i, u, eta in zip((0, 2), start, (0.1, 0.01), strict=True):
        torch.testing.assert_close(model[i].weight - u, torch.full_like(u, math.exp(-eta * RATE)))


@pytest.mark.parametrize("rate_of", [float, torch.tensor], ids=["number", "tensor"])
@pytest.mark.parametrize("anchor", [None, 0.0], ids=["start", "zero"])
def test_a_learning_rate_may_be_a_tensor_of_another_dtype(rate_of, anchor):
    model = nn.Linear(4, 3, bias=False).bfloat16()
    start = model.weight.detach().clone()
    mixout.apply_(model, AnchorDecay(RATE), anchor=anchor)
    with torch.no_grad():
        model.weight.add_(1.0)
    way = (model.weight.detach() - (start if anchor is None else 0.0)).double()
    model.weight.grad = torch.zeros_like(model.weight)
    torch.optim.SGD(model.parameters(), lr=rate_of(ETA)).step()
    left = (model.weight.detach() - (start if anchor is None else 0.0)).double()
    torch.testing.assert_close(left, way * LEFT, rtol=2**-7, atol=2**-7)


def test_an_fp16_step_that_the_scaler_skips_decays_nothing():
    model = mixout.apply_(net().float(), AnchorDecay(RATE))
    scaler = torch.amp.GradScaler("cpu")
    optimizer = sgd(model)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    before = model[0].weight.detach().clone()
    scaler.scale(model(torch.full((2, 4), float("inf"))).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert model[0].weight.equal(before)


def test_nothing_to_decay_is_an_error():
    with pytest.raises(mixout.NothingMixedError, match="two dimensions"):
        mixout.apply_(nn.LayerNorm(3), AnchorDecay(RATE))
