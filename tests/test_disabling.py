"""Plain passes of a mixed model: disabled(), and generate() in training mode."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import mixout
from mixout import GradientMask, Mixconnect, Mixout
from mixout.methods import Dropconnect, Dropout


def net(method, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.Linear(16, 4))
    mixout.apply_(model, method, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("method", [Mixout(0.9), Mixconnect(0.9), Dropconnect(0.9), Mixout(0.9, every=4)], ids=str)
def test_passes_are_those_of_the_fine_tuned_weights(method):
    model = net(method)
    x = torch.randn(3, 8)
    expected = copy.deepcopy(model).eval()(x)
    for _ in range(2):  # also where the layers have a short pass by now
        assert not model(x).allclose(expected)
        with mixout.disabled(model) as same:
            assert same is model
            assert model.training
            torch.testing.assert_close(model(x), expected)
            with mixout.disabled(model):
                torch.testing.assert_close(model(x), expected)
            torch.testing.assert_close(model(x), expected)
    assert not model(x).allclose(expected)


def test_blocks_of_two_threads_may_overlap():
    model, x = net(Mixout(0.9)), torch.randn(3, 8)
    expected = copy.deepcopy(model).eval()(x)
    first, second = mixout.disabled(model), mixout.disabled(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    torch.testing.assert_close(model(x), expected)
    second.__exit__(None, None, None)
    assert not model(x).allclose(expected)


def test_blocks_within_blocks_are_compiled_no_further(monkeypatch):
    torch._dynamo.reset()
    model, x, graphs = net(Mixout(0.9)), torch.randn(3, 8), []
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    compiled(x)
    with mixout.disabled(model):
        compiled(x)
        number = len(graphs)
        with mixout.disabled(model), mixout.disabled(model):
            compiled(x)
    compiled(x)
    assert len(graphs) == number
    torch._dynamo.reset()


def test_gradients_are_whole():
    model = net(GradientMask(0.9))
    with mixout.disabled(model):
        model(torch.randn(3, 8)).sum().backward()
    assert model[2].weight.grad.ne(0).all()


def test_mixing_comes_back_after_an_error():
    model = net(Mixout(1.0), anchor=0)
    with pytest.raises(RuntimeError, match="stop"), mixout.disabled(model):
        raise RuntimeError("stop")
    assert model[0](torch.randn(3, 8)).equal(model[0].bias.expand(3, 16))


def test_of_a_part_only():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for part in model:
        mixout.apply_(part, Mixout(1.0), anchor=0)
    x = torch.ones(2, 4)
    with mixout.disabled(model[0]):
        assert not model[0](x).equal(model[0].bias.expand(2, 4))
        assert model[1](x).equal(model[1].bias.expand(2, 4))


def test_a_compiled_model():
    torch._dynamo.reset()
    model = net(Mixout(0.9))
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(3, 8)
    expected = copy.deepcopy(model).eval()(x)
    compiled(x)
    for _ in range(2):
        with mixout.disabled(model):
            torch.testing.assert_close(compiled(x), expected)
        assert not compiled(x).allclose(expected)
    torch._dynamo.reset()


def test_a_plain_model_is_refused():
    with pytest.raises(mixout.NotAppliedError), mixout.disabled(nn.Linear(2, 2)):
        pass


def test_a_method_that_does_not_mix():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    mixout.apply_(model, Dropout(0.5))
    with mixout.disabled(model):
        model(torch.ones(1, 2))


@pytest.fixture
def lm():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=None, pad_token_id=1
    )
    model = transformers.GPT2LMHeadModel(config)
    mixout.apply_(model, Mixout(0.9))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.train()


def generated(model):
    return model.generate(torch.tensor([[2, 3, 4]]), max_new_tokens=12, do_sample=False)


def test_generation_in_training_mode_is_plain_and_says_so_once(lm):
    expected = generated(copy.deepcopy(lm).eval())
    with pytest.warns(mixout.GenerationWarning, match="generate was called in training mode"):
        assert generated(lm).equal(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generated(lm).equal(expected)
    assert lm.training
    ids = torch.tensor([[2, 3, 4]])
    assert not lm(ids).logits.allclose(lm(ids).logits)  # mixed again


@pytest.mark.parametrize("method", [mixout.methods.GradientMask(0.5), Mixout(0.0)], ids=str)
def test_generation_does_not_warn_where_training_passes_are_plain(lm, method):
    mixout.apply_(mixout.remove_(lm), method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generated(lm)


def test_generation_in_eval_mode_or_disabled_does_not_warn(lm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mixout.disabled(lm):
            generated(lm)
        generated(lm.eval())


@pytest.mark.parametrize("duplicated", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_generates_with_its_own_weights(lm, duplicated):
    twin = duplicated(lm)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    with pytest.warns(mixout.GenerationWarning):
        assert generated(twin)[0, 3:].eq(0).all()  # ties go to the first token
    with pytest.warns(mixout.GenerationWarning):
        assert generated(lm)[0, 3:].ne(0).any()


def test_remove_gives_the_method_of_the_class_back(lm):
    assert "generate" in vars(lm)
    mixout.remove_(lm)
    assert "generate" not in vars(lm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generated(lm)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_of_peft(lm):
    peft = pytest.importorskip("peft")
    mixout.remove_(lm)
    model = peft.get_peft_model(lm, peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    mixout.apply_(model, Mixout(0.9))
    ids = torch.tensor([[2, 3, 4]])
    expected = copy.deepcopy(model).eval().generate(input_ids=ids, max_new_tokens=12, do_sample=False)
    with pytest.warns(mixout.GenerationWarning):
        assert model.generate(input_ids=ids, max_new_tokens=12, do_sample=False).equal(expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_that_is_made_within_mixes(duplicate):
    model = mixout.apply_(nn.Sequential(nn.Linear(3, 2, bias=False)), Mixout(1.0), anchor=0)
    x = torch.ones(1, 3)
    with mixout.disabled(model):
        twin = duplicate(model)
        assert model(x).any()
    assert not twin(x).any()
