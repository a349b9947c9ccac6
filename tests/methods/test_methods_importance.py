"""The importance that weighs AnchorDecay: of models that are partly frozen, and resumed from elsewhere."""

import pytest
import torch
from torch import nn

import mixout
from mixout import AnchorDecay

safetensors_torch = pytest.importorskip("safetensors.torch")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))


BATCHES = [torch.randn(6, 4, generator=torch.Generator().manual_seed(1))]


@pytest.mark.filterwarnings("ignore::mixout.DecayStrengthWarning")
def test_what_was_frozen_when_it_was_measured_decays_as_the_mean_once_it_is_trained():
    """Gradual unfreezing: it has no importance, and is held as without any."""
    model, plain = net(), net()
    model[0].requires_grad_(False)
    importance = mixout.fisher(model, BATCHES)
    assert set(importance) == {"1.weight"}
    mixout.apply_(model, AnchorDecay(radius=0.01, weights=importance))
    mixout.apply_(plain, AnchorDecay(radius=0.01))
    model.requires_grad_(True)
    for one in (model, plain):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for weight in one.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert model[0].weight.equal(plain[0].weight)
    assert not model[1].weight.equal(plain[1].weight)


def test_what_was_measured_decays_where_it_is_frozen_for_a_while():
    importance = mixout.fisher(net(), BATCHES)
    model = net()
    model[0].requires_grad_(False)
    mixout.apply_(model, AnchorDecay(radius=0.01, weights=importance))
    assert set(mixout.methods.optimizer_hooks.targets(model)) == set(importance) == {"0.weight", "1.weight"}


def test_a_trained_weight_without_importance_is_named():
    importance = mixout.fisher(net(), BATCHES)
    del importance["0.weight"]
    with pytest.raises(
        mixout.AnchorMismatchError, match=r"weights of anchor_decay to hold '0\.weight'.*mixout\.fisher"
    ):
        mixout.apply_(net(), AnchorDecay(radius=0.01, weights=importance))


def test_the_same_importance_is_resumed_from_any_place(tmp_path, monkeypatch):
    importance = mixout.fisher(net(), BATCHES)
    file = tmp_path / "f.safetensors"
    safetensors_torch.save_file(importance, file)
    monkeypatch.chdir(tmp_path)
    state = mixout.save_state(mixout.apply_(net(), AnchorDecay(radius=0.01, weights=file)))
    for same in (file, "f.safetensors", importance):
        mixout.load_state_(mixout.apply_(net(), AnchorDecay(radius=0.01, weights=same)), state)
    with pytest.raises(mixout.MixoutError, match="expected state of"):
        mixout.load_state_(mixout.apply_(net(), AnchorDecay(radius=0.02, weights=file)), state)
    other = {name: one.flip(0) for name, one in importance.items()}
    with pytest.raises(mixout.AnchorMismatchError, match="same file of weights"):
        mixout.load_state_(mixout.apply_(net(), AnchorDecay(radius=0.01, weights=other)), state)
