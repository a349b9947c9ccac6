"""nn.Embedding: a token's row is its unit, and all its occurrences share the draw."""

import pytest
import torch
from torch import nn

import mixout


def embedding(p=0.5, unit="input", **options):
    torch.manual_seed(0)
    layer = mixout.apply_(nn.Embedding(40, 6, **options), mixout.Mixout(p, unit=unit), where=lambda *_: True)
    u = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1.0)
    return layer, layer.weight.detach().clone(), u


def test_all_occurrences_of_a_token_share_one_coin():
    layer, w, u = embedding()
    index = torch.arange(40).repeat(3).reshape(3, 40)
    rows = layer(index)
    assert rows[0].equal(rows[1])
    assert rows[0].equal(rows[2])
    kept = torch.isclose(rows[0], u + 2 * (w - u)).all(1)
    assert (kept | torch.isclose(rows[0], u).all(1)).all()
    assert 5 < kept.sum() < 35


@pytest.mark.parametrize("unit", ["input", "output", "element"])
def test_rows_and_gradients_match_a_lookup_in_phi(unit):
    layer, w, u = embedding(unit=unit)
    state = torch.get_rng_state()
    phi = layer(torch.arange(40)).detach()  # every row once
    mask = ~torch.isclose(phi, u)
    torch.testing.assert_close(phi, u + mask * 2 * (w - u))
    index = torch.tensor([[3, 3, 8], [39, 0, 3]])
    torch.set_rng_state(state)
    y = layer(index)
    leaf = w.clone().requires_grad_()
    reference = (u + mask * 2 * (leaf - u))[index]
    torch.testing.assert_close(y, reference)
    y.pow(3).sum().backward()
    reference.pow(3).sum().backward()
    torch.testing.assert_close(layer.weight.grad, leaf.grad)


def test_padding_idx_gets_no_gradient():
    layer, _, _ = embedding(p=0.1, padding_idx=3)
    layer(torch.arange(40)).sum().backward()
    assert not layer.weight.grad[3].any()
    assert layer.weight.grad.any()
    assert layer.padding_idx == 3


def test_sparse_gradients_stay_sparse():
    layer, _, _ = embedding(sparse=True)
    twin, _, _ = embedding(sparse=False)
    index = torch.tensor([1, 1, 5])
    state = torch.get_rng_state()
    layer(index).sum().backward()
    torch.set_rng_state(state)
    twin(index).sum().backward()
    assert layer.weight.grad.is_sparse
    torch.testing.assert_close(layer.weight.grad.to_dense(), twin.weight.grad)
    torch.optim.SparseAdam(layer.parameters()).step()


def test_scale_grad_by_freq_and_max_norm_are_honoured():
    layer, _, _ = embedding(p=0.0, scale_grad_by_freq=True)
    layer(torch.tensor([1, 1, 5])).sum().backward()
    assert layer.weight.grad[1].tolist() == [1.0] * 6
    layer, _, _ = embedding(p=0.0, max_norm=1.0)
    assert layer(torch.tensor([2])).norm() <= 1.0 + 1e-6


@pytest.mark.parametrize("options", [{"max_norm": 0.1}, {"max_norm": 2.0, "norm_type": 1.0}])
@pytest.mark.parametrize("index", [torch.tensor([2]), torch.tensor([[1, 5, 1], [0, 2, 3]])])
def test_the_anchors_rows_have_the_norm_of_w_and_the_anchor_stays(options, index):
    """At the start, where w is u, every p gives what the plain layer gives."""
    layer, _, u = embedding(p=1.0, **options)
    before = u.clone()
    plain = nn.Embedding.from_pretrained(u.clone(), **options)
    torch.testing.assert_close(layer(index), plain(index))
    assert u.equal(before)
    assert not plain.weight.equal(before)
