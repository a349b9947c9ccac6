"""Layers whose forward computes with Phi: experts, recurrent layers, attention, classes that users register.

Oracles: a layer that returns the weight that it reads; plain layers with the same Phi in the place of their weights.
"""

import copy
import pickle
import types

import pytest
import torch
from torch import nn

import mixout
from mixout import Mixconnect, Mixout
from mixout.functional import mix


def moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


class Reader(nn.Module):
    """Gives the weight that its forward reads."""

    def __init__(self, *shape):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(shape, dtype=torch.float64))

    def forward(self):
        return self.table


# shape of the weight; how it is registered; the dimensions along which all weights of one input neuron lie
LAYOUTS = {
    "(out, in)": ((40, 30), {"input_dim": 1}, (0,)),
    "(in, out)": ((30, 40), {"input_dim": 0}, (1,)),
    "(expert, out, in)": ((5, 8, 30), {"input_dim": -1}, (1,)),
    "(expert, in, out)": ((5, 30, 8), {"input_dim": -2}, (2,)),
    "(out, in, kernel)": ((8, 30, 3), {"input_dim": 1}, (0, 2)),
    "(in, out, kernel)": ((30, 8, 3), {"input_dim": 0}, (1, 2)),
    "(stack, expert, out, in)": ((2, 3, 8, 30), {"input_dim": -1}, (2,)),
}
OUTPUT = {
    "(out, in)": (1,), "(in, out)": (0,), "(expert, out, in)": (2,), "(expert, in, out)": (1,),
    "(out, in, kernel)": (1, 2), "(in, out, kernel)": (0, 2), "(stack, expert, out, in)": (3,),
}  # fmt: skip


