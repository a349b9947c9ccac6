"""The hooks of anchor_decay: which optimizers they meet, and what they leave behind."""

import copy
import gc
import math
import pickle
import threading
import weakref

import pytest
import torch
import torch.optim.optimizer as torch_optimizer
from decay_steps import ETA, LEFT, RATE, adamw, batches, loss_of, net, sgd, step_of_nothing, train
from torch import nn

import mixout
from mixout import AnchorDecay
from mixout.methods import optimizer_hooks
from mixout.methods.optimizer_hooks import attach_, detach_, targets

WEIGHTS = {name: torch.ones_like(value) for name, value in net().named_parameters()}


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

    monkeypatch.setattr(optimizer_hooks.Target, "parameter", looked)
    train(other, optimizer, batches(2))
    monkeypatch.undo()
    train(model, sgd(model), batches(1))


def test_hooks_go_with_the_last_decay(monkeypatch):
    monkeypatch.setattr(optimizer_hooks, "TARGETS", weakref.WeakValueDictionary())
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
    train(plain := net(), sgd(plain), batches(1))  # the first step of a process imports modules
    gc.collect()
    gc.disable()
    try:
        model = mixout.apply_(net(), AnchorDecay(RATE))
        optimizer = sgd(model)
        train(model, optimizer, batches(1))
        known = len(optimizer_hooks.TARGETS)
        del model, optimizer
        assert len(optimizer_hooks.TARGETS) == known - 2
    finally:
        gc.enable()


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


class Freeing(torch.optim.Optimizer):
    """SGD that frees each gradient once it was used."""

    def __init__(self, model):
        super().__init__(model.parameters(), {"lr": ETA})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p.sub_(p.grad, alpha=ETA)
                p.grad = None


def freeing_after(model):
    optimizer = sgd(model)
    optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())
    return optimizer


@pytest.mark.parametrize(
    "method", [AnchorDecay(RATE), AnchorDecay(RATE, weights=WEIGHTS), AnchorDecay(1.0, selective=True)]
)
@pytest.mark.parametrize("make", [Freeing, freeing_after])
def test_weights_decay_whose_gradients_the_step_has_dropped(make, method):
    models = [mixout.apply_(net(), method) for _ in range(2)]
    train(models[0], make(models[0]), batches(3))
    train(models[1], sgd(models[1]), batches(3))
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)
    # Not those that had none before the step.
    with torch.no_grad():
        models[0][0].weight.add_(1.0)
    before = models[0][0].weight.clone()
    make(models[0]).step()
    assert models[0][0].weight.equal(before)


@pytest.mark.parametrize(
    ("lr", "method", "said"),
    [
        (0.1, AnchorDecay(radius=0.005), "lr=0.1, 20 times 0.005, the radius of '0.weight' .* 100% of"),
        (0.015, AnchorDecay(200.0), "takes it 95% of the way back"),
        (1, AnchorDecay(radius=0.3), "lr=1, 3.3 times 0.3, the radius"),
        (torch.tensor(0.1), AnchorDecay(radius=0.005), "lr=0.1, 20 times 0.005"),
        (0.1, AnchorDecay(radius=0.005, weights=WEIGHTS), "lr=0.1, 20 times 0.005"),
        (0.1, AnchorDecay(radius=0.1, relative=True), "times 0.0[0-9]+, the radius"),
        (0.0149, AnchorDecay(radius=0.005), None),
        (0.1, AnchorDecay(20.0, decoupled=False), None),
        (0.1, AnchorDecay(20.0, selective=True), None),
    ],
)
def test_a_learning_rate_that_takes_weights_all_the_way_back_is_told_once(lr, method, said):
    model = mixout.apply_(net(), method)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    frozen = mixout.apply_(nn.Linear(2, 2), AnchorDecay(radius=0.005)).requires_grad_(False)
    optimizer.add_param_group({"params": frozen.parameters(), "lr": 1e3})  # which never decays
    if said is not None:
        with pytest.warns(mixout.DecayStrengthWarning, match=said) as told:
            step_of_nothing(optimizer, model)
        assert len(told) == 1
        assert told[0].filename == step_of_nothing.__code__.co_filename
    step_of_nothing(optimizer, model)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (AnchorDecay(1e-6), r"rate=1e-06\) does nothing: in 100 steps of SGD.* than 1e-07 .*did you mean radius=1e-06"),
        (AnchorDecay(1e-6, weights=WEIGHTS), r"does nothing: in 100 steps of SGD"),
        (AnchorDecay(radius=1e6), None),
        (AnchorDecay(1e-4), None),
        (AnchorDecay(0.0), None),
    ],
)
def test_a_decay_that_does_nothing_is_told_once(method, said):
    model = mixout.apply_(net(), method)
    optimizer = sgd(model)
    for _ in range(100):  # the body is frozen at first
        optimizer.step()
    for _ in range(99):
        step_of_nothing(optimizer, model)
    if said is not None:
        with pytest.warns(mixout.DecayStrengthWarning, match=said) as told:
            step_of_nothing(optimizer, model)
        assert len(told) == 1
    for _ in range(100):
        step_of_nothing(optimizer, model)


