"""Tools that read or rewrite a model while a method is applied: right, or refused with what to call first."""

import io
import warnings

import pytest
import torch
from torch import nn

import mixout
from mixout import Mixout

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode"),
    pytest.mark.filterwarnings("ignore:.*(legacy|TorchScript).*:UserWarning"),
]


def trace(model, x):
    return torch.jit.trace(model, (x,))(x)


def export(model, x):
    return torch.export.export(model, (x,)).module()(x)


def onnx(model, x, **options):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, input_names=["x"], **options)
    (found,) = runtime.InferenceSession(file.getvalue()).run(None, {"x": x.numpy()})
    return torch.from_numpy(found)


def onnx_by_tracing(model, x):
    return onnx(model, x, dynamo=False)


def onnx_by_export(model, x):
    return onnx(model, x, dynamo=True, verbose=False)


TOOLS = [trace, export, onnx_by_tracing, onnx_by_export]


def mixed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(2, 2, 1))
    mixout.apply_(model, Mixout(0.5), where=mixout.Where(types=nn.Module))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    x = torch.randn(2, 4)
    model(x)  # what a training pass leaves on the layers must not be traced
    return model, x


@pytest.mark.parametrize("tool", TOOLS)
def test_in_eval_mode_a_tool_sees_the_plain_model(tool):
    model, x = mixed()
    torch.testing.assert_close(tool(model.eval(), x), model(x))


@pytest.mark.parametrize("tool", TOOLS)
def test_in_training_mode_it_is_refused_or_sees_the_plain_model(tool):
    """One mask for good would be a wrong model. The tracing exporter of ONNX exports in eval mode by itself."""
    model, x = mixed()
    if tool is onnx_by_tracing:
        torch.testing.assert_close(tool(model, x), model.eval()(x))
        return
    with pytest.raises(Exception, match=r".") as found:
        tool(model, x)
    causes, error = [], found.value
    while error is not None:
        causes, error = [*causes, error], error.__cause__ or error.__context__
    told = [str(one) for one in causes if isinstance(one, mixout.MixoutError)]
    assert told, causes
    assert "call model.eval() or mixout.remove_(model) first" in told[0]
    tool(mixout.remove_(model), x)


def test_script_is_refused():
    model, _ = mixed()
    with pytest.raises(mixout.MixoutError, match="call remove_ first"):
        torch.jit.script(model)
    torch.jit.script(mixout.remove_(model))


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization")
def test_quantisation_is_refused_and_right_after_remove():
    """It would leave every mixed layer as it is, without a word."""
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4)), Mixout(0.5))
    with pytest.raises(mixout.MixoutError, match="call remove_ first, then quantise"):
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert type(mixout.remove_(model)[0]) is nn.Linear
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch: quantised tensors are deprecated
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert "quantized" in type(quantised[0]).__module__


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_quantisation_of_torchao_is_refused_and_right_after_remove(training):
    """It would freeze every mixed layer, so that nothing is mixed, without a word."""
    quantisation = pytest.importorskip("torchao.quantization")
    model, x = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), torch.randn(3, 64)
    mixout.apply_(model, Mixout(0.5)).train(training)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(mixout.MixoutError, match="call remove_ first, then quantise"):
        quantisation.quantize_(model, quantisation.Int8WeightOnlyConfig())
    assert all(now.equal(then) for now, then in zip(model.parameters(), before, strict=True))
    plain = mixout.remove_(model).eval()(x)
    quantisation.quantize_(model, quantisation.Int8WeightOnlyConfig())
    assert (model(x) - plain).norm() < 0.05 * plain.norm()
