"""anchor_decay against closed forms: no optimizer hook, no mixout, only the equation."""

import copy
import gc
import math
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.optim.optimizer as torch_optimizer
import transformers
from torch import nn

import mixout
from mixout import AnchorDecay, Mixout
from mixout.finetune.optimizers import BERTAdam
from mixout.methods import optimizer_hooks
from mixout.methods import targets as held
from mixout.methods.optimizer_hooks import detach_
from mixout.methods.targets import targets

ETA, RATE = 0.1, 0.5
LEFT = math.exp(-ETA * RATE)  # of w - u after a step that moves nothing by itself


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double()


def batches(steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(steps)]


def loss_of(model, x):
    return model(x).pow(2).sum()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=ETA, **options)


def adamw(model, **options):
    return torch.optim.AdamW(model.parameters(), lr=ETA, **{"weight_decay": 0.0, **options})


def train(model, optimizer, xs, after=None):
    for x in xs:
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
        if after is not None:
            after()


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


class Pretrained(nn.Module):
    """A body and a new head, marked as transformers marks them."""

    base_model_prefix = "body"

    def __init__(self):
        super().__init__()
        self.body, self.head = net(), nn.Linear(2, 2).double()

    @property
    def base_model(self):
        return self.body

    def get_output_embeddings(self):
        return None

    def forward(self, x):
        return self.head(self.body(x))


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


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another one, as SAM, Lookahead and ZeRO are."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure=None):
        return self.inner.step(closure)


class Listed(Wrapper):
    """A wrapper whose inner optimizer is not an attribute."""

    def __init__(self, inner):
        super().__init__(inner)
        del self.inner
        self.stages = [inner]

    def step(self, closure=None):
        return self.stages[0].step(closure)


