"""torch's own layers that lend Phi to their forward: recurrent ones, attention, transformers, convolutions.

Oracle: plain layers with the same Phi in the place of their weights.
"""

import copy

import pytest
import torch
from torch import nn
from trained import moved

import mixout
from mixout import Mixout
from mixout.functional import mix

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


def test_one_compiled_graph_serves_every_pass():
    torch._dynamo.reset()  # graphs of other tests are no earlier ones of this
    torch.manual_seed(0)
    layer = moved(mixout.apply_(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), Mixout(0.5), seed=1))
    twin, x = copy.deepcopy(layer), torch.randn(3, 2, 8)
    # In torch 2.7 a context manager that is a generator breaks the graph; the parts compute the same.
    whole = not torch.__version__.startswith("2.7.")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=whole)
    with torch._dynamo.config.patch(error_on_recompile=whole):
        for p in (0.5, 0.5, 0.3):
            mixout.set_p_(layer, p), mixout.set_p_(twin, p)
            torch.testing.assert_close(compiled(x), twin(x))
    assert layer.self_attn._mixed.called
