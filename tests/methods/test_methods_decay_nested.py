"""anchor_decay under optimizers that wrap others, take closures or gradient scalers: one decay a step."""

import math

import pytest
import torch
import transformers
from decay_steps import ETA, LEFT, RATE, batches, loss_of, net
from torch import nn

import mixout
from mixout import AnchorDecay


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


class Hybrid(torch.optim.Optimizer):
    """Steps the matrices itself and leaves the rest to another, as Muon beside AdamW does."""

    def __init__(self, matrices, rest):
        super().__init__([{"params": matrices}, {"params": rest}], {"lr": ETA})
        self.inner = torch.optim.SGD(rest, lr=ETA)

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(ETA * p.grad)
        self.inner.step()


@pytest.mark.parametrize("decoupled", [True, False])
def test_what_a_wrapper_steps_by_itself_decays_too(decoupled):
    """Each weight once, whichever of the two steps it. Oracle: the same training with one plain SGD."""
    model, oracle = (mixout.apply_(net(), AnchorDecay(RATE, decoupled=decoupled)) for _ in range(2))
    first, *others = model.parameters()
    optimizers = Hybrid([first], others), torch.optim.SGD(oracle.parameters(), lr=ETA)
    for x in batches(3):
        for one, optimizer in zip((model, oracle), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(one, x).backward()
            optimizer.step()
    for a, b in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", [{"decoupled": False}, {"selective": True}, {}])
def test_maximising_the_negative_is_minimising(options):
    """With ``maximize`` torch turns the gradient, so its decay pulls to the start as well."""
    start = [p.detach().clone() for p in net().parameters()]
    ends = []
    for sign in (1, -1):
        model = mixout.apply_(net(), AnchorDecay(RATE, **options))
        optimizer = torch.optim.SGD(model.parameters(), lr=ETA, momentum=0.9, maximize=sign < 0)
        for x in batches(6):
            optimizer.zero_grad()
            (sign * loss_of(model, x)).backward()
            optimizer.step()
        ends.append(list(model.parameters()))
    for u, a, b in zip(start, *ends, strict=True):
        assert not a.equal(u)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("call", [lambda step, c: step(c, 7), lambda step, c: step(extra=7, closure=c)])
def test_a_step_gets_all_its_arguments(call):
    class Asking(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None, extra=None):
            self.extra = extra
            with torch.enable_grad():
                closure()
            for p in self.param_groups[0]["params"]:
                p.sub_(ETA * p.grad)

    model, oracle = (mixout.apply_(net(), AnchorDecay(RATE, decoupled=False)) for _ in range(2))
    optimizers = Asking(model.parameters(), lr=ETA), torch.optim.SGD(oracle.parameters(), lr=ETA)
    for x in batches(2):
        for one, optimizer in zip((model, oracle), optimizers, strict=True):

            def closure(one=one, optimizer=optimizer, x=x):
                optimizer.zero_grad()
                loss_of(one, x).backward()

            call(optimizer.step, closure) if one is model else optimizer.step(closure)
    assert optimizers[0].extra == 7
    for a, b in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