class Subclass(torch.optim.SGD):
    """Its step calls that of its base class, which torch hooks too once there was an SGD."""

    def step(self, closure=None):
        return super().step(closure)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization as it is published: a base optimizer, and two ways to call it."""

    def __init__(self, params, base, rho=0.5, **options):
        super().__init__(params, dict(rho=rho, **options))
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def parameters(self):
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for p in self.parameters()]).norm()
        for p in self.parameters():
            self.state[p]["old"] = p.detach().clone()
            p.add_(p.grad * (self.param_groups[0]["rho"] / norm))

    @torch.no_grad()
    def second_step(self):
        for p in self.parameters():
            p.copy_(self.state[p]["old"])
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure):
        self.first_step()
        self.zero_grad()
        torch.enable_grad()(closure)()
        self.second_step()


@pytest.mark.parametrize("wrap", [lambda o: o, Wrapper, Listed, lambda o: Wrapper(Listed(Wrapper(o))), None])
@pytest.mark.parametrize("decoupled", [True, False])
def test_nested_optimizers_decay_once(decoupled, wrap):
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    left = math.exp(-0.5) if decoupled else 0.5
    mixout.apply_(layer, AnchorDecay(0.5, decoupled=decoupled), anchor=0)
    plain = torch.optim.SGD(layer.parameters(), lr=1.0)
    optimizer = wrap(plain) if wrap else Subclass(layer.parameters(), lr=1.0)
    for steps in range(1, 3):
        layer.weight.grad = torch.zeros(2, 2)
        optimizer.step()
        torch.testing.assert_close(layer.weight.detach(), torch.full((2, 2), left**steps))
    # A step that raises leaves nothing behind.
    layer.weight.grad = torch.zeros(2, 2)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    for steps in range(3, 5):
        layer.weight.grad = torch.zeros(2, 2)
        plain.step()
        torch.testing.assert_close(layer.weight.detach(), torch.full((2, 2), left**steps))


@pytest.mark.parametrize("decoupled", [True, False])
def test_a_step_that_raised_is_taken_again_with_one_decay(decoupled):
    class Fails(torch.optim.Optimizer):
        def step(self, closure=None):
            raise ZeroDivisionError

    model = mixout.apply_(nn.Linear(2, 2, bias=False), AnchorDecay(0.5, decoupled=decoupled), anchor=0)
    start = model.weight.detach().clone()
    model.weight.grad = torch.zeros(2, 2)
    with pytest.raises(ZeroDivisionError):
        Fails(model.parameters(), {"lr": 1.0}).step()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    torch.testing.assert_close(model.weight.detach(), start * (math.exp(-0.5) if decoupled else 0.5))


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_sam_gives_one_update_in_both_its_forms(base, decoupled):
    """Against an oracle: SAM by hand, and then the equation at the weights that the base optimizer steps."""
    options = {"lr": ETA, "weight_decay": 0.0} if base is torch.optim.AdamW else {"lr": ETA}
    closed, stepped = (mixout.apply_(net(), AnchorDecay(RATE, decoupled=decoupled)) for _ in range(2))
    oracle = net()
    start = {name: p.detach().clone() for name, p in oracle.named_parameters()}
    optimizers = [SAM(model.parameters(), base, **options) for model in (closed, stepped, oracle)]
    by_hand = [(p, start[name]) for name, p in oracle.named_parameters() if p.dim() == 2]
    for x in batches(4):
        for model, optimizer in zip((closed, stepped, oracle), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model, x).backward()
            if model is closed:
                optimizer.step(lambda x=x: loss_of(closed, x).backward())
                continue
            optimizer.first_step()
            optimizer.zero_grad()
            loss_of(model, x).backward()
            if model is oracle:
                with torch.no_grad():
                    for p in optimizer.parameters():
                        p.copy_(optimizer.state[p]["old"])
                    if not decoupled:
                        for p, u in by_hand:
                            p.grad.add_(RATE * (p - u))
                    optimizer.base_optimizer.step()
                    if decoupled:
                        for p, u in by_hand:
                            p.copy_(u + LEFT * (p - u))
            else:
                optimizer.second_step()
    for a, b, c in zip(closed.parameters(), stepped.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        torch.testing.assert_close(a, c, rtol=1e-11, atol=1e-12)


def test_an_optimizer_without_a_learning_rate_is_refused_before_it_steps():
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), AnchorDecay(0.1))
    optimizer = transformers.Adafactor(model.parameters(), lr=None, relative_step=True, warmup_init=True)
    model(torch.ones(2, 4)).sum().backward()
    before = model[0].weight.detach().clone()
    with pytest.raises(mixout.MixoutError, match=r"expected a learning rate.*Adafactor"):
        optimizer.step()
    assert model[0].weight.equal(before)


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("m", torch.zeros_like(p))
                p.sub_(group["lr"] * (0.9 * momentum + 0.1 * p.grad).sign())
                momentum.lerp_(p.grad, 0.01)


@pytest.mark.parametrize("eta", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize(
    ("build", "largest_step"),
    [
        (lambda p, eta: torch.optim.AdamW(p, lr=eta, weight_decay=0.0), 1.0),
        (lambda p, eta: torch.optim.Adam(p, lr=eta), 1.0),
        (Lion, 1.0),
        (lambda p, eta: torch.optim.SGD(p, lr=eta), 2.0),
        (lambda p, eta: torch.optim.SGD(p, lr=eta, momentum=0.5), 4.0),
    ],
    ids=["adamw", "adam", "lion", "sgd", "momentum"],
)
def test_each_weight_stays_within_the_bound(build, largest_step, eta):
    """A gradient of 2 that always points one way: |w - u| < s / (eta rate), and near it where eta rate is small."""
    rate = 40.0
    model = mixout.apply_(nn.Linear(3, 3, bias=False).double(), AnchorDecay(rate))
    start = model.weight.detach().clone()
    optimizer = build(model.parameters(), eta)
    for _ in range(400):
        model.weight.grad = torch.full_like(model.weight, 2.0)
        optimizer.step()
        assert (model.weight - start).abs().max() < largest_step / rate * (1 + 1e-6)
    expected = largest_step * eta / math.expm1(eta * rate)
    torch.testing.assert_close((start - model.weight).detach(), torch.full_like(start, expected), rtol=1e-3, atol=1e-9)


def test_the_bound_holds_with_any_schedule():
    """Lion moves every weight by the learning rate, whatever that is: |w - u| <= radius, and the recursion by hand."""
    radius, expected = 0.02, 0.0
    model = mixout.apply_(nn.Linear(3, 3, bias=False).double(), AnchorDecay(radius=radius))
    start = model.weight.detach().clone()
    optimizer = Lion(model.parameters(), lr=0.0)
    for eta in torch.logspace(-5, 0, 60).tolist() + torch.logspace(0, -5, 60).tolist() + [1.0, 1e-4] * 20:
        optimizer.param_groups[0]["lr"] = eta
        model.weight.grad = torch.full_like(model.weight, -1.0)
        optimizer.step()
        expected = math.exp(-eta / radius) * (expected + eta)
        torch.testing.assert_close((model.weight - start).detach(), torch.full_like(start, expected))
        assert expected <= radius


@pytest.mark.parametrize(
    ("eta", "farthest"), [(2e-5, 1.15), (2e-4, 2.82), (2e-3, 5.40), (4e-3, 5.63)], ids=lambda value: f"{value:g}"
)
def test_adam_without_bias_correction_goes_farther_at_first(eta, farthest):
    """By hand: step t is (1 - .9^t) / sqrt(1 - .999^t) long; the largest distance in radii, and where it ends."""
    radius = 0.02
    model = mixout.apply_(nn.Linear(1, 1, bias=False).double(), AnchorDecay(radius=radius))
    start = model.weight.detach().clone()
    optimizer = BERTAdam(model.parameters(), lr=eta, eps=0.0, weight_decay=0.0)
    gone, largest, expected = 0.0, 0.0, 0.0
    for step in range(1, 1501):
        model.weight.grad = torch.full_like(model.weight, -2.0)
        optimizer.step()
        length = eta * (1 - 0.9**step) / math.sqrt(1 - 0.999**step)
        expected = math.exp(-eta / radius) * (expected + length)
        gone = float((model.weight - start).detach())
        assert gone == pytest.approx(expected, rel=1e-9)
        largest = max(largest, gone / radius)
    assert largest == pytest.approx(farthest, abs=0.006)
    assert largest <= 5.63
    assert gone / radius == pytest.approx(1.0, abs=0.2)


def test_the_longest_step_of_adam():
    """Gradients that grow by beta_2 / beta_1 a step make it, by Cauchy and Schwarz: 7.27 learning rates."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0, eps=0.0)
    for _ in range(3000):  # until the bias corrections are 1
        weight.grad = torch.full_like(weight, 1e-30)
        optimizer.step()
    for step in range(200):
        before, weight.grad = float(weight.detach()), torch.full_like(weight, (0.999 / 0.9) ** step)
        optimizer.step()
    largest = (1 - 0.9) / math.sqrt((1 - 0.999) * (1 - 0.9**2 / 0.999))
    assert before - float(weight.detach()) == pytest.approx(largest, rel=0.03)
    assert largest == pytest.approx(7.27, abs=0.01)


