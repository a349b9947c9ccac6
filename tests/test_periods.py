"""Masks that are kept for several optimizer steps; the oracle is Phi itself, read off the outputs for unit vectors."""

import copy
import gc
import itertools
import json
import pickle
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mixout
from mixout import GradientMask, Mixconnect, Mixout, functional, methods, passes, seeds
from mixout.methods import Dropconnect
from mixout.seeds import Period
from mixout.streams import Stream


def net(method, *, seed=None, width=8, form="auto"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
    mixout.apply_(model, method, seed=seed, form=form)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def phi(layer):
    """Phi of one training pass, (out, in): the outputs for the unit vectors, less the bias."""
    return (layer(torch.eye(layer.in_features)) - layer.bias).detach().T


def kept(layer):
    """Which weights of this pass come from w, whatever the value of the rest."""
    anchor = layer._mixed.anchor.tensor
    return ~torch.isclose(phi(layer), torch.zeros(()) if anchor is None else anchor, atol=1e-5)


def step(model, optimizer, x=None):
    model(torch.randn(4, 8) if x is None else x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


METHODS = [
    Mixout(0.5, every=3),
    Mixout(0.5, unit="output", every=3),
    Mixconnect(0.5, every=3),
    Dropconnect(0.5, every=3),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("seed", [None, 1])
def test_a_mask_lasts_for_three_steps_and_layers_differ(method, seed):
    model = net(method, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = []
    for _ in range(9):
        seen.append([kept(layer) for layer in model])
        assert all(a.equal(b) for a, b in zip(seen[-1], [kept(layer) for layer in model], strict=True))  # a micro-batch
        step(model, optimizer)
    for n, m in itertools.combinations(range(9), 2):
        for a, b in zip(seen[n], seen[m], strict=True):
            assert a.equal(b) == (n // 3 == m // 3)
    assert not seen[0][0].equal(seen[0][1])


def test_gradient_mask_keeps_its_columns():
    model = net(GradientMask(0.5, every=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    seen = []
    for _ in range(4):
        model(torch.randn(4, 8)).sum().backward()
        seen.append(model[0].weight.grad.ne(0).any(0))
        optimizer.step()
        optimizer.zero_grad()
    assert seen[0].equal(seen[1])
    assert seen[2].equal(seen[3])
    assert not seen[0].equal(seen[2])


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("form", functional.FORMS)
def test_every_form_has_the_mask_of_the_period(form, rows, monkeypatch):
    """Micro-batches of different size take different forms."""
    monkeypatch.setattr(passes, "SPARSE_ON_CPU_FROM", 1e3)
    model = net(Mixout(0.5, every="run"), seed=1, form=form)
    layer = model[0]
    x = torch.randn(rows, 8)
    reference = net(Mixout(0.5, every="run"), seed=1, form="fast")[0]
    torch.testing.assert_close(layer(x), x @ phi(reference).T + layer.bias)


def test_one_mask_in_the_whole_run():
    model = net(Mixout(0.5, every="run"))
    optimizer = torch.optim.AdamW(model.parameters())
    first = kept(model[0])
    for _ in range(20):
        step(model, optimizer)
    assert kept(model[0]).equal(first)


def test_no_random_number_is_drawn_within_a_period():
    model = net(Mixout(0.5, every="run"))
    model(torch.ones(1, 8))
    state = torch.get_rng_state()
    for _ in range(3):
        model(torch.ones(1, 8))
    assert torch.get_rng_state().equal(state)


def test_two_models_and_two_runs_differ():
    first, second = net(Mixout(0.5, every="run"), width=32), net(Mixout(0.5, every="run"), width=32)
    torch.manual_seed(5)
    a = kept(first[0])
    torch.manual_seed(6)
    assert not kept(second[0]).equal(a)


@pytest.mark.parametrize(
    ("layer", "frozen", "inputs"),
    [
        (nn.LSTM(4, 3, num_layers=2), "_l0", (torch.ones(5, 2, 4),)),
        (nn.MultiheadAttention(4, 2), "in_proj", 3 * (torch.ones(5, 2, 4),)),
    ],
    ids=["LSTM", "attention"],
)
def test_a_step_counts_whichever_weights_are_trained(layer, frozen, inputs):
    layer = copy.deepcopy(layer)
    model = mixout.apply_(nn.Sequential(layer), Mixout(0.5, every=2), where=mixout.Where(types=nn.Module))
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(frozen not in name)
    period = layer._mixed.mixing.period

    def step(parameters):
        layer(*inputs)[0].sum().backward()
        torch.optim.SGD(parameters, lr=0.1).step()

    for steps in range(1, 5):
        step([parameter for parameter in model.parameters() if parameter.requires_grad])
        assert period.steps == steps
    step([nn.Parameter(torch.ones(2))])
    assert period.steps == 4


def test_a_discriminator_counts_its_own_steps_alone():
    """Weights that are mixed though frozen (their anchor is 0), while another model is trained through them."""
    generator, judge = (
        nn.Linear(2, 4),
        mixout.apply_(nn.Sequential(nn.Linear(4, 4)), Dropconnect(0.5, every=4), where=mixout.ALL),
    )
    period = judge[0]._mixed.mixing.period
    steps = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (judge, generator)]
    for _ in range(3):
        for trained, optimizer in zip((True, False), steps, strict=True):
            judge.requires_grad_(trained)
            judge(generator(torch.ones(1, 2))).sum().backward()
            optimizer.step()
    assert period.steps == 3


def test_what_counts_as_a_step():
    """Two optimizers of one model count once, one of another model not at all, nor one without a pass before it."""
    model, other = net(Mixout(0.5, every=100)), nn.Linear(8, 8)
    period = model[0]._mixed.mixing.period
    one = torch.optim.SGD([model[0].weight], lr=0.1)
    two = torch.optim.AdamW([model[0].bias, *model[1].parameters()])
    stranger = torch.optim.SGD(other.parameters(), lr=0.1)
    (model(torch.ones(1, 8)).sum() + other(torch.ones(1, 8)).sum()).backward()
    stranger.step()
    assert period.steps == 0
    one.step()
    assert period.steps == 1
    two.step()
    one.step()
    assert period.steps == 1
    model(torch.ones(1, 8)).sum().backward()
    two.step()
    assert period.steps == 2
    model.eval()
    model(torch.ones(1, 8)).sum().backward()
    one.step()
    assert period.steps == 2


@pytest.mark.parametrize("seed", [None, 3])
def test_a_resumed_run_goes_on_within_the_period(seed):
    model = net(Mixout(0.5, every=4), seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(6):
        step(model, optimizer)
    state, weights = mixout.save_state(model), copy.deepcopy(model.state_dict())
    expected = []
    for _ in range(6):
        expected.append(kept(model[1]))
        step(model, optimizer)
    torch.manual_seed(1234)
    resumed = net(Mixout(0.5, every=4), seed=seed)
    resumed.load_state_dict(weights)
    resumed(torch.ones(1, 8))  # a pass before the state is loaded leaves nothing behind
    mixout.load_state_(resumed, state)
    optimizer = torch.optim.SGD(resumed.parameters(), lr=0.01)
    for mask in expected:
        assert kept(resumed[1]).equal(mask)
        step(resumed, optimizer)


@pytest.mark.parametrize("duplicated", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_counts_its_own_steps(duplicated):
    model = net(Mixout(0.5, every=2))
    model(torch.ones(1, 8))
    twin = duplicated(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        step(twin, optimizer)
    assert (model[0]._mixed.mixing.period.steps, twin[0]._mixed.mixing.period.steps) == (0, 3)
    fresh = net(Mixout(0.5, every=2))
    assert kept(model[0]).shape == kept(fresh[0]).shape


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputation_has_the_mask_of_its_forward(reentrant):
    model = net(Mixout(0.5, every=2))
    x = torch.randn(4, 8, requires_grad=True)
    plain = torch.autograd.grad(model(x).square().sum(), x)[0]
    y = checkpoint(model, x, use_reentrant=reentrant, preserve_rng_state=False)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, plain)


def test_the_weights_of_a_recurrent_layer_have_masks_of_their_own():
    torch.manual_seed(0)
    model = mixout.apply_(nn.LSTM(8, 8, num_layers=2), Mixout(0.5, every=2), anchor=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = []
    for _ in range(4):
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(1.0)
        held = {}
        inner = type(model).lent

        def look(self, phis, inner=inner, held=held):
            held.update({name: phi.detach().ne(0)[0].tolist() for name, phi in phis.items()})
            return inner(self, phis)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "lent", look)
            model(torch.ones(3, 1, 8))[0].sum().backward()
        optimizer.step()
        seen.append(held)
    assert len(seen[0]) == 4
    assert len({tuple(mask) for mask in seen[0].values()}) == 4
    assert seen[0] == seen[1]
    assert seen[2] == seen[3] != seen[0]


def test_p_changes_within_a_period():
    """The same random numbers: what was kept at a higher p is kept at a lower one."""
    model = net(Mixout(0.9, every="run"), width=64)
    few = kept(model[0])
    mixout.set_p_(model, 0.3)
    many = kept(model[0])
    assert few.sum() < many.sum()
    assert not (few & ~many).any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("backend", [pytest.param("inductor", marks=pytest.mark.sweep), "aot_eager"])
def test_compiled_without_recompilation(backend):
    torch._dynamo.reset()
    model = net(Mixout(0.5, every=2))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(4, 8)
    seen = []
    for number in range(4):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            seen.append(compiled(x))
            torch.testing.assert_close(compiled(x), seen[-1])
        torch.testing.assert_close(seen[-1], model(x))  # as eagerly
        seen[-1].sum().backward()
        optimizer.step()
    assert seen[0].equal(seen[1])
    assert not seen[1].allclose(seen[2])
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "every", [0, -1, 1.5, True, "epoch", None, float("nan"), float("inf"), np.float32(1.5), np.bool_(1)]
)
def test_what_is_no_period_is_refused(every):
    with pytest.raises(ValueError, match="expected every as a number of optimizer steps, at least 1, or 'run'"):
        Mixout(0.5, every=every)


@pytest.mark.parametrize("text", ["mixout(0.7, every=16)", "gradient_mask(0.7, every=run)", "mixout(0.7)"])
def test_as_text(text):
    assert methods.spell(methods.parse(text)) == text


def test_an_optimizer_steps_after_the_last_model_is_gone():
    model = net(Mixout(0.5, every=2))
    model(torch.ones(1, 8))
    del model
    gc.collect()
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    torch.optim.SGD([weight], lr=0.5).step()
    assert weight.item() == 0.5


@pytest.mark.parametrize("recompute", [False, True])
def test_an_optimizer_in_the_backward_pass_counts_one_step(recompute):
    """With recomputation too: its masks are those of its forward pass. Oracle: the ordinary loop, at a rate of 0."""

    def run(within, recompute):
        model = net(Mixout(0.5, every=2), seed=1)
        each = {p: torch.optim.SGD([p], lr=0.0) for p in model.parameters()}
        if within:
            for p in model.parameters():
                p.register_post_accumulate_grad_hook(lambda p: each[p].step())
        whole, seen = torch.optim.SGD(model.parameters(), lr=0.0), []
        for _ in range(5):
            model.zero_grad()
            x = torch.ones(2, 8)
            for layer in model:
                x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
            x.square().sum().backward()
            if not within:
                whole.step()
            seen += [x.detach(), *(p.grad.clone() for p in model.parameters())]
        return seen, mixout.save_state(model)["steps"]

    expected, steps = run(within=False, recompute=False)
    found, counted = run(within=True, recompute=recompute)
    assert steps == counted == 5
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_numbers_of_numpy_are_numbers():
    for kind in (np.int64, np.int32, np.float16, np.float64):
        assert repr(Mixout(0.5, every=kind(2))) == "Mixout(p=0.5, every=2)"
    assert mixout.schedule.LinearRamp(0.0, 0.8, np.int64(4))(2) == 0.4
    assert repr(mixout.Seed(np.int64(3))) == "Seed(value=3, scope='all')"
    state = mixout.save_state(net(Mixout(0.5), seed=np.int64(3)))
    assert json.loads(json.dumps(state))["seed"] == 3


@pytest.mark.parametrize("every", [1, 2])
def test_what_a_compiled_graph_draws_for_was_called(every):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Conv1d(3, 3, 1), nn.Linear(4, 4)

        def forward(self, x):
            return self.narrow(self.wide(x))

    torch._dynamo.reset()
    model = mixout.apply_(Net(), Mixout(0.5, every=every), where=mixout.Where(types=nn.Module))
    torch.compile(model, backend="aot_eager")(torch.randn(2, 3, 4)).sum().backward()
    found = mixout.coverage(model)
    assert ({*found.mixed}, found.bypassed) == ({"wide", "narrow"}, ())


@pytest.mark.parametrize("every", [1, 4])
def test_an_anchor_that_was_cast_is_freed(every):
    model = net(Mixout(0.5, every=every))
    step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = [weakref.ref(layer._mixed.anchor.tensor) for layer in model]
    model.double()
    gc.collect()
    assert [ref() for ref in before] == [None, None]


def test_two_threads_that_ask_for_different_tensors_get_their_own():
    """As replicas on two devices do; while one makes its tensor, the other makes another."""
    stream, made = Stream(1, "x", Period(5)), {}

    def first():
        made["b"] = stream.once(("b",), lambda: torch.zeros(2))
        return torch.ones(2)

    made["a"] = stream.once(("a",), first)
    assert made["a"].tolist() == [1, 1]
    assert made["b"].tolist() == [0, 0]


@pytest.mark.parametrize("method", ["mixout(0.5, every=2)", "output_anchor(1.0)"])
def test_a_method_is_applied_in_one_thread_while_another_steps(method, monkeypatch):
    begun, errors = threading.Event(), []

    class Slow(weakref.WeakSet):
        def __iter__(self):
            for counter in super().__iter__():
                begun.set()
                time.sleep(0.05)
                yield counter

    monkeypatch.setattr(seeds, "_COUNTERS", Slow())
    models = [mixout.apply_(nn.Linear(3, 3), method, where=mixout.ALL) for _ in range(3)]
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)

    def step():
        try:
            optimizer.step()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    assert begun.wait(10)
    models.append(mixout.apply_(nn.Linear(3, 3), method, where=mixout.ALL))
    thread.join()
    assert not errors
