"""LoRA on quantised bases, on the CPU where their libraries work there: mixed as on any base, which stays as it is."""

import pytest
import torch
from torch import nn

import mixout
from mixout import Mixout

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")


def eight_bit():
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
    layer.load_state_dict(nn.Linear(64, 32).state_dict())
    return layer.to("cpu")


def four_bit():
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(64, 32, quant_type="nf4")
    layer.load_state_dict(nn.Linear(64, 32).state_dict())
    return layer.to("cpu")


def torchao():
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 32))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model[0]


# peft's, of a base that was not loaded by transformers: it cannot merge. Nothing is merged here.
@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated without `get_apply_tensor_subclass`:UserWarning")
@pytest.mark.parametrize("quantised", [eight_bit, four_bit, torchao])
def test_a_quantised_base_is_the_anchor(quantised):
    torch.manual_seed(0)
    model = nn.Sequential(quantised())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"])
    model = peft.inject_adapter_in_model(config, model)
    layer = model[0]
    nn.init.normal_(layer.lora_B["default"].weight)
    print_of = mixout.fingerprint(mixout.apply_(model, Mixout(0.5), where="all"))
    assert mixout.coverage(model).mixed == ("0.lora_A.default",)
    x = torch.randn(5, 64)
    torch.manual_seed(5)
    y = model.train()(x)
    torch.manual_seed(5)
    kept = (torch.rand(64) >= 0.5) * 2.0
    delta = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = layer.base_layer(x) + (x * kept) @ delta.t()
    torch.testing.assert_close(y.float(), expected.float(), atol=2e-3, rtol=2e-3)
    y.float().sum().backward()
    assert layer.lora_A["default"].weight.grad[:, kept == 0].abs().max() == 0
    assert layer.lora_A["default"].weight.grad[:, kept > 0].abs().max() > 0
    assert mixout.fingerprint(model) == print_of