class WithoutRate(torch.optim.Optimizer):
    def __init__(self, params, **options):
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad)


@pytest.mark.parametrize("found", [0.0, 1.0, 2.0])
def test_a_fused_step_that_was_skipped_decays_nothing(found):
    """GradScaler tells a fused optimizer by an attribute; with two devices it is 2."""
    model = mixout.apply_(nn.Linear(3, 3, bias=False).double(), AnchorDecay(RATE), anchor=0)
    start = model.weight.detach().clone()
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer = WithoutRate(model.parameters(), lr=ETA)
    optimizer.found_inf = torch.tensor(found)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), start * (1.0 if found else LEFT), rtol=1e-7, atol=0)


@pytest.mark.parametrize("decoupled", [True, False])
def test_fused_optimizers_under_a_scaler(decoupled):
    """As without a scaler, and a step with an infinite gradient changes nothing."""
    models = [mixout.apply_(net().float(), AnchorDecay(RATE, decoupled=decoupled)) for _ in range(2)]
    plain, fused = adamw(models[0], fused=True), adamw(models[1], fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for x in batches(4):
        plain.zero_grad()
        loss_of(models[0], x.float()).backward()
        plain.step()
        fused.zero_grad()
        scaler.scale(loss_of(models[1], x.float())).backward()
        scaler.step(fused)
        scaler.update()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    before = [p.detach().clone() for p in models[1].parameters()]
    fused.zero_grad()
    scaler.scale(models[1](torch.full((2, 4), float("inf"))).sum()).backward()
    scaler.step(fused)
    assert all(p.equal(b) for p, b in zip(models[1].parameters(), before, strict=True))


# Optimizers of other models, and what they pay.


@pytest.mark.parametrize("decoupled", [True, False])
def test_optimizers_of_other_models_are_left_alone(decoupled):
    """An optimizer without "lr" steps: another model, or parameters of this one that do not decay."""
    model, other = mixout.apply_(net(), AnchorDecay(RATE, decoupled=decoupled)), net(1)
    for parameters in (list(other.parameters()), [model[0].bias, model[1].weight]):
        before = [p.detach().clone() for p in parameters]
        for p in parameters:
            p.grad = torch.ones_like(p)
        WithoutRate(parameters).step()
        for p, b in zip(parameters, before, strict=True):
            torch.testing.assert_close(p.detach(), b - 1.0)
    loss_of(model, batches(1)[0]).backward()
    if decoupled:
        with pytest.raises(mixout.MixoutError, match="expected a learning rate"):
            WithoutRate(model.parameters()).step()
    model.requires_grad_(False)
    model.zero_grad()
    WithoutRate(model.parameters()).step()  # frozen weights do not decay, so nothing is missing


def test_an_unrelated_step_looks_at_no_target(monkeypatch):
    model, other = mixout.apply_(net(), AnchorDecay(RATE)), net(1)
    optimizer = sgd(other)
    train(other, optimizer, batches(1))

    def looked(self):
        raise AssertionError(self)

    monkeypatch.setattr(held.Target, "parameter", looked)
    train(other, optimizer, batches(2))
    monkeypatch.undo()
    train(model, sgd(model), batches(1))


def test_hooks_go_with_the_last_decay(monkeypatch):
    fresh = weakref.WeakValueDictionary()
    for module in (held, optimizer_hooks):
        monkeypatch.setattr(module, "TARGETS", fresh)
    monkeypatch.setattr(optimizer_hooks, "_HANDLES", [])
    before = hooks()
    models = [mixout.apply_(net(), AnchorDecay(RATE)) for _ in range(2)]
    twin = copy.deepcopy(models[0])
    assert hooks() == (before[0] + 1, before[1] + 1)
    for model in (*models, twin):
        assert hooks() == (before[0] + 1, before[1] + 1)
        mixout.remove_(model)
    assert hooks() == before
    model = mixout.apply_(net(), AnchorDecay(RATE))
    assert hooks() == (before[0] + 1, before[1] + 1)
    mixout.remove_(model)


def hooks():
    return len(torch_optimizer._global_optimizer_pre_hooks), len(torch_optimizer._global_optimizer_post_hooks)


def test_a_deleted_model_is_freed_at_once():
    gc.collect()
    gc.disable()
    try:
        model = mixout.apply_(net(), AnchorDecay(RATE))
        optimizer = sgd(model)
        train(model, optimizer, batches(1))
        known = len(held.TARGETS)
        del model, optimizer
        assert len(held.TARGETS) == known - 2
    finally:
        gc.enable()


# Parameters that others exchange.


def step_of_nothing(optimizer, model):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def test_exchanged_parameters_decay():
    model = mixout.apply_(net(), AnchorDecay(RATE))
    anchor = model[0].weight.detach().clone()
    optimizer = sgd(model)
    train(model, optimizer, batches(1))
    bystander = sgd(net(1))

    def check(steps=1):
        with torch.no_grad():
            model[0].weight.copy_(anchor + 1)
        step_of_nothing(optimizer, model)
        torch.testing.assert_close(model[0].weight - anchor, torch.full_like(anchor, LEFT))

    check()
    # As FSDP2 and Accelerate do: another Parameter in the module and in the optimizer's group.
    new = nn.Parameter(model[0].weight.detach().clone())
    model[0].weight = new
    optimizer.param_groups[0]["params"][0] = new
    check()
    # First the module, and the optimizer a step later.
    new = nn.Parameter(model[0].weight.detach().clone())
    model[0].weight = new
    step_of_nothing(optimizer, model)
    optimizer.param_groups[0]["params"][0] = new
    check()
    # The old and the new one were both in the optimizer before.
    extra = nn.Parameter(torch.zeros_like(new))
    optimizer.add_param_group({"params": [extra], "lr": ETA})
    check()
    model[0].weight = extra
    check()
    # Contents are swapped, objects stay.
    torch.utils.swap_tensors(model[0].weight, nn.Parameter(torch.ones_like(anchor)))
    check()
    # Groups are replaced.
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    check()
    model.float()
    anchor = anchor.float()
    check()
    assert bystander.param_groups


def test_swapped_modules_parameters_decay():
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model = mixout.apply_(net().float(), AnchorDecay(RATE))
        anchor = model[0].weight.detach().double()
        optimizer = sgd(model)
        step_of_nothing(optimizer, model)
        optimizer.zero_grad()
        model.double()
        with torch.no_grad():
            model[0].weight.copy_(anchor + 1)
        step_of_nothing(optimizer, model)
        torch.testing.assert_close(model[0].weight - anchor, torch.full_like(anchor, LEFT))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_a_parameter_group_that_is_added_later_decays():
    model = mixout.apply_(net(), AnchorDecay(RATE))
    anchor = model[2].weight.detach().clone()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=ETA)
    step_of_nothing(optimizer, model)
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.2})
    with torch.no_grad():
        model[2].weight.add_(1.0)
    step_of_nothing(optimizer, model)
    torch.testing.assert_close(model[2].weight - anchor, torch.full_like(anchor, math.exp(-0.2 * RATE)))


