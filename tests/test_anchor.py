"""The anchor: where it comes from, that it follows the weight, and that nobody else sees it."""

import copy
import json

import pytest
import torch
from torch import nn

import mixout
from body_and_head import Body, anchors, fresh
from mixout import AnchorDecay, Mixout


def test_the_default_anchor_is_the_weights_of_this_moment_and_no_alias():
    """Trap: aliasing the live parameter: the penalty is always zero."""
    model = mixout.apply_(fresh(), Mixout(0.5))
    for name, tensor in anchors(model).items():
        assert tensor.equal(model.get_parameter(name))
        assert tensor.untyped_storage().data_ptr() != model.get_parameter(name).untyped_storage().data_ptr()
        assert not tensor.requires_grad
    assert mixout.distance(model).total == 0.0
    with torch.no_grad():
        model.body.first.weight.add_(1.0)
    assert mixout.distance(model).total == pytest.approx(20**0.5)


def test_the_anchor_is_no_part_of_state_dict_parameters_or_buffers():
    """Trap: as a buffer, DDP re-broadcasts it; inside param_groups, it lands in every optimizer checkpoint."""
    model = fresh()
    keys, count = list(model.state_dict()), len(list(model.parameters()))
    mixout.apply_(model, [Mixout(0.5), AnchorDecay(0.1)])
    assert list(model.state_dict()) == keys
    assert len(list(model.parameters())) == count
    assert not list(model.buffers())
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    flat = [t for state in optimizer.state_dict()["state"].values() for t in state.values()]
    assert not any(t is a for t in flat for a in anchors(model).values())
    assert set(optimizer.param_groups[0]) == set(torch.optim.AdamW(model.parameters()).param_groups[0])


@pytest.mark.parametrize("method", [Mixout(0.5), AnchorDecay(0.1), AnchorDecay(radius=0.1, relative=True)], ids=str)
@pytest.mark.parametrize(
    "move", [lambda m: m.double(), lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.to(torch.float64)]
)
@pytest.mark.filterwarnings("ignore::mixout.DecayStrengthWarning")
def test_the_anchor_follows_to_another_dtype(method, move):
    """Trap: a plain attribute is not moved by .to(); anchor and weight in different dtypes: matmul raises."""
    model = move(mixout.apply_(fresh(), method))
    dtype = model.head.weight.dtype
    model(torch.randn(3, 4, dtype=dtype)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    mixout.distance(model)
    assert {t.dtype for t in anchors(model).values()} == {dtype}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_anchor_is_moved_to_a_gpu_once():
    """Trap: copied host-to-device on each call."""
    model = mixout.apply_(fresh(), Mixout(0.5)).cuda()
    first = dict(anchors(model))
    model(torch.randn(3, 4, device="cuda")).sum().backward()
    assert all(t.is_cuda and t is first[name] for name, t in anchors(model).items())


def test_a_weight_cast_behind_our_back_casts_the_anchor_once():
    """Trap: copied (host-to-device) on each call: after the first pass the anchor must lie beside the weight."""
    model = mixout.apply_(fresh(), Mixout(0.5))
    for parameter in model.parameters():
        parameter.data = parameter.data.double()
    model(torch.randn(3, 4, dtype=torch.float64))
    layer = model.body.first
    beside = layer._mixed.anchor.beside(layer.weight)
    assert beside.dtype == torch.float64
    model(torch.randn(3, 4, dtype=torch.float64))
    assert layer._mixed.anchor.beside(layer.weight) is beside


def test_weights_that_are_only_lent_do_not_change_the_anchor():
    model = mixout.apply_(fresh(), Mixout(0.5))
    before = {name: tensor.clone() for name, tensor in anchors(model).items()}
    lent = {name: p.detach().bfloat16() for name, p in model.named_parameters()}
    torch.func.functional_call(model, lent, torch.randn(3, 4, dtype=torch.bfloat16))
    meta = {name: p.to("meta") for name, p in lent.items()}
    torch.func.functional_call(model, meta, torch.randn(3, 4, device="meta").bfloat16())
    assert all(tensor.equal(before[name]) for name, tensor in anchors(model).items())
    assert mixout.distance(model).total == 0.0
    model(torch.randn(3, 4))


def test_a_meta_parameter_has_no_weights_to_anchor():
    with torch.device("meta"):
        model = Body()
    with pytest.raises(ValueError, match="meta device; load them first"):
        mixout.apply_(model, Mixout(0.5))


def test_the_anchor_stays_when_a_checkpoint_is_loaded():
    model = mixout.apply_(fresh(), Mixout(0.5))
    before = mixout.fingerprint(model)
    model.load_state_dict(fresh(seed=9).state_dict())
    assert mixout.fingerprint(model) == before
    assert mixout.distance(model).total > 0


def test_an_anchor_captured_after_a_fine_tuned_checkpoint_is_found():
    """Trap: captured after loading a fine-tuned checkpoint (resume): silently anchored at the fine-tuned weights."""
    model = mixout.apply_(fresh(), Mixout(0.5))
    with torch.no_grad():
        model.body.first.weight.add_(0.1)
    state, weights = mixout.save_state(model), copy.deepcopy(model.state_dict())
    json.dumps(state)  # it goes into a checkpoint
    wrong = fresh()
    wrong.load_state_dict(weights)
    mixout.apply_(wrong, Mixout(0.5))
    with pytest.raises(mixout.AnchorMismatchError, match="call apply_, and only then load the checkpoint"):
        mixout.load_state_(wrong, state)
    right = mixout.apply_(fresh(), Mixout(0.5))
    right.load_state_dict(weights)
    mixout.load_state_(right, state)
    assert mixout.distance(right).total == mixout.distance(model).total


def test_masks_of_layers_with_other_names_are_refused():
    state = mixout.save_state(mixout.apply_(nn.Sequential(nn.Linear(2, 2)), Mixout(0.5), seed=1))
    model = nn.ModuleDict({"layer": nn.Linear(2, 2)})
    model["layer"].load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)})
    mixout.apply_(model, Mixout(0.5), seed=1)
    state["fingerprint"] = mixout.save_state(model)["fingerprint"]
    with pytest.raises(mixout.MixoutError, match="got masks of '0' in the state, which no layer had"):
        mixout.load_state_(model, state)


def test_state_of_another_method_or_version_is_refused():
    model = mixout.apply_(fresh(), Mixout(0.5))
    state = mixout.save_state(model)
    with pytest.raises(mixout.MixoutError, match="version"):
        mixout.load_state_(model, {**state, "version": 99})
    with pytest.raises(mixout.MixoutError, match=r"finish a run of mixout 0\.1 with that version"):
        mixout.load_state_(model, {**state, "version": 2})
    with pytest.raises(mixout.MixoutError, match=r"mixout\(0.7\)"):
        mixout.load_state_(model, {**state, "methods": "mixout(0.7)"})
    with pytest.raises(mixout.MixoutError, match="version"):
        mixout.load_state_(model, {})


@pytest.mark.parametrize("p", [7.0, float("nan"), "0.5"])
def test_state_whose_p_is_no_probability_is_refused(p):
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), Mixout(0.9))
    with pytest.raises((TypeError, ValueError), match="expected p"):
        mixout.load_state_(model, {**mixout.save_state(model), "p": p})
    assert mixout.save_state(model)["p"] == 0.9