def test_a_tied_weight_decays_by_the_first_of_two_decays():
    model = nn.ModuleDict({"encoder": nn.Linear(3, 3), "decoder": nn.Linear(3, 3)})
    model["decoder"].weight = model["encoder"].weight
    start = model["encoder"].weight.detach().clone()
    mixout.apply_(model, {"encoder": AnchorDecay(radius=0.5), "decoder": AnchorDecay(radius=1.0)}, where="all")
    with torch.no_grad():
        model["encoder"].weight.add_(1.0)
    step_of_nothing(torch.optim.SGD(model.parameters(), lr=0.1), model)
    torch.testing.assert_close(model["encoder"].weight.detach(), start + math.exp(-0.1 / 0.5))


def test_weight_decay_towards_zero_is_told_once_for_each_optimizer():
    model = mixout.apply_(net(), AnchorDecay(RATE))
    optimizers = [adamw(model, weight_decay=0.02), adamw(model, weight_decay=0.01)]
    for optimizer, strength in zip(optimizers, ("0.02", "0.01"), strict=True):
        with pytest.warns(mixout.ZeroDecayWarning, match=rf"weight_decay={strength}.*rate=0\.5.*set it to 0") as told:
            step_of_nothing(optimizer, model)
        assert told[0].filename == step_of_nothing.__code__.co_filename  # who called step
    wrapped = adamw(model, weight_decay=0.03)
    torch.optim.lr_scheduler.LambdaLR(wrapped, lambda _: 1.0)  # lies between the step and who calls it
    with pytest.warns(mixout.ZeroDecayWarning) as told:
        step_of_nothing(wrapped, model)
    assert told[0].filename == step_of_nothing.__code__.co_filename
    optimizers[0].add_param_group({"params": [nn.Parameter(torch.zeros(1, dtype=torch.float64))]})
    for optimizer in optimizers:
        step_of_nothing(optimizer, model)  # nothing is told again
    # Not where it acts on other weights only, or on frozen ones.
    groups = [{"params": [model[0].weight, model[2].weight]}, {"params": [model[0].bias], "weight_decay": 0.1}]
    step_of_nothing(torch.optim.AdamW(groups, lr=ETA, weight_decay=0.0), model)
    adamw(mixout.apply_(net(), AnchorDecay(RATE)).requires_grad_(False), weight_decay=0.1).step()


def test_attach_and_detach_of_one_module():
    layer = nn.Linear(3, 2).double()
    start = layer.weight.detach().clone()
    target = attach_(layer, "weight", mixout.anchor.AnchorTensor(start.clone()), AnchorDecay(RATE))
    assert targets(nn.Sequential(layer)) == {"0.weight": target}
    with torch.no_grad():
        layer.weight.add_(1.0)
    step_of_nothing(sgd(layer), layer)
    torch.testing.assert_close(layer.weight - start, torch.full_like(start, LEFT))
    detach_(layer)
    assert "_mixout_decay" not in vars(layer)
    detach_(layer)  # nothing is left to undo