def test_one_optimizer_for_each_parameter_in_the_backward_pass():
    model, oracle = mixout.apply_(net(), AnchorDecay(RATE)), net()
    start = [p.detach().clone() for p in oracle.parameters()]
    for p in model.parameters():

        def step(p, optimizer=torch.optim.SGD([p], lr=ETA)):  # noqa: B008  one for each parameter
            optimizer.step()
            optimizer.zero_grad()

        p.register_post_accumulate_grad_hook(step)
    for x in batches(3):
        loss_of(model, x).backward()
        oracle.zero_grad()
        loss_of(oracle, x).backward()
        with torch.no_grad():
            for p, u in zip(oracle.parameters(), start, strict=True):
                p.sub_(ETA * p.grad)
                if p.dim() == 2:
                    p.copy_(u + LEFT * (p - u))
    for a, b in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


# What can't be decayed any more is refused before a weight is changed.


def refused_without_a_change(model, optimizer, match):
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        with pytest.raises(mixout.MixoutError, match=match):
            step_of_nothing(optimizer, model)
    assert all(p.equal(b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("first", ["optimizer", "resize"])
def test_resized_embeddings_are_refused_before_the_step(decoupled, first):
    config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = mixout.apply_(transformers.GPT2LMHeadModel(config), AnchorDecay(RATE, decoupled=decoupled))
    optimizer = sgd(model) if first == "optimizer" else None
    if optimizer:
        step_of_nothing(optimizer, model)
    model.resize_token_embeddings(23)
    optimizer = optimizer or sgd(model)
    refused_without_a_change(model, optimizer, r"resized after apply_: it has shape \(23, 8\).*remove_.*apply_ again")
    mixout.remove_(model)
    mixout.apply_(model, AnchorDecay(RATE, decoupled=decoupled))
    step_of_nothing(sgd(model), model)


@pytest.mark.parametrize("change", ["weight_norm", "spectral_norm", "old_weight_norm", "prune"])
@pytest.mark.parametrize("first", ["optimizer", "change"])
def test_a_weight_that_was_parametrized_since_is_refused_before_the_step(change, first):
    from torch.nn.utils import parametrizations, prune, weight_norm

    model = mixout.apply_(net(), AnchorDecay(RATE))
    optimizer = sgd(model) if first == "optimizer" else None
    if optimizer:
        step_of_nothing(optimizer, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        {
            "weight_norm": parametrizations.weight_norm,
            "spectral_norm": parametrizations.spectral_norm,
            "old_weight_norm": weight_norm,
            "prune": lambda module: prune.l1_unstructured(module, "weight", 0.5),
        }[change](model[0])
    refused_without_a_change(model, optimizer or sgd(model), "parametrized or pruned after apply_")
    other = net(1)
    train(other, sgd(other), batches(1))  # others go on


def test_lazy_layers_are_refused_by_apply():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(2))
    with pytest.raises(mixout.MixoutError, match=r"'1' \(LazyLinear\).*run one forward pass"):
        mixout.apply_(model, AnchorDecay(RATE))
    assert not targets(model)
    model(torch.ones(2, 4))
    assert list(targets(mixout.apply_(model, AnchorDecay(RATE)))) == ["0.weight", "1.weight"]


def test_weight_decay_towards_zero_is_told_once_for_each_optimizer():
    model = mixout.apply_(net(), AnchorDecay(RATE))
    optimizers = [adamw(model, weight_decay=0.02), adamw(model, weight_decay=0.01)]
    for optimizer, strength in zip(optimizers, ("0.02", "0.01"), strict=True):
        with pytest.warns(mixout.ZeroDecayWarning, match=rf"weight_decay={strength}.*rate=0\.5.*set it to 0") as told:
            step_of_nothing(optimizer, model)
        assert told[0].filename == __file__
    optimizers[0].add_param_group({"params": [nn.Parameter(torch.zeros(1, dtype=torch.float64))]})
    for optimizer in optimizers:
        step_of_nothing(optimizer, model)  # nothing is told again
    # Not where it acts on other weights only.
    groups = [{"params": [model[0].weight, model[2].weight]}, {"params": [model[0].bias], "weight_decay": 0.1}]
    step_of_nothing(torch.optim.AdamW(groups, lr=ETA, weight_decay=0.0), model)


# Parts and copies.


def test_a_part_of_a_model_decays_and_is_undone_by_itself(duplicate):
    model = mixout.apply_(nn.Sequential(net(), nn.Linear(2, 2).double()), AnchorDecay(RATE))
    part = duplicate(model[0])
    assert list(targets(part)) == ["0.weight", "2.weight"]
    assert list(targets(model)) == ["0.0.weight", "0.2.weight", "1.weight"]
    assert all(target.module is part.get_submodule(name[0]) for name, target in targets(part).items())
    anchor = part[0].weight.detach().clone()
    with torch.no_grad():
        part[0].weight.add_(1.0)
    step_of_nothing(sgd(part), part)
    torch.testing.assert_close(part[0].weight - anchor, torch.full_like(anchor, LEFT))
    assert model[0][0].weight.equal(anchor)
    detach_(part[0])
    assert list(targets(part)) == ["2.weight"]
    moved = part[0].weight.detach().clone()
    step_of_nothing(sgd(part), part)
    assert part[0].weight.equal(moved)
    kept = model[0]
    del model  # what is left of it decays on
    with torch.no_grad():
        kept[0].weight.add_(1.0)
    step_of_nothing(sgd(kept), kept)
    torch.testing.assert_close(kept[0].weight - anchor, torch.full_like(anchor, LEFT))


def test_a_copy_in_the_middle_of_training_decays_from_its_first_step(duplicate):
    """What orders steps in one process means nothing in another."""
    model = mixout.apply_(net(), AnchorDecay(RATE))
    targets(model)["0.weight"].decayed_at = 10**9
    twin = duplicate(model)
    with torch.no_grad():
        twin[0].weight.add_(1.0)
    step_of_nothing(sgd(twin), twin)
    expected = torch.full_like(twin[0].weight, LEFT)
    torch.testing.assert_close(twin[0].weight - model[0].weight, expected)


def test_rates_of_numpy_are_numbers():
    assert AnchorDecay(np.float32(0.5)).rate == 0.5
    assert AnchorDecay(radius=np.float32(0.5)).strength == 2.0
    with pytest.raises(TypeError, match="expected rate to be a number"):
        AnchorDecay(True)


# A radius relative to the start.


def test_a_relative_radius_is_a_share_of_each_weights_root_mean_square():
    """After one step of SGD with the gradient 1 from u: w - u is -lr e^(-lr / r), with r for each weight of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[1].weight.mul_(10)
    starts = [layer.weight.detach().clone() for layer in model]
    mixout.apply_(model, AnchorDecay(radius=0.5, relative=True))
    for layer in model:
        layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    used = mixout.radius_used(copy.deepcopy(model))
    for n, (layer, start) in enumerate(zip(model, starts, strict=True)):
        radius = 0.5 * start.double().square().mean().sqrt().item()
        went = torch.full_like(start, -0.1 * math.exp(-0.1 / radius))
        torch.testing.assert_close(layer.weight.detach() - start, went, rtol=1e-4, atol=1e-6)
        assert used[f"{n}.weight"] == pytest.approx(-went[0, 0].item() / radius, rel=1e-3)


def test_what_no_relative_radius_can_be_is_refused():
    with pytest.raises(ValueError, match="expected a radius with relative=True, got rate 200"):
        AnchorDecay(200, relative=True)
    with pytest.raises(ValueError, match="expected a start that is not 0 with relative=True"):
        mixout.apply_(net(), AnchorDecay(radius=0.1, relative=True), anchor=0)
    method = AnchorDecay(radius=0.1, relative=True)
    assert repr(method) == "AnchorDecay(radius=0.1, relative=True)"
    assert mixout.methods.parse(mixout.methods.spell(method)) == (method,)
    assert "weights decay" in str(mixout.coverage(net(), method))
