"""Conversion of transformers' models: ties, saving and loading, heads, experts, raw parameters."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import mixout
from mixout import AnchorDecay, Mixout

transformers = pytest.importorskip("transformers")

IDS = torch.arange(12).reshape(2, 6)


def gpt2(**options):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=20, bos_token_id=0, eos_token_id=1, **options
    )
    return transformers.GPT2LMHeadModel(config)


def bert(**options):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=30, **options
    )
    return transformers.BertForSequenceClassification(config)


def step(model, **inputs):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(**inputs).loss.backward()
    optimizer.step()


def test_a_tied_lm_head_stays_tied():
    """Trap: replacing modules unties tied weights (lm_head)."""
    model = gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    mixout.apply_(model, Mixout(0.5), where="all")
    assert "lm_head" in mixout.coverage(model).mixed
    assert model.lm_head.weight is model.transformer.wte.weight
    step(model, input_ids=IDS, labels=IDS)
    mixout.remove_(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    twin = copy.deepcopy(mixout.apply_(model, Mixout(0.5)))
    assert twin.lm_head.weight is twin.transformer.wte.weight


@pytest.mark.parametrize("methods", [[Mixout(1.0)], [Mixout(1.0), AnchorDecay(0.1)]], ids=["mixout", "with decay"])
def test_a_tied_head_is_anchored_from_its_own_checkpoint(methods, tmp_path):
    """A checkpoint holds a tied weight under one of its names; either name of the parameter must find it."""
    pretrained = gpt2()
    pretrained.save_pretrained(tmp_path)
    model = gpt2()
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    mixout.apply_(model, methods, where="all", anchor=tmp_path)
    assert mixout.measure.anchored_weights(model)["lm_head.weight"][2].tensor.equal(pretrained.lm_head.weight)


def test_by_default_the_output_embedding_is_not_mixed():
    model = mixout.apply_(gpt2(), Mixout(0.5))
    assert "lm_head" not in mixout.coverage(model).mixed
    assert len(mixout.coverage(model).mixed) == 8


@pytest.mark.parametrize("build", [bert, gpt2])
def test_saved_while_mixed_and_loaded_it_is_a_plain_model_with_its_own_dropouts(build, tmp_path):
    """state-dict keys unchanged, and the configuration on disk is the original one."""
    plain = build()
    plain.save_pretrained(tmp_path / "plain")
    model = mixout.apply_(plain, Mixout(0.5))
    model.save_pretrained(tmp_path / "mixed")
    configs = [json.loads((tmp_path / kind / "config.json").read_text()) for kind in ("plain", "mixed")]
    assert configs[0] == configs[1]
    again = type(model).from_pretrained(tmp_path / "mixed")
    assert type(again) is type(model)
    assert {n: p.tolist() for n, p in again.named_parameters()} == {n: p.tolist() for n, p in model.named_parameters()}
    assert not any("Mixed" in type(m).__name__ for m in again.modules())
    assert [m.p for m in again.modules() if isinstance(m, torch.nn.Dropout)] == [
        0.1 for m in model.modules() if isinstance(m, torch.nn.Dropout)
    ]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_configuration_of_a_mixed_llama_is_saved_as_it_was(attention, tmp_path):
    """Functional dropouts live in config fields too; what is switched off for training must not be saved."""
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=30,
        attention_dropout=0.3, attn_implementation=attention,
    )  # fmt: skip
    model = mixout.apply_(transformers.LlamaForCausalLM(config), Mixout(0.5))
    assert model.config.attention_dropout == 0.3
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attention_dropout"] == 0.3
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert again.model.layers[0].self_attn.attention_dropout == 0.3


def test_a_new_head_is_not_mixed():
    """Trap: new output head (no pretrained weights) anchored at its random initialisation."""
    model = mixout.apply_(bert(), [Mixout(0.5), AnchorDecay(0.1)])
    assert "classifier" in mixout.coverage(model).plain
    assert not any("classifier" in name for name in mixout.measure.anchored_weights(model))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_deepcopy_pickle_and_gradient_checkpointing():
    model = mixout.apply_(bert(hidden_dropout_prob=0.2), Mixout(0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    labels, gradients = torch.tensor([0, 1]), []
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        if twin is not model:
            twin.gradient_checkpointing_enable()
        torch.manual_seed(5)
        twin.train()(input_ids=IDS, labels=labels).loss.backward()
        gradients.append([p.grad for p in twin.parameters()])
    for other in gradients[1:]:
        assert all(a.equal(b) for a, b in zip(gradients[0], other, strict=True))


def test_xlnets_raw_parameters_are_mixed():
    """Trap: XLNet's raw parameters are silent no-ops."""
    config = transformers.XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=24, vocab_size=30)
    model = mixout.apply_(transformers.XLNetModel(config), Mixout(0.5))
    coverage = mixout.coverage(model)
    assert set(coverage.mixed) == {"layer.0.rel_attn", "layer.0.ff.layer_1", "layer.0.ff.layer_2"}
    assert coverage.bypassed == ()
    assert set(model.layer[0].rel_attn._mixed.anchors) == {"q", "k", "v", "o", "r"}


def test_raw_parameters_that_nobody_knows_are_reported():
    """Trap: they are silent no-ops."""

    class RawAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = (nn.Parameter(torch.ones(16, 16)) for _ in range(2))

        def forward(self, x):
            return x @ self.q @ self.k

    model = nn.Sequential(nn.Linear(16, 16), RawAttention(), nn.Linear(16, 2))
    with pytest.warns(mixout.LowCoverageWarning, match=r"'1' \(RawAttention, \d+%\)"):
        mixout.apply_(model, Mixout(0.5))
    coverage = mixout.coverage(model)
    assert coverage.mixed == ("0", "2")
    assert coverage.bypassed == ("1",)
    assert "raw parameters (q, k)" in str(coverage)


def test_stacked_moe_experts_are_counted():
    """Trap: stacked MoE experts are silent no-ops."""
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=4, vocab_size=30,
    )  # fmt: skip
    model = mixout.apply_(transformers.MixtralForCausalLM(config), Mixout(0.5))
    coverage = mixout.coverage(model)
    attention = {f"model.layers.0.self_attn.{x}_proj" for x in "qkvo"}
    assert set(coverage.mixed) == {*attention, "model.layers.0.mlp.experts", "model.layers.0.mlp.gate"}
    experts = 4 * (2 * 24 * 16 + 16 * 24)
    attention = 16 * 16 * 2 + 2 * 16 * 8
    assert sum(layer.parameters for layer in coverage.layers if layer.name.endswith("experts")) == experts
    assert coverage.parameters_mixed == pytest.approx(
        (experts + attention + 4 * 16) / sum(p.numel() for p in model.parameters())
    )