def test_removing_frees_the_anchors_while_the_optimizer_lives(monkeypatch):
    monkeypatch.setattr(optimizer_hooks, "TARGETS", weakref.WeakValueDictionary())
    monkeypatch.setattr(optimizer_hooks, "_HANDLES", [])
    model = mixout.apply_(net(), AnchorDecay(RATE))
    optimizer = sgd(model)
    train(model, optimizer, batches(1))
    anchors = [weakref.ref(target.anchor) for target in targets(model).values()]
    mixout.remove_(model)
    train(model, optimizer, batches(1))
    gc.collect()
    assert anchors
    assert all(anchor() is None for anchor in anchors)


@pytest.mark.filterwarnings("ignore::mixout.DecayStrengthWarning")
@pytest.mark.parametrize("other", ["copied", "applied", "removed"])
def test_what_comes_or_goes_during_a_step_leaves_the_step_alone(other):
    """A lazy EMA in a hook of the optimizer, or another thread's models."""

    def trained(during):
        model = mixout.apply_(net(), AnchorDecay(radius=0.1))
        optimizer = sgd(model)
        optimizer.register_step_post_hook(lambda *_: during(model))  # before the hook that decays
        train(model, optimizer, batches(3))
        return [weight.detach() for weight in model.parameters()]

    more = [mixout.apply_(net(), AnchorDecay(radius=0.1)) for _ in range(3)]
    during = {
        "copied": lambda model: more.append(copy.deepcopy(model)),
        "applied": lambda _: more.append(mixout.apply_(net(), AnchorDecay(radius=0.1))),
        "removed": lambda _: mixout.remove_(more.pop()),
    }[other]
    assert all(map(torch.equal, trained(lambda _: None), trained(during)))
    assert len(more) == (0 if other == "removed" else 6)


class WithBatch(WithoutRate):
    """An optimizer whose step takes an argument of its own."""

    def step(self, batch=None, closure=None):
        self.seen = batch
        if closure is not None:
            with torch.enable_grad():
                closure()
        super().step()


@pytest.mark.parametrize(
    "method", [AnchorDecay(RATE), AnchorDecay(RATE, decoupled=False), AnchorDecay(1.0, selective=True)]
)
def test_arguments_of_an_optimizers_own_reach_it(method):
    for given, options in (((7,), ["closure"]), ((7,), []), ((), ["closure"])):
        model = mixout.apply_(net(), method)
        optimizer = WithBatch(model.parameters(), lr=ETA)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss_of(model, batches(1)[0]).backward()

        closure()
        optimizer.step(*given, **dict.fromkeys(options, closure))
        assert optimizer.seen == (given[0] if given else None)


@pytest.mark.parametrize("optimizer", [torch.optim.SparseAdam, torch.optim.SGD])
def test_a_sparse_gradient_takes_no_penalty(optimizer):
    model = mixout.apply_(nn.Sequential(nn.Embedding(5, 3, sparse=True)), AnchorDecay(RATE, decoupled=False))
    stepper, before = optimizer(model.parameters(), lr=ETA), model[0].weight.detach().clone()
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(mixout.MixoutError, match=r"dense gradient of '0\.weight'.*leave out decoupled=False"):
        stepper.step()
    assert model[0].weight.equal(before)


def test_after_the_last_remove_nothing_holds_a_weight():
    """Not by an optimizer that the weight refers to (steps in the backward pass), nor by one that lives on."""
    model, left = mixout.apply_(net(), AnchorDecay(RATE)), []
    for p in model.parameters():
        p.optimizer = torch.optim.SGD([p], lr=ETA)
    optimizer = sgd(model)
    loss_of(model, batches(1)[0]).backward()
    for one in (optimizer, *(p.optimizer for p in model.parameters())):
        one.step()
    mixout.remove_(model)
    optimizer.param_groups.clear()
    optimizer.state.clear()
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    left = [weakref.ref(p) for p in model.parameters()]
    del model, one, p
    gc.collect()
    assert [ref() for ref in left] == [None] * len(left)
    optimizer.step()


def test_a_tied_weight_decays_on_where_its_first_module_is_gone():
    model = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in "ab"})
    model["b"].weight = model["a"].weight
    mixout.apply_(model, AnchorDecay(RATE), where=mixout.ALL, anchor=0)
    left, weight = model["b"], model["b"].weight
    optimizer = torch.optim.SGD([weight], lr=ETA)
    for _ in range(2):
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), LEFT * before)
        model = None
        gc.collect()
    assert left.weight is weight


