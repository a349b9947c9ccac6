"""A LoRA layer of peft under mixout, against autograd of Phi = u + (M / (1-p)) (W - u) with W = u + s B A."""

import pytest
import torch
from torch import nn

import mixout
from mixout import Mixout
from mixout.ops import reference

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # What it warns of, several adapters in one model, is meant.
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]


def adapted(layer, seed=0, rank=3, **options):
    """``layer`` with a LoRA whose B is not 0, as after some training."""
    torch.manual_seed(seed)
    names = options.pop("adapters", ("default",))
    nn.init.normal_(layer.weight)
    model = nn.Sequential(layer)
    for name in names:
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["0"], **options)
        model = peft.inject_adapter_in_model(config, model, adapter_name=name)
        nn.init.normal_(model[0].lora_B[name].weight)
    return model


def mask(size, p, seed):
    torch.manual_seed(seed)
    return torch.rand(size) >= p


def oracle(layer, x, p, seed):
    """Output from the definition on the merged weight; gradients come from autograd."""
    a, b, u = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight
    delta = layer.scaling["default"] * (b @ a)
    if layer.fan_in_fan_out:
        u = u.t()
    scale = 0.0 if p == 1 else 1 / (1 - p)
    phi = reference.mix(u + delta, u, mask(u.shape[1], p, seed), scale)
    return nn.functional.linear(x, phi, layer.base_layer.bias)


@pytest.mark.parametrize("tokens", [2, 300], ids=["few", "many"])
@pytest.mark.parametrize("p", [0.2, 0.7, 1.0])
def test_output_and_gradients_are_those_of_the_merged_weight(p, tokens):
    model = adapted(nn.Linear(11, 7)).double()
    mixout.apply_(model, Mixout(p), where="all")
    layer = model[0]
    x = torch.randn(tokens, 11, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(tokens, 7, dtype=torch.float64)
    read = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    torch.manual_seed(5)
    y = model.train()(x)
    expected = oracle(layer, x, p, seed=5)
    torch.testing.assert_close(y, expected)
    for got, wanted in zip(
        torch.autograd.grad(y, read, upstream), torch.autograd.grad(expected, read, upstream), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("keep", [True, False])
def test_the_adapters_own_dropout_acts_before_the_mask_where_it_is_kept(keep):
    model = adapted(nn.Linear(11, 7), lora_dropout=0.3)
    mixout.apply_(model, Mixout(0.5), where="all", keep_dropout=keep)
    assert len(mixout.coverage(model).dropouts) == keep
    layer, x = model[0], torch.randn(5, 11, requires_grad=True)
    torch.manual_seed(5)
    y = model.train()(x)
    torch.manual_seed(5)
    dropped = nn.functional.dropout(x, 0.3) if keep else x
    drawn = torch.rand(11) >= 0.5
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer(x) + 2 * (dropped * drawn * 2) @ (b @ a).t()
    torch.testing.assert_close(y, expected)
    for got, wanted in zip(*(torch.autograd.grad(out.sum(), [x, a, b]) for out in (y, expected)), strict=True):
        torch.testing.assert_close(got, wanted)
    mixout.remove_(model)
    assert layer.lora_dropout["default"].p == 0.3


def test_a_transposed_linear_has_its_coins_on_inputs_too():
    from transformers.pytorch_utils import Conv1D

    model = adapted(Conv1D(7, 11), fan_in_fan_out=True)
    mixout.apply_(model, Mixout(0.5), where="all")
    x = torch.randn(4, 11)
    torch.manual_seed(5)
    torch.testing.assert_close(model.train()(x), oracle(model[0], x, 0.5, seed=5))


def test_one_coin_an_input_for_all_tokens_and_a_new_draw_each_pass():
    model = mixout.apply_(adapted(nn.Linear(11, 7, bias=False)), Mixout(0.5), where="all").train()
    with torch.no_grad():
        model[0].base_layer.weight.zero_()
        columns = model(torch.eye(11))  # row i is column i of Phi
        repeated = model(torch.eye(11).repeat(3, 1)).view(3, 11, 7)
    assert {bool(row.any()) for row in columns} == {False, True}
    assert torch.equal(repeated[0], repeated[1])
    assert not torch.equal(repeated[0], columns)


def test_only_the_kept_columns_of_the_input_are_kept_for_backward():
    """The base is frozen: what A reads is all that a LoRA layer keeps of its input."""
    sizes = {}
    for p in (0.0, 0.9):
        model = mixout.apply_(adapted(nn.Linear(1000, 4)), Mixout(p), where="all", form="lean").train()
        saved = []
        x = torch.randn(64, 1000)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.numel()) or t,
            lambda t: t,
        ):
            model(x)
        sizes[p] = max(n for n in saved if n != 4000)
    assert sizes[0.0] == 64_000
    assert sizes[0.9] < 0.2 * 64_000


