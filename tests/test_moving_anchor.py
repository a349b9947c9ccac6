"""Anchors that follow the weights (GMixout) and layers that train in turn; the oracle is written out in plain torch."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mixout
from mixout import AnchorDecay, GradientMask, Mixconnect, Mixout, methods
from mixout.methods import Dropconnect

B = 0.75


def net(method, *, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    return mixout.apply_(model, method, seed=1, **options)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model, optimizer, steps, *, call=None, micro=2):
    for step in steps:
        for part in range(micro):
            x = torch.randn(4, 6, generator=torch.Generator().manual_seed(10 * step + part))
            (call or model)(x.to(next(model.parameters()).dtype)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def moved(model):
    """The anchors that passes read."""
    return [layer._mixed.anchor.beside(layer.weight).clone() for layer in (model[0], model[2])]


def values(model):
    return [*(p.detach().clone() for p in model.parameters()), *moved(model)]


def same(first, second, **tolerance):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("kind", [Mixout, Mixconnect])
def test_the_anchor_is_the_average_of_the_weights_at_the_ends_of_periods(kind):
    model = net(kind(0.5, every=3, anchor_ema=B))
    start = expected = moved(model)
    optimizer = sgd(model)
    for step in range(1, 10):
        train(model, optimizer, [step])
        if step % 3 == 0:
            expected = [B * a + (1 - B) * w for a, w in zip(expected, (model[0].weight, model[2].weight), strict=True)]
        same(moved(model), expected, rtol=1e-6, atol=1e-7)
    assert not moved(model)[0].allclose(start[0])
    with torch.no_grad():  # Phi comes from it: where w is A, mixing changes nothing
        model[0].weight.copy_(moved(model)[0])
    x = torch.randn(2, 6)
    torch.testing.assert_close(model[0](x), nn.functional.linear(x, model[0].weight, model[0].bias))


@pytest.mark.parametrize("b", [None, 1, 1.0])
def test_an_anchor_that_stays_is_mixout_bit_for_bit(b):
    method = Mixout(0.5, every=3, anchor_ema=b)
    assert method == Mixout(0.5, every=3)
    models = [net(one) for one in (method, Mixout(0.5, every=3))]
    same(*(values(train(model, sgd(model), range(7))) for model in models))


def test_the_pretrained_weights_stay_what_distance_and_fingerprint_mean():
    model, plain = net(Mixout(0.5, every=2, anchor_ema=B)), net(Mixout(0.5))
    start = model[0].weight.detach().clone()
    train(model, sgd(model), range(6))
    assert mixout.fingerprint(model) == mixout.fingerprint(plain)
    assert mixout.state(model).anchor("0").equal(start)
    by_hand = torch.linalg.vector_norm(model[0].weight.double() - start.double()).item()
    assert mixout.distance(model).by_layer["0.weight"] == pytest.approx(by_hand, rel=1e-6)
    assert mixout.interpolate_(model, 0.0)[0].weight.equal(start)


def test_nothing_that_others_hold_moves():
    """The decay beside it shares the pretrained weights, a deep copy and a pickled one share nothing that moves."""
    model = net([Mixout(0.5, every=2, anchor_ema=B), AnchorDecay(radius=0.5)])
    optimizer = sgd(model)
    train(model, optimizer, range(3))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = moved(twin)
        train(model, optimizer, range(3, 6))
        same(moved(twin), before)
        train(twin, sgd(twin), range(4))
        assert not moved(twin)[0].equal(before[0])
    decays = vars(model[0])["_mixout_decay"]["weight"].anchor
    assert decays.tensor.equal(mixout.state(model).anchor("0"))


@pytest.mark.parametrize("steps", [3, 4])  # within a period, and at the end of one
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(steps, dtype):
    method = Mixout(0.5, every=2, anchor_ema=B)
    whole = net(method, dtype=dtype)
    optimizer = sgd(whole)
    train(whole, optimizer, range(steps))
    file = io.BytesIO()
    torch.save([mixout.save_state(whole), whole.state_dict(), optimizer.state_dict()], file)
    train(whole, optimizer, range(steps, 9))
    file.seek(0)
    state, weights, momentum = torch.load(file)
    resumed = net(method, dtype=dtype)
    resumed.load_state_dict(weights)
    mixout.load_state_(resumed, state)
    optimizer = sgd(resumed)
    optimizer.load_state_dict(momentum)
    same(values(train(resumed, optimizer, range(steps, 9))), values(whole))
    without = mixout.save_state(whole, tensors=False)
    with pytest.raises(mixout.MixoutError, match="expected the 2 anchors that anchor_ema has moved"):
        mixout.load_state_(resumed, without)


def test_in_bfloat16_it_moves_by_less_than_a_weight_can():
    model = net(Mixout(0.5, every=2, anchor_ema=0.999), dtype=torch.bfloat16)
    start = moved(model)
    train(model, sgd(model), range(2))
    assert moved(model)[0].dtype == torch.float32
    change = (model[0].weight.float() - start[0]) * 0.001
    torch.testing.assert_close(moved(model)[0] - start[0], change, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_nothing(reentrant):
    method = Mixout(0.5, every=2, anchor_ema=B)
    plain, lean = net(method), net(method)

    def recomputed(x):
        return checkpoint(lean, x.requires_grad_(), use_reentrant=reentrant)

    same(
        values(train(plain, sgd(plain), range(5))),
        values(train(lean, sgd(lean), range(5), call=recomputed)),
        rtol=1e-6,
        atol=1e-7,
    )


def test_each_of_two_optimizers_moves_what_it_steps():
    """Whichever steps first, every anchor sees its weight after the period's last step."""
    for reverse in (False, True):
        model = net(Mixout(0.5, every=2, anchor_ema=0.0))
        optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (model[0], model[2])]
        for step in range(4):
            model(torch.randn(4, 6)).square().mean().backward()
            for optimizer in reversed(optimizers) if reverse else optimizers:
                optimizer.step()
            if step % 2:
                same(moved(model), [model[0].weight.detach(), model[2].weight.detach()])


