from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from mixout.errors import InputError
from mixout.finetune.optimizers import BERTAdam, build, groups
from mixout.finetune.settings import Settings


def oracle(weight, gradients, rates, *, beta1=0.9, beta2=0.999, eps=1e-6, decay=0.0):
    """Adam as BERT was released with, in numpy's float64."""
    w, m, v = weight.astype(np.float64), np.zeros_like(weight, np.float64), np.zeros_like(weight, np.float64)
    for g, rate in zip(gradients, rates, strict=True):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        update = m / (np.sqrt(v) + eps) + decay * w
        w = w - rate * update
    return w


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95), (0.0, 0.0)])
def test_bertadam_equals_numpy(decay, betas, fused):
    draw = np.random.default_rng(0)
    start = draw.normal(size=(5, 3))
    gradients = draw.normal(size=(7, 5, 3)) * 10.0 ** draw.integers(-4, 3, size=(7, 1, 1))
    rates = [0.1, 0.05, 0.2, 0.0, 0.1, 0.01, 0.3]
    weight = nn.Parameter(torch.tensor(start))
    optimizer = BERTAdam([weight], lr=1.0, betas=betas, eps=1e-6, weight_decay=decay, fused=fused)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    expected = oracle(start, gradients, rates, beta1=betas[0], beta2=betas[1], decay=decay)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_a_step_of_bertadam_is_one_of_torchs_adamw_times_what_the_correction_divides_by():
    draw = np.random.default_rng(0)
    paths = []
    gradients = draw.normal(size=(100, 6)) * 10.0 ** draw.integers(-3, 3, size=(100, 1))
    factors = [(1 - 0.9**t) / (1 - 0.999**t) ** 0.5 for t in range(1, 101)]
    assert (factors[0], max(factors), factors[-1]) == pytest.approx((3.16, 6.57, 3.24), abs=0.005)
    for kind, rates in ((BERTAdam, [0.01] * 100), (torch.optim.AdamW, [0.01 * factor for factor in factors])):
        weight = nn.Parameter(torch.zeros(6, dtype=torch.float64))
        optimizer = kind([weight], lr=1.0, eps=0.0, weight_decay=0.0)
        path = []
        for gradient, rate in zip(gradients, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            weight.grad = torch.tensor(gradient)
            optimizer.step()
            path.append(weight.detach().clone())
        paths.append(torch.stack(path).numpy())
    np.testing.assert_allclose(*paths, rtol=1e-10, atol=1e-12)


def test_how_much_longer_the_steps_of_the_studies_of_evidence_are_without_the_correction():
    # 96 steps, 10 of them warm-up, with the rate of transformers' schedule: the mean in docs/evidence-details.md.
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=10, num_training_steps=96)
    rates = []
    for _ in range(96):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    factors = [(1 - 0.9**t) / (1 - 0.999**t) ** 0.5 for t in range(1, 97)]
    assert np.average(factors, weights=rates) == pytest.approx(5.3, abs=0.05)


@pytest.mark.parametrize("fused", [False, True])
def test_bertadam_continues_from_its_state(fused):
    def run(optimizer, weight, start, stop):
        for step in range(start, stop):
            weight.grad = torch.full((4,), float(step + 1))
            optimizer.step()

    whole, first = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    run(BERTAdam([whole], lr=0.1, fused=fused), whole, 0, 6)
    before = BERTAdam([first], lr=0.1, fused=fused)
    run(before, first, 0, 3)
    second = nn.Parameter(first.detach().clone())
    after = BERTAdam([second], lr=0.1, fused=fused)
    after.load_state_dict(before.state_dict())
    run(after, second, 3, 6)
    assert torch.equal(whole, second)


def test_bertadam_skips_what_has_no_gradient_and_calls_the_closure():
    weight, frozen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = BERTAdam([weight, frozen], lr=0.1, weight_decay=1.0)

    def closure() -> float:
        weight.grad = torch.ones(1)
        return 2.5

    assert optimizer.step(closure) == 2.5
    assert frozen.item() == 1.0
    assert weight.item() < 1.0


@pytest.mark.parametrize("first", [torch.optim.AdamW, BERTAdam])
def test_hooks_of_bertadam_run_once_a_step_whatever_was_built_before(first):
    # torch hooks step class by class, and a class and its base must not both be hooked.
    first([nn.Parameter(torch.ones(1))])
    torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    weight = nn.Parameter(torch.ones(1))
    optimizer = BERTAdam([weight], lr=0.5)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert seen == ["before", "after"]


def test_layer_wise_rates_reach_every_parameter_once(small_model):
    model = small_model("bert")
    settings = Settings(learning_rate=1.0, layer_decay=0.5, weight_decay=0.01)
    chosen = groups(model, settings)
    rates = {id(p): group["lr"] for group in chosen for p in group["params"]}
    assert sum(len(group["params"]) for group in chosen) == len(rates) == len(list(model.parameters()))
    by_name = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert by_name["classifier.weight"] == by_name["bert.pooler.dense.bias"] == 1.0
    assert by_name["bert.encoder.layer.1.output.dense.weight"] == 0.5
    assert by_name["bert.encoder.layer.0.output.dense.weight"] == 0.25
    assert by_name["bert.embeddings.LayerNorm.bias"] == 0.125


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "llama"])
def test_biases_and_norms_do_not_decay(small_model, name):
    model = small_model(name)
    chosen = groups(model, Settings(learning_rate=1e-3, weight_decay=0.1))
    decayed = {id(p) for group in chosen if group["weight_decay"] for p in group["params"]}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            expected = key == "weight" and "norm" not in name.lower() and ".ln_" not in name
            assert (id(parameter) in decayed) == expected, f"{name}.{key}"


def test_frozen_parameters_are_left_out(small_model):
    model = small_model("bert")
    model.bert.embeddings.requires_grad_(False)
    chosen = {id(p) for group in groups(model, Settings(learning_rate=1e-3, layer_decay=0.9)) for p in group["params"]}
    assert chosen == {id(p) for p in model.parameters() if p.requires_grad}


def test_layer_wise_rates_without_blocks_are_refused():
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"layer_decay=1\.0"):
        build(model, Settings(learning_rate=1e-3, layer_decay=0.9))
    build(model, Settings(learning_rate=1e-3))


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("bertadam", BERTAdam), ("sgd", torch.optim.SGD)]
)
def test_the_optimizer_that_is_named(small_model, name, kind):
    optimizer = build(small_model("bert"), Settings(optimizer=name, learning_rate=0.25))
    assert type(optimizer) is kind
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
    assert name == "sgd" or optimizer.defaults["eps"] == {"adamw": 1e-8, "bertadam": 1e-6}[name]
    if name != "sgd":
        assert all(group["fused"] for group in optimizer.param_groups)


def test_sgd_has_no_momentum():
    weight = nn.Parameter(torch.tensor([3.0]))
    model = nn.Module()
    model.weight = weight
    optimizer = build(model, Settings(optimizer="sgd", learning_rate=0.5))
    for gradient in (1.0, -2.0, 0.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
    assert weight.item() == 3.0 - 0.5 * (1.0 - 2.0)


def test_mofo_moves_a_tenth_of_each_matrix():
    model = nn.Linear(10, 10)
    optimizer = build(model, Settings(optimizer="mofo", learning_rate=0.1))
    before = model.weight.detach().clone()
    model.weight.grad, model.bias.grad = torch.randn(10, 10), torch.randn(10)
    optimizer.step()
    assert int((model.weight != before).sum()) == 10
