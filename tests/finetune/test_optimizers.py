from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from mixout.errors import InputError
from mixout.finetune.optimizers import BERTAdam, build, groups, layer_levels
from mixout.finetune.settings import Settings

SMALL = {"vocab_size": 20, "num_labels": 2}


def bert(layers: int = 3) -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=8, **SMALL
    )
    return transformers.BertForSequenceClassification(config)


def oracle(weight, gradients, rates, *, beta1=0.9, beta2=0.999, eps=1e-6, decay=0.0):
    """Adam as BERT was released with, in numpy's float64."""
    w, m, v = weight.astype(np.float64), np.zeros_like(weight, np.float64), np.zeros_like(weight, np.float64)
    for g, rate in zip(gradients, rates, strict=True):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        update = m / (np.sqrt(v) + eps) + decay * w
        w = w - rate * update
    return w


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95)])
def test_bertadam_equals_numpy(decay, betas):
    draw = np.random.default_rng(0)
    start = draw.normal(size=(5, 3))
    gradients = draw.normal(size=(7, 5, 3)) * 10.0 ** draw.integers(-4, 3, size=(7, 1, 1))
    rates = [0.1, 0.05, 0.2, 0.0, 0.1, 0.01, 0.3]
    weight = nn.Parameter(torch.tensor(start))
    optimizer = BERTAdam([weight], lr=1.0, betas=betas, weight_decay=decay)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    expected = oracle(start, gradients, rates, beta1=betas[0], beta2=betas[1], decay=decay)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_bertadam_is_not_torchs_adamw():
    # The first step of AdamW is lr; without bias correction it is .1 / sqrt(.001) as long.
    steps = []
    for kind in (BERTAdam, torch.optim.AdamW):
        weight = nn.Parameter(torch.zeros(1))
        weight.grad = torch.ones(1)
        kind([weight], lr=1.0, eps=0.0, weight_decay=0.0).step()
        steps.append(-weight.item())
    assert steps == pytest.approx([0.1 / 0.001**0.5, 1.0], rel=1e-5)


def test_bertadam_continues_from_its_state():
    def run(optimizer, weight, start, stop):
        for step in range(start, stop):
            weight.grad = torch.full((4,), float(step + 1))
            optimizer.step()

    whole, first = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    run(BERTAdam([whole], lr=0.1), whole, 0, 6)
    before = BERTAdam([first], lr=0.1)
    run(before, first, 0, 3)
    second = nn.Parameter(first.detach().clone())
    after = BERTAdam([second], lr=0.1)
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


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1e-9}, {"weight_decay": -0.1}])
def test_bertadam_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BERTAdam([nn.Parameter(torch.ones(1))], **wrong)


def t5() -> nn.Module:
    config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, **SMALL)
    return transformers.T5ForSequenceClassification(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1, **SMALL)
    return transformers.GPT2ForSequenceClassification(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, **SMALL
    )
    return transformers.LlamaForSequenceClassification(config)


@pytest.mark.parametrize(
    ("build_model", "expected"),
    [
        (
            bert,
            {
                "bert.embeddings.word_embeddings.weight": 0,
                "bert.embeddings.LayerNorm.weight": 0,
                "bert.encoder.layer.0.attention.self.query.weight": 1,
                "bert.encoder.layer.2.output.dense.bias": 3,
                "bert.pooler.dense.weight": 4,
                "classifier.weight": 4,
            },
        ),
        (
            gpt2,
            {
                "transformer.wte.weight": 0,
                "transformer.wpe.weight": 0,
                "transformer.h.0.ln_1.weight": 1,
                "transformer.h.1.mlp.c_fc.weight": 2,
                "transformer.ln_f.weight": 3,
                "score.weight": 3,
            },
        ),
        (
            t5,
            {
                "transformer.shared.weight": 0,
                "transformer.encoder.block.0.layer.0.SelfAttention.q.weight": 1,
                "transformer.encoder.block.1.layer.0.SelfAttention.q.weight": 2,
                "transformer.encoder.final_layer_norm.weight": 2,
                "transformer.decoder.block.0.layer.0.SelfAttention.q.weight": 3,
                "transformer.decoder.block.1.layer.2.DenseReluDense.wo.weight": 4,
                "transformer.decoder.final_layer_norm.weight": 5,
                "classification_head.dense.weight": 5,
            },
        ),
        (
            llama,
            {
                "model.embed_tokens.weight": 0,
                "model.layers.0.mlp.up_proj.weight": 1,
                "model.layers.1.input_layernorm.weight": 2,
                "model.norm.weight": 3,
                "score.weight": 3,
            },
        ),
    ],
)
def test_levels(build_model, expected):
    levels = layer_levels(build_model())
    assert {name: levels[name] for name in expected} == expected


def test_layer_wise_rates_reach_every_parameter_once():
    model = bert(layers=2)
    settings = Settings(learning_rate=1.0, layer_decay=0.5, weight_decay=0.01)
    chosen = groups(model, settings)
    rates = {id(p): group["lr"] for group in chosen for p in group["params"]}
    assert sum(len(group["params"]) for group in chosen) == len(rates) == len(list(model.parameters()))
    by_name = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert by_name["classifier.weight"] == by_name["bert.pooler.dense.bias"] == 1.0
    assert by_name["bert.encoder.layer.1.output.dense.weight"] == 0.5
    assert by_name["bert.encoder.layer.0.output.dense.weight"] == 0.25
    assert by_name["bert.embeddings.LayerNorm.bias"] == 0.125


def test_more_than_nine_layers_are_told_apart():
    levels = layer_levels(bert(layers=11))
    assert levels["bert.encoder.layer.1.output.dense.weight"] == 2
    assert levels["bert.encoder.layer.10.output.dense.weight"] == 11


@pytest.mark.parametrize("build_model", [bert, gpt2, t5, llama])
def test_biases_and_norms_do_not_decay(build_model):
    model = build_model()
    chosen = groups(model, Settings(weight_decay=0.1))
    decayed = {id(p) for group in chosen if group["weight_decay"] for p in group["params"]}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            expected = key == "weight" and "norm" not in name.lower() and ".ln_" not in name
            assert (id(parameter) in decayed) == expected, f"{name}.{key}"


def test_frozen_parameters_are_left_out():
    model = bert()
    model.bert.embeddings.requires_grad_(False)
    chosen = {id(p) for group in groups(model, Settings(layer_decay=0.9)) for p in group["params"]}
    assert chosen == {id(p) for p in model.parameters() if p.requires_grad}


def test_layer_wise_rates_without_blocks_are_refused():
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"layer_decay=1\.0"):
        build(model, Settings(layer_decay=0.9))
    build(model, Settings())


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("bertadam", BERTAdam), ("sgd", torch.optim.SGD)]
)
def test_the_optimizer_that_is_named(name, kind):
    optimizer = build(bert(), Settings(optimizer=name, learning_rate=0.25))
    assert type(optimizer) is kind
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
    if name == "adamw":
        assert all(group["fused"] for group in optimizer.param_groups)