def test_it_follows_a_decay_of_the_same_step_whichever_was_applied_first():
    found = []
    for earlier in (False, True):
        other = mixout.apply_(nn.Linear(2, 2), AnchorDecay(radius=0.1)) if earlier else None
        model = net([Mixout(0.5, every=2, anchor_ema=0.0), AnchorDecay(radius=0.2)])
        train(model, sgd(model), range(2))
        same(moved(model), [model[0].weight.detach(), model[2].weight.detach()])
        found.append(values(model))
        del other
    same(*found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.sweep
def test_compiled_without_recompilation():
    torch._dynamo.reset()
    method = Mixout(0.5, every=2, anchor_ema=B)
    eager, compiled = net(method), net(method)
    call = torch.compile(compiled, backend="inductor", fullgraph=True)
    train(compiled, optimizer := sgd(compiled), range(1), call=call)
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(compiled, optimizer, range(1, 6), call=call)
    same(values(compiled), values(train(eager, sgd(eager), range(6))), rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor_ema": 0.9}, "expected every= as a number of optimizer steps above 1 with anchor_ema"),
        ({"anchor_ema": 0.9, "every": "run"}, "expected every= as a number of optimizer steps above 1"),
        ({"anchor_ema": 1.1, "every": 2}, r"expected anchor_ema in \[0, 1\]"),
        ({"anchor_ema": float("nan"), "every": 2}, r"expected anchor_ema in \[0, 1\]"),
        ({"unit": "layer"}, "expected every= with unit='layer'"),
    ],
)
def test_what_has_no_meaning_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Mixout(0.5, **options)


def test_the_anchor_of_nothing_cannot_move():
    for method in (Dropconnect, GradientMask):
        with pytest.raises(TypeError, match="anchor_ema"):
            method(0.5, every=2, anchor_ema=0.9)
    with pytest.raises(ValueError, match="expected dropconnect to take p, gradient, every, got 'anchor_ema'"):
        methods.parse("dropconnect(0.5, every=2, anchor_ema=0.9)")


def test_zero_of_deepspeed_is_refused():
    model = net(Mixout(0.5, every=2, anchor_ema=0.9))
    model[0].weight._hp_mapping = None  # DeepSpeed's mark
    model(torch.ones(1, 6)).sum().backward()
    with pytest.raises(mixout.MixoutError, match="anchor_ema needs DDP, FSDP2 or stage 0"):
        sgd(model).step()


@pytest.mark.parametrize("text", ["mixout(0.7, every=16, anchor_ema=0.99)", "gradient_mask(0.7, unit=layer, every=20)"])
def test_as_text(text):
    (method,) = methods.parse(text)
    assert methods.spell(method) == text
    assert "anchor_ema=0.99" in repr(method) or "unit='layer'" in repr(method)


def test_the_same_model_set_back_goes_on_as_a_new_one_with_steps_in_the_backward_pass():
    """The steps that no forward pass has seen are forgotten with the run that they were of."""

    def backward(model, each, step):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        for p in model.parameters():
            p.grad = None

    model = net(Mixout(0.5, every=2, anchor_ema=B))
    each = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: each[p].step())
    for step in range(4):
        backward(model, each, step)
    state, weights = copy.deepcopy(mixout.save_state(model)), copy.deepcopy(model.state_dict())
    runs = []
    for _ in range(2):  # the second begins where the first one ended
        for step in range(4, 8):
            backward(model, each, step)
        runs.append(values(model))
        model.load_state_dict(weights)
        mixout.load_state_(model, state)
    same(*runs)


@pytest.mark.parametrize("how", ["assign", "to_empty"])
@pytest.mark.parametrize("anchor", ["given", 0])
def test_a_model_on_the_meta_device_gets_its_values_later(how, anchor):
    plain = nn.Sequential(nn.Linear(4, 3))
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 3))
    mixout.apply_(model, Mixout(1.0, every=2, anchor_ema=B), anchor=state if anchor == "given" else 0)
    if how == "to_empty":
        model.to_empty(device="cpu")
    model.load_state_dict(state, assign=how == "assign")
    x, kept = torch.randn(2, 4), model[0].bias.expand(2, 3)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    torch.testing.assert_close(model(x), plain(x) if anchor == "given" else kept)  # p = 1: the anchor alone


def test_a_part_that_was_removed_follows_nothing():
    """Applied anew with another period it follows that one alone."""
    model = net(Mixout(0.5, every=2, anchor_ema=B))
    mixout.remove_(model[0])
    train(model, sgd(model), range(2))
    mixout.apply_(model[0], Mixout(0.5, every=4, anchor_ema=B), where=mixout.ALL)
    optimizer, expected = sgd(model), model[0].weight.detach().clone()
    for step in range(1, 9):
        train(model, optimizer, [step])
        if step % 4 == 0:
            expected = B * expected + (1 - B) * model[0].weight.detach()
    torch.testing.assert_close(moved(model)[0], expected)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_skips_is_none(fused):
    model = net(Mixout(0.5, every=2, anchor_ema=B))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    scaler, before = torch.amp.GradScaler("cpu", init_scale=2.0), values(model)
    for factor in (math.inf, math.inf, 1.0):
        scaler.scale(model(torch.ones(2, 6)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if factor == math.inf:
            same(values(model), before)
    assert model[0]._mixed.mixing.period.steps == 1