@pytest.mark.parametrize("unit", ["input", "output", "element"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_units_by_meaning(name, unit):
    shape, options, over_outputs = LAYOUTS[name]

    class Stored(Reader):
        def forward(self):
            return self.table

    mixout.register(Stored, weight="table", **options)
    layer = mixout.apply_(Stored(*shape), Mixout(0.5, unit=unit), seed=1)
    with torch.no_grad():
        layer.table.add_(1.0)
    phi = layer()
    assert sorted(phi.unique().tolist()) == [0.0, 2.0]  # u + M / (1-p) (w - u)
    over = {"input": over_outputs, "output": OUTPUT[name], "element": ()}[unit]
    for dim in over:
        assert (phi == phi.narrow(dim, 0, 1)).all()
    free = [dim for dim in range(len(shape)) if dim not in over]
    for dim in free:
        assert not (phi == phi.narrow(dim, 0, 1)).all()
    phi.sum().backward()
    assert layer.table.grad.equal(phi.detach())  # exact: M / (1-p)


def test_packed_projections_have_a_mask_each():
    class Packed(Reader):
        def forward(self):
            return self.table

    mixout.register(Packed, weight="table", blocks=3)
    layer = mixout.apply_(Packed(60, 30), Mixout(0.5), seed=1)
    with torch.no_grad():
        layer.table.add_(1.0)
    blocks = layer().view(3, 20, 30)
    assert (blocks == blocks[:, :1]).all()
    assert len({tuple(block[0].tolist()) for block in blocks}) == 3


def test_a_dotted_name_and_a_function_register_as_a_class_and_numbers_do():
    class ByName(Reader):
        def forward(self):
            return self.table

    class ByClass(Reader):
        def forward(self):
            return self.table

    name = f"{ByName.__module__}.{ByName.__qualname__}"
    layout = mixout.layers.Layout
    assert mixout.register(name, weight=lambda layer: {"table": layout(blocks=layer.table.shape[0] // 20)}) == name
    mixout.register(ByClass, weight="table", blocks=3)
    phis = []
    for kind in (ByName, ByClass):
        layer = mixout.apply_(kind(60, 30), Mixout(0.5), seed=1)
        with torch.no_grad():
            layer.table.add_(1.0)
        phis.append(layer())
    assert phis[0].equal(phis[1])


def test_what_was_read_is_put_back():
    class Stored(Reader):
        def forward(self, fail=False):
            if fail:
                raise RuntimeError("fail")
            return self.table

    mixout.register(Stored, weight="table")
    layer = mixout.apply_(nn.Sequential(Stored(4, 3)), Mixout(1.0))
    weight = layer[0].table
    moved(layer)
    with pytest.raises(RuntimeError, match="fail"):
        layer[0](fail=True)
    assert layer[0].table is weight
    assert layer[0]().eq(0).all()
    assert layer[0].table is weight
    assert layer.eval()[0]().equal(weight)
    assert list(layer.state_dict()) == ["0.table"]
    assert mixout.distance(layer).total == pytest.approx(float(weight.detach().norm()))
    assert list(mixout.distance(layer).by_layer) == ["0.table"]
    assert type(mixout.remove_(layer)[0]) is Stored


class FromBothSides(nn.Module):
    """Reads through ``.data``, as a hand-written kernel may."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.zeros(4, 6))

    def forward(self, x):
        return x @ self.up.data.t() @ self.down.data.t()


mixout.register(
    FromBothSides, weight=("up", "down"), forward=lambda layer, up, down, x: x @ up.t() @ down.t()
)  # outside of a test, so that pickle finds the class


def test_a_forward_of_ones_own_is_given_phi():
    layer = moved(mixout.apply_(FromBothSides(), Mixout(1.0), anchor=moved(FromBothSides())))
    x = torch.randn(3, 4)
    anchors = [mixout.state(layer).anchor(name) for name in ("up", "down")]
    assert layer(x).equal(x @ anchors[0].t() @ anchors[1].t())
    twin = pickle.loads(pickle.dumps(layer))
    assert twin(x).equal(layer(x))
    assert layer.eval()(x).equal(x @ layer.up.t() @ layer.down.t())


def test_a_decorator_and_what_it_refuses():
    @mixout.register
    class Own(nn.Linear):
        def forward(self, x):
            return 2 * nn.functional.linear(x, self.weight, self.bias)

    assert mixout.coverage(mixout.apply_(nn.Sequential(Own(4, 3)), Mixout(0.5))).mixed == ("0",)
    for bad in (
        lambda: mixout.register(3),
        lambda: mixout.register(nn.Linear(1, 1)),
        lambda: mixout.register(weight=3),
    ):
        with pytest.raises(TypeError, match="expected"):
            bad()
    for options in ({"input_dim": 2}, {"blocks": 0}):
        with pytest.raises(ValueError, match="expected"):
            mixout.register(Own, **options)

    @mixout.register(weight="nothing")
    class Wrong(nn.Linear):
        pass

    with pytest.raises(mixout.NothingMixedError, match="it has no nothing, with which Wrong was registered"):
        mixout.apply_(nn.Sequential(Wrong(4, 3)), Mixout(0.5))


def test_a_subclass_without_a_forward_is_its_base_and_one_with_is_left_alone():
    class Same(nn.LSTM):
        pass

    class Other(nn.LSTM):
        def forward(self, x):
            return super().forward(x)

    model = mixout.apply_(nn.ModuleDict({"same": Same(4, 3), "other": Other(4, 3)}), Mixout(0.5), where="same|other")
    assert mixout.coverage(model).mixed == ("same",)
    assert "call mixout.register(Other) first" in str(mixout.coverage(model))


RECURRENT = {
    "lstm": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "projected": (nn.LSTM, {"proj_size": 2}),
    "gru": (nn.GRU, {}),
    "rnn": (nn.RNN, {"nonlinearity": "relu", "bias": False}),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_has_one_mask_for_all_time_steps(name):
    """Oracle: the plain layer with Phi in the place of its weights."""
    kind, options = RECURRENT[name]
    torch.manual_seed(0)
    layer = kind(4, 3, **options).double()
    starts = {key: p.detach().clone() for key, p in layer.named_parameters()}
    moved(mixout.apply_(layer, Mixout(0.5)))
    x = torch.randn(5, 7, 4, dtype=torch.float64)
    torch.manual_seed(1)
    result = layer(x)[0]
    result.sum().backward()

    plain, phis = kind(4, 3, **options).double(), {}
    torch.manual_seed(1)
    for key, w in layer.named_parameters():
        phis[key] = mix(w.detach(), starts[key], 0.5) if key.startswith("weight") else w.detach()
    plain.load_state_dict(phis)
    expected = plain(x)[0]
    torch.testing.assert_close(result, expected)
    expected.sum().backward()
    for key, w in layer.named_parameters():
        if key.startswith("weight"):
            kept = (phis[key] != starts[key]).any(0, keepdim=True)
            torch.testing.assert_close(w.grad, plain.get_parameter(key).grad * kept / 0.5)
        else:
            torch.testing.assert_close(w.grad, plain.get_parameter(key).grad)
    assert {key for key in mixout.distance(layer).by_layer} == {key for key in phis if key.startswith("weight")}
    assert mixout.coverage(layer).mixed == ("",)
    assert mixout.coverage(layer).flops_mixed == 1.0
    weights = [p.detach().clone() for p in layer.parameters()]
    mixout.remove_(layer)
    plain.load_state_dict(dict(zip(phis, weights, strict=True)))
    assert layer(x)[0].equal(plain(x)[0])


def test_cells_are_named():
    model = mixout.apply_(nn.ModuleDict({"cell": nn.LSTMCell(4, 3), "out": nn.Linear(3, 50)}), Mixout(0.5))
    assert mixout.coverage(model).bypassed == ("cell",)
    assert "once a time step" in str(mixout.coverage(model))


@pytest.mark.parametrize("options", [{}, {"kdim": 5, "vdim": 3}], ids=["packed", "apart"])
def test_attention_with_a_mask_for_each_projection(options):
    """Oracle: the plain attention with Phi in the place of its weights."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True, **options).double()
    starts = {key: p.detach().clone() for key, p in layer.named_parameters()}
    moved(mixout.apply_(layer, Mixout(0.5)))
    q, k, v = (torch.randn(2, 4, width, dtype=torch.float64) for width in (8, layer.kdim, layer.vdim))
    torch.manual_seed(1)
    result = layer(q, k, v)[0]
    result.sum().backward()
    plain, phis = nn.MultiheadAttention(8, 2, batch_first=True, **options).double(), {}
    torch.manual_seed(1)
    names = ["in_proj_weight"] if not options else [f"{one}_proj_weight" for one in "qkv"]
    for key in [*names, "out_proj.weight"]:
        blocks = 3 if key == "in_proj_weight" else 1
        phis[key] = mix(layer.get_parameter(key).detach(), starts[key], 0.5, groups=blocks)
    plain.load_state_dict({**layer.state_dict(), **phis})
    expected = plain(q, k, v)[0]
    torch.testing.assert_close(result, expected)
    expected.sum().backward()
    weight, gradient = layer.out_proj.weight, plain.out_proj.weight.grad
    kept = (phis["out_proj.weight"] != starts["out_proj.weight"]).any(0, keepdim=True)
    torch.testing.assert_close(weight.grad, gradient * kept / 0.5)
    assert type(layer.out_proj) is nn.modules.linear.NonDynamicallyQuantizableLinear
    report = mixout.coverage(layer)
    assert report.mixed == ("", "out_proj")
    assert report.flops_mixed == 1.0
    assert sum(row.mixed_parameters for row in report.layers) == sum(phi.numel() for phi in phis.values())


def test_torchs_transformer_trains_and_is_the_same_in_eval_mode():
    torch.manual_seed(0)
    plain = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    model = mixout.apply_(copy.deepcopy(plain), Mixout(0.5))
    x = torch.randn(2, 3, 8)
    assert model(x).equal(plain(x))
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert mixout.coverage(model).flops_mixed == 1.0


def test_transposed_convolutions():
    for groups in (1, 2):
        torch.manual_seed(0)
        layer = nn.ConvTranspose1d(4, 6, 3, groups=groups, bias=False).double()
        start = layer.weight.detach().clone()
        moved(mixout.apply_(layer, Mixout(0.5), where=mixout.Where(types=nn.ConvTranspose1d), seed=1))
        x = torch.eye(4, dtype=torch.float64)[:, :, None]  # the weights of one input channel each
        phi = layer(x)
        u = nn.functional.conv_transpose1d(x, start, groups=groups)
        w = nn.functional.conv_transpose1d(x, layer.weight, groups=groups)
        for one in range(4):
            kept = not torch.allclose(phi[one], u[one])
            torch.testing.assert_close(phi[one], u[one] + kept * 2 * (w[one] - u[one]))


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
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("make", [lambda: nn.GRU(4, 4), lambda: nn.MultiheadAttention(4, 2)], ids=["gru", "attention"])
def test_recomputation_sees_the_masks_of_its_own_forward(make):
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    layer = moved(mixout.apply_(make(), Mixout(0.5), seed=1))
    twin = copy.deepcopy(layer)
    x = torch.randn(3, 2, 4)
    inputs = (x,) if isinstance(layer, nn.GRU) else (x, x, x)
    layer(*inputs)[0].sum().backward()
    checkpoint(lambda *given: twin(*given)[0], *inputs, use_reentrant=False).sum().backward()
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


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


def test_one_compiled_graph_serves_every_pass():
    torch.manual_seed(0)
    layer = moved(mixout.apply_(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), Mixout(0.5), seed=1))
    twin, x = copy.deepcopy(layer), torch.randn(3, 2, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for p in (0.5, 0.5, 0.3):
            mixout.set_p_(layer, p), mixout.set_p_(twin, p)
            torch.testing.assert_close(compiled(x), twin(x))
    assert layer.self_attn._mixed.called


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
