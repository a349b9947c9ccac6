"""LoRA adapters of parameters (peft's target_parameters): stacked experts, with a mask for each expert."""

import copy

import pytest
import torch
from torch import nn

import mixout
from mixout import Mixout

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # What it warns of, several adapters in one model, is meant.
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]


@mixout.register(weight=("up", "down"), input_dim=-1)
class Experts(nn.Module):
    """Two stacks as transformers keeps them; remembers what its forward has read."""

    def __init__(self, experts=3, wide=6):
        super().__init__()
        self.up = nn.Parameter(torch.randn(experts, wide, 4))
        self.down = nn.Parameter(torch.randn(experts, 4, wide))

    def forward(self, x):
        self.read = {"up": self.up, "down": self.down}
        return torch.einsum("eoi,ni->no", self.down, torch.einsum("eoi,ni->no", self.up, x).tanh())


@mixout.register(weight=("up", "down"), input_dim=-2)
class Transposed(Experts):
    def __init__(self):
        super().__init__(wide=4)
        self.is_transposed = True

    def forward(self, x):
        self.read = {"up": self.up, "down": self.down}
        return torch.einsum("eio,ni->no", self.down, torch.einsum("eio,ni->no", self.up, x).tanh())


def with_adapters(layer, seed=0, names=("up", "down"), linear=()):
    torch.manual_seed(seed)
    model = nn.Sequential(layer, nn.Linear(4, 4)).double()
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=list(linear), target_parameters=[f"0.{name}" for name in names]
    )
    model = peft.inject_adapter_in_model(config, model).double()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    return model


def wrappers(model):
    """The adapted layer of each parameter."""
    found = {}
    layer = model[0]
    while hasattr(layer, "base_layer"):
        found[layer.parameter_name], layer = layer, layer.base_layer
    return found, layer


def change(wrapper, experts=3):
    """s B A of each expert, from what peft documents of its factors."""
    a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
    a, b = a.view(experts, 2, -1), b.view(len(b), 2, experts)
    return 3.0 * torch.einsum("ore,eri->eoi", b, a)


@pytest.mark.parametrize("kind", [Experts, Transposed])
def test_adapters_of_stacked_experts_have_a_mask_for_each_expert(kind):
    """Oracle: autograd of the definition, with the masks that were drawn as the read weights show them."""
    model = with_adapters(kind())
    plain = {name: weight.clone() for name, weight in model.named_parameters()}
    mixout.apply_(model, Mixout(0.5))
    (found, layer), x = wrappers(model), torch.randn(5, 4, dtype=torch.float64)
    assert set(mixout.coverage(model).mixed) == {"0.lora_A.default", "0.base_layer.lora_A.default"}
    masks = []
    for _ in range(40):
        model[0](x).sum().backward()
        kept = {}
        for name, wrapper in found.items():
            delta = (layer.read[name] - getattr(layer, name)).detach()
            delta = delta.mT if kind is Transposed else delta
            whole = change(wrapper).detach()
            kept[name] = (delta.abs().sum(dim=1, keepdim=True) > 1e-9).double()
            torch.testing.assert_close(delta, whole * kept[name] * 2)
        factors = [factor["default"].weight for w in found.values() for factor in (w.lora_A, w.lora_B)]
        actual = [weight.grad.clone() for weight in factors]
        weights = {name: getattr(layer, name) + (lambda d: d.mT if kind is Transposed else d)(
            change(w) * kept[name] * 2) for name, w in found.items()}  # fmt: skip
        equation = "eio,ni->no" if kind is Transposed else "eoi,ni->no"
        result = torch.einsum(equation, weights["down"], torch.einsum(equation, weights["up"], x).tanh())
        torch.testing.assert_close(actual, list(torch.autograd.grad(result.sum(), factors)))
        masks.append(torch.cat([kept["up"].flatten(), kept["down"].flatten()]))
        model.zero_grad()
    drawn = torch.stack(masks)
    assert 0.4 < drawn.mean() < 0.6
    assert len(torch.unique(drawn, dim=1).T) == drawn.shape[1]  # no two columns, of whichever expert, share a mask

    torch.testing.assert_close(
        mixout.distance(model).total, float(torch.cat([change(w).detach().flatten() for w in found.values()]).norm())
    )
    assert set(mixout.distance(model).by_layer) == {"0.base_layer.base_layer.up", "0.base_layer.base_layer.down"}
    expected = model[0].eval()(x)
    mixout.remove_(model)
    assert model[0](x).equal(expected)
    assert {name: weight.equal(plain[name]) for name, weight in model.named_parameters()} == dict.fromkeys(plain, True)
    merged = model[0].unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    torch.testing.assert_close(merged(x), expected)


def test_what_adapters_of_parameters_cannot_do_is_refused():
    for method in (Mixout(0.5, unit="output"), Mixout(0.5, gradient="paper")):
        with pytest.raises(ValueError, match="expected mixout with unit='input' and gradient='exact'"):
            mixout.apply_(with_adapters(Experts()), method)
    model = mixout.apply_(with_adapters(Experts(), linear=["1"]), Mixout(0.5), where="^1$")
    assert set(mixout.coverage(model).mixed) == {"1.lora_A.default"}
    with pytest.raises(ValueError, match="is not a decay of W - u"):
        mixout.apply_(with_adapters(Experts()), mixout.AnchorDecay(1.0))
    layer = Experts()
    layer.is_transposed = True  # peft then takes outputs for inputs
    with pytest.raises(mixout.NothingMixedError, match="does not act on inputs, as far as mixout knows 'up'"):
        mixout.apply_(with_adapters(layer), Mixout(0.5))


def test_copies_states_and_recomputation_of_adapted_experts():
    model = mixout.apply_(with_adapters(Experts()), Mixout(0.5), seed=3)
    other, x = copy.deepcopy(model), torch.randn(5, 4, dtype=torch.float64)
    assert mixout.fingerprint(model) == mixout.fingerprint(other)
    mixout.load_state_(other, mixout.save_state(model))
    expected = model[0](x)
    expected.sum().backward()
    again = torch.utils.checkpoint.checkpoint(other[0], x, use_reentrant=False)
    assert again.equal(expected)
    again.sum().backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert a.grad is None if b.grad is None else a.grad.equal(b.grad)