def test_the_distance_is_that_of_the_merged_weight():
    model = adapted(nn.Linear(11, 7), adapters=("one", "two"))
    model[0].set_adapter(["one", "two"])
    mixout.apply_(model, Mixout(0.5), where="all")
    delta = sum(model[0].get_delta_weight(name) for name in ("one", "two")).detach()
    found = mixout.distance(model)
    assert found.total == pytest.approx(float(delta.norm()), rel=1e-6)
    assert list(found.by_layer) == ["0.base_layer.weight"]
    model[0].set_adapter("two")
    delta = model[0].get_delta_weight("two").detach()
    assert mixout.distance(model).total == pytest.approx(float(delta.norm()), rel=1e-6)


def test_adapters_that_are_active_together_toss_coins_of_their_own():
    model = adapted(nn.Linear(400, 2, bias=False), adapters=("one", "two"))
    layer = model[0]
    layer.set_adapter(["one", "two"])
    mixout.apply_(model, Mixout(0.5), where="all")
    with torch.no_grad():
        torch.manual_seed(5)
        y = model.train()(torch.eye(400)).t()
    one, two = mask((2, 400), 0.5, seed=5)
    deltas = [layer.get_delta_weight(name) for name in ("one", "two")]
    torch.testing.assert_close(y, layer.base_layer.weight + 2 * one * deltas[0] + 2 * two * deltas[1])


# torch.compile itself instantiates an autograd.Function, which it deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles_into_one_graph_with_fresh_masks():
    torch._dynamo.reset()
    model = mixout.apply_(adapted(nn.Linear(11, 7)), Mixout(0.5), where="all").train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 11)
    torch.manual_seed(5)
    y = compiled(x)
    torch.testing.assert_close(y, oracle(model[0], x, 0.5, seed=5))
    y.sum().backward()
    got = [f["default"].weight.grad.clone() for f in (model[0].lora_A, model[0].lora_B)]
    model.zero_grad()
    oracle(model[0], x, 0.5, seed=5).sum().backward()
    torch.testing.assert_close(got, [f["default"].weight.grad for f in (model[0].lora_A, model[0].lora_B)])
    assert not torch.equal(compiled(x), y)
    torch._dynamo.reset()


@pytest.mark.parametrize("seed", [None, 3])
def test_a_recomputation_sees_the_masks_of_its_own_forward(seed):
    from torch.utils.checkpoint import checkpoint

    grads = []
    for wrap in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)):
        model = mixout.apply_(adapted(nn.Linear(11, 7, bias=False)), Mixout(0.5), where="all", seed=seed).train()
        x = torch.randn(5, 11, generator=torch.Generator().manual_seed(2))
        torch.manual_seed(5)
        first, second = wrap(model, x), wrap(model, 2 * x)
        first.sum().backward()
        (second**2).sum().backward()
        grads.append(model[0].lora_A["default"].weight.grad)
    torch.testing.assert_close(*grads)


def test_a_base_in_bfloat16_under_an_adapter_in_float32():
    model = adapted(nn.Linear(11, 7))
    model[0].base_layer.to(torch.bfloat16)
    mixout.apply_(model, Mixout(0.5), where="all")
    x = torch.randn(5, 11, dtype=torch.bfloat16)
    torch.manual_seed(5)
    y = model.train()(x)
    assert y.dtype == torch.bfloat16
    layer = model[0].float()
    torch.testing.assert_close(y.float(), oracle(layer, x.float(), 0.5, seed=5), atol=0.1, rtol=0.02)


def test_a_merged_adapter_is_no_way_back_to_the_base():
    model = adapted(nn.Linear(11, 7))
    mixout.apply_(model, Mixout(0.5), where="all")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[0].merge()
    with pytest.raises(mixout.MixoutError, match=r"call unmerge_adapter\(\) first"):
        mixout.interpolate_(model, 0.5)
    model[0].unmerge()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], msg=name)
    delta = model[0].get_delta_weight("default").detach()
    mixout.interpolate_(model, 0.5)
    torch.testing.assert_close(model[0].get_delta_weight("default").detach(), delta / 2)
