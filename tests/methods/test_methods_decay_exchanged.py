"""anchor_decay where parameters, modules or groups are exchanged, copied, resized or parametrized since apply_."""

import copy
import math
import warnings

import pytest
import torch
import transformers
from decay_steps import ETA, LEFT, RATE, batches, net, sgd, step_of_nothing, train
from torch import nn

import mixout
from mixout import AnchorDecay
from mixout.methods.optimizer_hooks import detach_, targets


def test_exchanged_parameters_decay():
    model = mixout.apply_(net(), AnchorDecay(RATE))
    anchor = model[0].weight.detach().clone()
    optimizer = sgd(model)
    train(model, optimizer, batches(1))
    bystander = sgd(net(1))

    def check(steps=1):
        with torch.no_grad():
            model[0].weight.copy_(anchor + 1)
        step_of_nothing(optimizer, model)
        torch.testing.assert_close(model[0].weight - anchor, torch.full_like(anchor, LEFT))

    check()
    # As FSDP2 and Accelerate do: another Parameter in the module and in the optimizer's group.
    new = nn.Parameter(model[0].weight.detach().clone())
    model[0].weight = new
    optimizer.param_groups[0]["params"][0] = new
    check()
    # First the module, and the optimizer a step later.
    new = nn.Parameter(model[0].weight.detach().clone())
    model[0].weight = new
    step_of_nothing(optimizer, model)
    optimizer.param_groups[0]["params"][0] = new
    check()
    # The old and the new one were both in the optimizer before.
    extra = nn.Parameter(torch.zeros_like(new))
    optimizer.add_param_group({"params": [extra], "lr": ETA})
    check()
    model[0].weight = extra
    check()
    # Contents are swapped, objects stay.
    torch.utils.swap_tensors(model[0].weight, nn.Parameter(torch.ones_like(anchor)))
    check()
    # Groups are replaced.
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    check()
    model.float()
    anchor = anchor.float()
    check()
    assert bystander.param_groups


def test_swapped_modules_parameters_decay():
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model = mixout.apply_(net().float(), AnchorDecay(RATE))
        anchor = model[0].weight.detach().double()
        optimizer = sgd(model)
        step_of_nothing(optimizer, model)
        optimizer.zero_grad()
        model.double()
        with torch.no_grad():
            model[0].weight.copy_(anchor + 1)
        step_of_nothing(optimizer, model)
        torch.testing.assert_close(model[0].weight - anchor, torch.full_like(anchor, LEFT))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_a_parameter_group_that_is_added_later_decays():
    model = mixout.apply_(net(), AnchorDecay(RATE))
    anchor = model[2].weight.detach().clone()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=ETA)
    step_of_nothing(optimizer, model)
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.2})
    with torch.no_grad():
        model[2].weight.add_(1.0)
    step_of_nothing(optimizer, model)
    torch.testing.assert_close(model[2].weight - anchor, torch.full_like(anchor, math.exp(-0.2 * RATE)))


# What can't be decayed any more is refused before a weight is changed.


def refused_without_a_change(model, optimizer, match):
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        with pytest.raises(mixout.MixoutError, match=match):
            step_of_nothing(optimizer, model)
    assert all(p.equal(b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("first", ["optimizer", "resize"])
def test_resized_embeddings_are_refused_before_the_step(decoupled, first):
    config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = mixout.apply_(transformers.GPT2LMHeadModel(config), AnchorDecay(RATE, decoupled=decoupled))
    optimizer = sgd(model) if first == "optimizer" else None
    if optimizer:
        step_of_nothing(optimizer, model)
    model.resize_token_embeddings(23)
    optimizer = optimizer or sgd(model)
    refused_without_a_change(model, optimizer, r"has shape \(23, 8\).*resized since apply_.*remove_.*then apply_")
    mixout.remove_(model)
    mixout.apply_(model, AnchorDecay(RATE, decoupled=decoupled))
    step_of_nothing(sgd(model), model)


@pytest.mark.parametrize("change", ["weight_norm", "spectral_norm", "old_weight_norm", "prune"])
@pytest.mark.parametrize("first", ["optimizer", "change"])
def test_a_weight_that_was_parametrized_since_is_refused_before_the_step(change, first):
    from torch.nn.utils import parametrizations, prune, weight_norm

    model = mixout.apply_(net(), AnchorDecay(RATE))
    optimizer = sgd(model) if first == "optimizer" else None
    if optimizer:
        step_of_nothing(optimizer, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        {
            "weight_norm": parametrizations.weight_norm,
            "spectral_norm": parametrizations.spectral_norm,
            "old_weight_norm": weight_norm,
            "prune": lambda module: prune.l1_unstructured(module, "weight", 0.5),
        }[change](model[0])
    refused_without_a_change(model, optimizer or sgd(model), "parametrized or pruned after apply_")
    other = net(1)
    train(other, sgd(other), batches(1))  # others go on


def test_lazy_layers_are_refused_by_apply():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(2))
    with pytest.raises(mixout.MixoutError, match=r"'1' \(LazyLinear\).*run one forward pass"):
        mixout.apply_(model, AnchorDecay(RATE))
    assert not targets(model)
    model(torch.ones(2, 4))
    assert list(targets(mixout.apply_(model, AnchorDecay(RATE)))) == ["0.weight", "1.weight"]


# Parts and copies.


def test_a_part_of_a_model_decays_and_is_undone_by_itself(duplicate):
    model = mixout.apply_(nn.Sequential(net(), nn.Linear(2, 2).double()), AnchorDecay(RATE))
    part = duplicate(model[0])
    assert list(targets(part)) == ["0.weight", "2.weight"]
    assert list(targets(model)) == ["0.0.weight", "0.2.weight", "1.weight"]
    assert all(target.module is part.get_submodule(name[0]) for name, target in targets(part).items())
    anchor = part[0].weight.detach().clone()
    with torch.no_grad():
        part[0].weight.add_(1.0)
    step_of_nothing(sgd(part), part)
    torch.testing.assert_close(part[0].weight - anchor, torch.full_like(anchor, LEFT))
    assert model[0][0].weight.equal(anchor)
    detach_(part[0])
    assert list(targets(part)) == ["2.weight"]
    moved = part[0].weight.detach().clone()
    step_of_nothing(sgd(part), part)
    assert part[0].weight.equal(moved)
    kept = model[0]
    del model  # what is left of it decays on
    with torch.no_grad():
        kept[0].weight.add_(1.0)
    step_of_nothing(sgd(kept), kept)
    torch.testing.assert_close(kept[0].weight - anchor, torch.full_like(anchor, LEFT))


def test_a_copy_in_the_middle_of_training_decays_from_its_first_step(duplicate):
    """What orders steps in one process means nothing in another."""
    model = mixout.apply_(net(), AnchorDecay(RATE))
    targets(model)["0.weight"].decayed_at = 10**9
    twin = duplicate(model)
    with torch.no_grad():
        twin[0].weight.add_(1.0)
    step_of_nothing(sgd(twin), twin)
    expected = torch.full_like(twin[0].weight, LEFT)
    torch.testing.assert_close(twin[0].weight - model[0].weight, expected)
