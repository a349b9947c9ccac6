"""What training loops do to a mixed model: accumulation, loss scaling, checkpointing, in each form of the linear."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import mixout
from mixout import AnchorDecay, GradientMask, Mixconnect, Mixout, passes

# The bounds that lead to a form, whatever p and the batch are.
BOUNDS = ("SPARSE_FROM", "SPLIT_BELOW", "NATIVE_ON_CPU_BELOW")
FORMS = {"dense": (2.0, 0, 0), "sparse": (0.0, 0, 0), "split": (0.0, 10**9, 0), "native": (0.0, 0, 10**9)}
METHODS = [Mixout(0.5), Mixout(0.5, gradient="paper"), Mixconnect(0.5), GradientMask(0.5)]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    for name, value in zip(BOUNDS, FORMS[request.param], strict=True):
        monkeypatch.setattr(passes, name, value)
    return request.param


def net(method, device="cpu", **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).to(device)
    mixout.apply_(model, method, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("method", METHODS, ids=mixout.methods.spell)
def test_accumulated_micro_batches_have_masks_of_their_own_and_their_gradients_add(form, method):
    model, batches = net(method), torch.randn(3, 5, 12).unbind()
    alone = []
    torch.manual_seed(5)
    for batch in batches:
        model.zero_grad()
        model(batch).square().sum().backward()
        alone.append(gradients(model))
    model.zero_grad()
    torch.manual_seed(5)
    for batch in batches:
        model(batch).square().sum().backward()
    for total, *parts in zip(gradients(model), *alone, strict=True):
        torch.testing.assert_close(total, sum(parts))
    patterns = [tuple((grads[0] == 0).flatten().tolist()) for grads in alone]
    assert len(set(patterns)) == 3


@pytest.mark.parametrize("method", METHODS, ids=mixout.methods.spell)
def test_a_scaled_loss_under_autocast_gives_the_unscaled_gradient_and_a_skipped_step_changes_nothing(form, method):
    model, x = net(method), torch.randn(5, 12)

    def loss():
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float().square().sum()

    loss().backward()
    expected = gradients(model)
    assert all(gradient.dtype == torch.float32 for gradient in expected)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(loss()).backward()
    scaler.unscale_(optimizer)
    for ours, unscaled in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(ours, unscaled, rtol=1e-2, atol=1e-3)  # bfloat16 rounds the same at each power of 2
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model[0].weight.grad[0, 0] = torch.inf
    optimizer2 = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer2)
    assert all(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", METHODS, ids=mixout.methods.spell)
def test_two_forwards_before_one_backward_under_checkpointing(form, method, reentrant):
    """Traps: a fresh mask in the recomputation; the recomputation of the first pass with the masks of the last."""
    model, xs = net(method), torch.randn(2, 5, 12).unbind()

    def run(wrap):
        model.zero_grad()
        torch.manual_seed(5)
        first, second = (wrap(x) for x in xs)
        (first.square().sum() + 3 * second.pow(3).sum()).backward()
        return gradients(model)

    plain = run(model)
    again = run(lambda x: checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant))
    assert all(a.equal(b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("method", METHODS, ids=mixout.methods.spell)
def test_a_frozen_layer_gets_no_gradient_and_passes_one_on(form, method):
    model, x = net(method), torch.randn(5, 12)
    model[2].requires_grad_(False)
    torch.manual_seed(5)
    model(x).square().sum().backward()
    assert model[2].weight.grad is None
    assert model[0].weight.grad is not None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("method", METHODS, ids=mixout.methods.spell)
def test_no_step_waits_for_the_gpu(form, method, seed, autocast):
    """Ten steps in which any synchronisation of host and device is an error."""
    model, x = net(method, "cuda", seed=seed), torch.randn(5, 12, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            y = model(x)
        y.float().square().sum().backward()
        optimizer.step()

    step()
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it does not see every synchronisation
        try:
            torch.cuda.set_sync_debug_mode("error")
            for _ in range(10):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.75)], ids=["swa", "ema"])
def test_an_average_of_the_weights_is_a_plain_model_and_leaves_the_trained_one_alone(average):
    """Oracle: the average taken by hand. A decay acts on the weights that an optimizer trains, not on their copies."""
    model = net([Mixout(0.5), AnchorDecay(0.1)])
    averaged = AveragedModel(model, multi_avg_fn=average)  # a deep copy
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 12)).square().sum().backward()
        optimizer.step()
        averaged.update_parameters(model)
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
    weights = [1 / 3] * 3 if average is None else [0.75**2, 0.25 * 0.75, 0.25]
    expected = [
        sum(weight * one for weight, one in zip(weights, each, strict=True)) for each in zip(*seen, strict=True)
    ]
    plain = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    plain.load_state_dict(averaged.module.state_dict())
    for ours, theirs in zip(plain.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs)
    x = torch.randn(5, 12)
    assert averaged.eval()(x).equal(plain(x))
    assert mixout.distance(averaged).total > 0
    mixout.set_p_(averaged, 0.1)
    assert mixout.save_state(model)["p"] == 0.5
    mixout.remove_(averaged)
    assert type(averaged.module[0]) is nn.Linear
    assert mixout.coverage(model).mixed == ("0", "2", "4")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("form", ["auto", "fast", "lean"])
@pytest.mark.parametrize("gradient", ["exact", "paper"])
def test_a_layer_without_inputs_gives_its_bias(form, gradient):
    plain = nn.Sequential(nn.Linear(0, 3))
    model = mixout.apply_(plain, Mixout(0.5, gradient=gradient), form=form, where=mixout.ALL)
    x = torch.zeros(2, 0)
    torch.testing.assert_close(model(x), model[0].bias.expand(2, 3))
    model(x).sum().backward()
    assert model[0].weight.grad.shape == (3, 0)


@pytest.mark.parametrize("method", [Mixout(0.5), Mixout(0.5, gradient="paper", unit="output"), Mixout(0.5, every=2)])
@pytest.mark.parametrize("moved", [False, True])
def test_a_first_pass_in_inference_mode_leaves_what_training_can_save(method, moved):
    model = mixout.apply_(nn.Sequential(nn.Linear(64, 64)), method)
    for parameter in model.parameters():
        parameter.data = parameter.data.double() if moved else parameter.data  # without their module
    x = torch.ones(3, 64, dtype=model[0].weight.dtype)
    with torch.inference_mode():
        model(x)
    for _ in range(2):
        model(x.clone().requires_grad_()).sum().backward()
    assert model[0].weight.grad.norm() > 0


def steps_of(model, number=20):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(number):
        optimizer.zero_grad()
        model(torch.randn(2, 3)).sum().backward()
        optimizer.step()


def switched_off_once(model):
    with mixout.disabled(model):
        pass


def test_training_in_eval_mode_is_told_once():
    """from_pretrained leaves a model in eval mode, in which nothing is mixed."""
    model = mixout.apply_(nn.Sequential(nn.Linear(3, 2)).eval(), Mixout(0.5))
    steps_of(model, 19)
    with pytest.warns(mixout.EvalModeWarning, match=r"Mixout\(p=0\.5\) does nothing.*call model\.train\(\)") as told:
        steps_of(model, 1)
    assert Path(told[0].filename).name == Path(__file__).name
    steps_of(model)


def test_a_watch_that_has_ended_asks_nothing_of_a_step():
    model = mixout.apply_(nn.Sequential(nn.Linear(3, 2)), Mixout(0.5))
    switched_off_once(model)
    model[0]._mixed.mixing.watch.count(None)  # no optimizer is looked at


def test_an_evaluation_after_which_nobody_calls_train_is_told():
    model = mixout.apply_(nn.Sequential(nn.Linear(3, 2)), Mixout(0.5))
    for _ in range(30):  # in turns
        steps_of(model.train(), 1)
        steps_of(model.eval(), 1)
    with pytest.warns(mixout.EvalModeWarning, match=r"call model\.train\(\) before you train, and after you evaluate"):
        steps_of(model, 20)


def test_a_p_that_rises_from_0_in_eval_mode_is_told():
    model = mixout.apply_(nn.Sequential(nn.Linear(3, 2)).eval(), Mixout(0.0))
    steps_of(model, 30)
    mixout.set_p_(model, 0.5)
    with pytest.warns(mixout.EvalModeWarning):
        steps_of(model, 20)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda model: model.train(),
        mixout.remove_,
        copy.deepcopy,
        lambda model: model[0].requires_grad_(False),
        switched_off_once,
    ],
    ids=["train", "removed", "copied", "frozen", "disabled"],
)
def test_nobody_is_told_of_eval_mode_without_need(prepare):
    model = mixout.apply_(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).eval(), Mixout(0.5), where="^0")
    prepared = prepare(model)
    steps_of(prepared if isinstance(prepared, nn.Sequential) else model, 21)