class Chain(torch.optim.Optimizer):
    """Steps others that it holds in a list."""

    def __init__(self, parts):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure=None):
        for part in self.parts:
            part.step()


class Clipped(torch.optim.SGD):
    """Changes the gradients, and steps as its base class, which torch hooks too once there was one of it."""

    def step(self, closure=None):
        torch.nn.utils.clip_grad_value_([p for group in self.param_groups for p in group["params"]], 0.5)
        return super().step(closure)


@pytest.mark.parametrize("optimizer", [Chain, Clipped])
@pytest.mark.parametrize("views", [False, True])
def test_a_penalty_is_added_once_to_a_gradient(optimizer, views):
    """Views of one buffer, as under DDP, share a counter of changes."""
    sgd(net())
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    mixout.apply_(model, AnchorDecay(1.0, decoupled=False), where=mixout.ALL, anchor=0)
    buffer, before = torch.full((18,), 0.1), [p.detach().clone() for p in model.parameters()]
    for at, p in enumerate(model.parameters()):
        p.grad = buffer[9 * at : 9 * at + 9].view(3, 3) if views else torch.full((3, 3), 0.1)
    if optimizer is Chain:
        Chain([torch.optim.SGD([p], lr=0.1) for p in model.parameters()]).step()
    else:
        Clipped(model.parameters(), lr=0.1).step()
    for p, w in zip(model.parameters(), before, strict=True):
        step = 0.1 + w if optimizer is Chain else (0.1 + w).clamp(-0.5, 0.5)
        torch.testing.assert_close(p.detach(), w - 0.1 * step)


def test_a_step_while_another_thread_copies_the_model():
    begun, ended = threading.Event(), threading.Event()

    class Slow:
        def __deepcopy__(self, memo):
            begun.set()
            assert ended.wait(20)
            return Slow()

    model = mixout.apply_(net(), AnchorDecay(RATE))
    model[0].slow = Slow()
    optimizer, copies = sgd(model), []
    thread = threading.Thread(target=lambda: copies.append(copy.deepcopy(model)))
    thread.start()
    assert begun.wait(20)
    train(model, optimizer, batches(1))
    ended.set()
    thread.join()
    start = copies[0][0].weight.detach().clone()
    train(copies[0], sgd(copies[0]), batches(1))
    assert not copies[0][0].weight.equal(start)


class Ready(torch.optim.SGD):
    """Makes the gradient, and lets its base class step with a closure that makes none."""

    def step(self, closure=None):
        loss = closure()
        return super().step(lambda: loss)


@pytest.mark.parametrize("again", [False, True])
def test_a_closure_that_makes_no_gradient_adds_no_second_penalty(again):
    sgd(net())
    model = mixout.apply_(nn.Linear(3, 2, bias=False), AnchorDecay(1.0, decoupled=False), where=mixout.ALL, anchor=0)
    before, optimizer = model.weight.detach().clone(), Ready(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad(set_to_none=not again)
        model.weight.grad = torch.zeros(2, 3) if model.weight.grad is None else model.weight.grad
        (0.5 * model.weight).sum().backward()

    for _ in range(2):
        optimizer.step(closure)
        before = before - 0.1 * (0.5 + before)
        torch.testing.assert_close(model.weight.detach(), before)


class Own(torch.optim.SGD):
    """Is saved by all of its attributes."""

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "step"}


class Wrapper(torch.optim.Optimizer):
    """Takes the attributes of another, as those of some trainers do."""

    def __init__(self, inner):
        self.__dict__ = dict(vars(inner))
        self.inner = inner
        self._patch_step_function()

    def step(self, closure=None):
        return self.inner.step(closure)


def test_an_optimizer_holds_nothing_of_ours():
    model, oracle = (mixout.apply_(net(), AnchorDecay(RATE)) for _ in range(2))
    optimizer = Own(model.parameters(), lr=ETA)
    train(model, optimizer, batches(1))
    pickle.loads(pickle.dumps(optimizer))
    wrapper, other = Wrapper(optimizer), mixout.apply_(net(), AnchorDecay(RATE))
    train(model, wrapper, batches(1))
    plain = sgd(oracle)
    for _ in range(2):
        train(oracle, plain, batches(1))
    mixout.remove_(other)
    for a, b in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(a, b)
