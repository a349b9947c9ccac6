"""Anchors that are kept in another dtype or in the host's memory: the same training, other bytes."""

import copy
import pickle

import pytest
import torch
from torch import nn

import mixout
from mixout import AnchorDecay, Mixconnect, Mixout, passes

METHODS = [Mixout(0.5), Mixout(0.1), Mixconnect(0.5), AnchorDecay(0.1), [Mixout(0.9), AnchorDecay(0.1)]]


def net():
    """Two layers whose weights bfloat16 holds exactly, in float32."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)).bfloat16().float()


def train(model, method, device="cpu", **options):
    model = mixout.apply_(model.to(device), method, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(5)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(6, 12).to(device)).square().mean().backward()
        optimizer.step()
    return model


def anchors(model):
    return [m._mixed.anchor.tensor for m in model.modules() if hasattr(m, "_mixed")]


@pytest.mark.parametrize("split", [0, 10**9])
@pytest.mark.parametrize(
    "options",
    [{"dtype": torch.bfloat16}, {"device": "cpu"}],
    ids=["bf16", "host"],
)
@pytest.mark.parametrize("method", METHODS, ids=mixout.methods.spell)
def test_training_is_that_with_the_default_anchor_bit_for_bit(method, options, split, monkeypatch):
    monkeypatch.setattr(passes, "SPLIT_BELOW", split)
    usual, kept = train(net(), method), train(net(), method, anchor=mixout.Anchor(**options))
    assert all(a.equal(b) for a, b in zip(usual.parameters(), kept.parameters(), strict=True))
    assert mixout.distance(usual).total == mixout.distance(kept).total > 0


def test_a_bf16_anchor_stays_half_as_large_through_casts_copies_and_passes():
    model = train(net(), Mixout(0.5), anchor=mixout.Anchor(dtype=torch.bfloat16))
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.double(), model.half()):
        assert {t.dtype for t in anchors(one)} == {torch.bfloat16}
    saved = []
    x = torch.randn(600, 12, dtype=torch.float16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(x)
    like_weights = [t for t in saved if t.dtype == torch.float16 and t.shape == (16, 12)]
    assert [t.data_ptr() for t in like_weights] == [model[0].weight.data_ptr()]  # no cast anchor outlives the forward


def test_a_dtype_that_would_round_the_anchor_is_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"expected an anchor that torch.bfloat16 holds exactly, got '0.weight'"):
        mixout.apply_(model, Mixout(0.5), anchor=mixout.Anchor(dtype=torch.bfloat16))
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match="expected dtype as a floating point dtype"):
        mixout.apply_(model, Mixout(0.5), anchor=mixout.Anchor(dtype=torch.int8))
    with pytest.raises(ValueError, match="expected device 'cpu' or None, got 'cuda'"):
        mixout.apply_(model, Mixout(0.5), anchor=mixout.Anchor(device="cuda"))


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ({"anchor_dtype": torch.bfloat16}, "write anchor=mixout.Anchor(dtype=...)"),
        ({"anchor_device": "cpu"}, 'write anchor=mixout.Anchor(device="cpu")'),
        ({"scope": "rank"}, 'write seed=mixout.Seed(scope="rank")'),
        ({"were": "all"}, "unexpected keyword 'were'; did you mean 'where'?"),
    ],
)
def test_a_former_keyword_leads_to_the_present_one(former, present):
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(TypeError) as refused:
        mixout.apply_(model, Mixout(0.5), **former)
    assert present in str(refused.value)
    assert type(model[0]) is nn.Linear


def test_a_seed_says_the_same_as_its_number():
    found = []
    for seed in (3, mixout.Seed(3)):
        model = mixout.apply_(nn.Sequential(nn.Linear(64, 8, bias=False)), Mixout(0.5), anchor=0, seed=seed)
        found.append(model(torch.eye(64)) != 0)
    assert found[0].equal(found[1])
    assert mixout.state(model).seed == 3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", [Mixout(0.5), Mixconnect(0.5)], ids=mixout.methods.spell)
def test_a_host_anchor_stays_pinned_on_the_host(method):
    usual, kept = train(net(), method, "cuda"), train(net(), method, "cuda", anchor=mixout.Anchor(device="cpu"))
    assert all(t.device.type == "cpu" and t.is_pinned() for t in anchors(kept))
    for a, b in zip(usual.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"source": 0}, {"device": "cpu"}])
def test_the_outputs_of_a_model_with_tied_weights_are_anchored(options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)
    model = transformers.GPT2LMHeadModel(config).bfloat16().float().eval()
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[1, 2, 3]])}
    mixout.apply_(model, mixout.OutputAnchor(1.0), anchor=mixout.Anchor(**options))
    penalty = mixout.output_penalty(model, batch, model(**batch))
    assert (penalty.item() > 1e-3) == ("source" in options)  # the start, or weights of 0


@pytest.mark.parametrize("change", [nn.Module.double, nn.Module.bfloat16, "data"])
@pytest.mark.parametrize("options", [{"device": "cpu"}, {"dtype": torch.float32}, {}])
def test_a_model_is_cast_after_a_pass(change, options):
    """What the first pass has found out of a small layer holds no longer."""
    model = mixout.apply_(nn.Sequential(nn.Linear(5, 4)), Mixout(0.5), anchor=mixout.Anchor(**options))
    model(torch.ones(2, 5))
    if change == "data":
        for parameter in model.parameters():
            parameter.data = parameter.data.double()
    else:
        change(model)
    dtype = model[0].weight.dtype
    assert model(torch.ones(2, 5, dtype=dtype)).dtype is dtype
