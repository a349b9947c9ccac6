"""Experts, and other layers of transformers that lend Phi to their own forward.

Oracle: plain layers with the same Phi in the place of their weights.
"""

import copy
import types

import pytest
import torch
from trained import moved

import mixout
from mixout import Mixconnect, Mixout


def moe(kind, **options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = getattr(transformers, f"{kind}Config")(**sizes, **heads, **options)
    return getattr(transformers, f"{kind}ForCausalLM")(config)


MOES = {
    "mixtral": lambda: moe("Mixtral", num_local_experts=4),
    "qwen": lambda: moe("Qwen3Moe", num_experts=4, moe_intermediate_size=12, head_dim=8, num_experts_per_tok=2),
    "gpt-oss": lambda: moe("GptOss", num_local_experts=4, head_dim=8),  # (expert, in, out), with biases
    "llama4": lambda: _llama4(),
    "jetmoe": lambda: moe("JetMoe", num_local_experts=4, kv_channels=8),
}


def _llama4():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Llama4TextConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, intermediate_size_mlp=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, head_dim=8, interleave_moe_layer_step=1,
    )  # fmt: skip
    return transformers.Llama4ForCausalLM(config)


@pytest.mark.parametrize("name", MOES)
def test_experts_are_mixed(name):
    """Oracle: the plain model with the captured Phi as its weights."""
    model = MOES[name]()
    ids = torch.arange(12).view(2, 6)
    plain = copy.deepcopy(model)
    mixout.apply_(model, Mixout(0.5), seed=1)
    report = mixout.coverage(model)
    assert report.flops_mixed > 0.7, str(report)
    assert not report.bypassed, str(report)
    assert not [row.name for row in report.layers if row.type.endswith("Router") and row.flops and row.kind != "mixed"]
    experts = [
        n
        for n, m in model.named_modules()
        if (n in report.mixed and len(m._mixed.anchors) > 1) or "Expert" in type(m).__name__
    ]
    assert experts
    moved(model)
    plain.load_state_dict(model.state_dict())
    phis = {}
    for n, module in model.named_modules():
        if hasattr(module, "_mixed"):
            for path, anchor in module._mixed.anchors.items():
                phis[f"{n}.{path}"] = anchor.tensor
    mixout.set_p_(model, 1.0)
    result = model.train()(ids).logits
    plain.load_state_dict({**model.state_dict(), **phis})
    torch.testing.assert_close(result, plain.train()(ids).logits)
    mixout.set_p_(model, 0.5)
    model(ids, labels=ids).loss.backward()
    for n in experts:
        for path in model.get_submodule(n)._mixed.anchors:
            gradient = model.get_parameter(f"{n}.{path}").grad
            assert gradient is not None
            assert gradient.isfinite().all()


@pytest.mark.parametrize("method", [Mixout(0.5), Mixout(0.5, gradient="paper"), Mixconnect(0.3)], ids=str)
def test_every_kernel_of_the_experts_computes_with_the_same_phi(method):
    results = {}
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model = MOES["mixtral"]()
        model.set_experts_implementation(implementation)
        torch.manual_seed(3)
        moved(mixout.apply_(model, method, seed=1))
        ids = torch.arange(12).view(2, 6)
        output = model.train()(ids, labels=ids)
        output.loss.backward()
        results[implementation] = output.logits, *(p.grad for p in model.parameters())
    for other in ("batched_mm", "grouped_mm"):
        for a, b in zip(results["eager"], results[other], strict=True):
            # Sums in another order differ by the rounding of their largest terms, on some machines by more than 1e-5.
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, a.abs().max().item()))


def test_falcons_linear_is_computed_as_falcon_does():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.FalconConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = transformers.FalconForCausalLM(config).bfloat16()
    plain = copy.deepcopy(model).eval()
    ids = torch.arange(12).view(2, 6)
    mixout.apply_(model, Mixout(0.5))
    assert model.eval()(ids).logits.equal(plain(ids).logits)
    assert len(mixout.coverage(model).mixed) == 4
    model.train()(ids, labels=ids).loss.backward()


@pytest.mark.parametrize("method", [mixout.AnchorDecay(1.0), [Mixout(0.5), mixout.AnchorDecay(1.0)]], ids=str)
def test_experts_decay_towards_their_anchor(method):
    model = MOES["mixtral"]()
    mixout.apply_(model, method)
    experts = model.model.layers[0].mlp.experts
    start = experts.gate_up_proj.detach().clone()
    moved(model)
    before = experts.gate_up_proj.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    expected = start + torch.exp(torch.tensor(-0.5)) * (before - start)
    torch.testing.assert_close(experts.gate_up_proj.detach(), expected)


def test_rows_of_experts_by_meaning(monkeypatch):
    """DBRX keeps its experts one below the other, and reads w2 the other way round."""
    dbrx = pytest.importorskip("transformers.models.dbrx.modeling_dbrx")
    sizes = {"hidden_size": 6, "ffn_hidden_size": 5, "moe_num_experts": 3, "ffn_act_fn": {"name": "silu"}}
    layer = dbrx.DbrxExperts(types.SimpleNamespace(**sizes))
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
    mixout.apply_(layer, Mixout(0.5), seed=1)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(1.0)
    read, forward = {}, dbrx.DbrxExpertGLU.forward

    def reads(mlp, *inputs):
        read.update({name: getattr(mlp, name).detach().view(3, 5, 6) for name in ("w1", "v1", "w2")})
        return forward(mlp, *inputs)

    monkeypatch.setattr(dbrx.DbrxExpertGLU, "forward", reads)
    layer(torch.randn(4, 6), torch.tensor([[0], [1], [2], [0]]), torch.ones(4, 1)).sum().backward()
    for name, over in (("w1", 1), ("v1", 1), ("w2", 2)):
        assert (read[name] == read[name].narrow(over, 0, 1)).all()
        assert 0 < read[name].mean() < 2


def test_xlnets_raw_parameters_by_meaning(monkeypatch):
    """Its projections are (in, heads, dim), the last one (out, heads, dim): there each head's inputs are inputs."""
    xlnet = pytest.importorskip("transformers.models.xlnet.modeling_xlnet")
    sizes = {"d_model": 8, "n_head": 2, "d_head": 4, "layer_norm_eps": 1e-6, "dropout": 0.0}
    layer = xlnet.XLNetRelativeAttention(types.SimpleNamespace(**sizes))
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
    mixout.apply_(layer, Mixout(0.5), seed=1)
    assert list(layer._mixed.anchors) == ["q", "k", "v", "r", "o"]
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(1.0)
    read, einsum = [], torch.einsum

    def reads(equation, *tensors):
        if equation in ("ibh,hnd->ibnd", "ibnd,hnd->ibh"):
            read.append(tensors[1].detach())
        return einsum(equation, *tensors)

    monkeypatch.setattr(torch, "einsum", reads)
    layer(torch.randn(3, 1, 8), None, None, None, torch.randn(6, 1, 8), None)
    *before, last = read
    assert len(before) == 4
    assert all((one == one[:, :1, :1]).all() for one in before)
    assert (last == last[:1]).all()
    masks = [*(one[:, 0, 0] for one in before), last[0].flatten()]
    assert all(set(mask.tolist()) == {0.0, 2.0} for mask in masks)
    assert len({tuple(mask.tolist()) for mask in masks}) == 5
