"""The stand-in for today's practice: the same numbers as the definition with the paper's gradient."""

import pytest
import torch
from torch import nn

import mixout
from mixout import dropouts
from mixout.bench.authors import AuthorsLinear, apply_authors_, expanded_mix
from mixout.bench.cases import build
from mixout.ops import reference


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
def test_value_and_gradient_are_the_definition_with_the_paper_gradient(p):
    torch.manual_seed(1)
    w, u = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    w.requires_grad_()
    mask = (torch.rand(1, 7, dtype=torch.float64) >= p).double().expand(5, 7).contiguous()
    grad = torch.randn(5, 7, dtype=torch.float64)
    phi, oracle = expanded_mix(w, u, mask, p), reference.mix(w, u, mask, 1 / (1 - p), gradient="paper")
    torch.testing.assert_close(phi, oracle)
    (mine,), (theirs,) = torch.autograd.grad(phi, w, grad), torch.autograd.grad(oracle, w, grad)
    torch.testing.assert_close(mine, theirs)


def test_a_layer_keeps_or_replaces_whole_columns_and_draws_anew():
    layer = apply_authors_(nn.Linear(200, 3, bias=False), 0.75)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    layer.anchor.zero_()
    phi, again = (layer(torch.eye(200)).t() for _ in range(2))
    assert {value for column in phi.t().tolist() for value in column} == {0.0, 4.0}
    assert (phi == phi[:1]).all()
    assert 20 < (phi[0] > 0).sum() < 80
    assert not phi.equal(again)


def test_it_stands_where_mixout_would_and_eval_is_plain(bert):
    plain, authors, mixed = (build(bert, "cpu") for _ in range(3))
    apply_authors_(authors, 0.9)
    mixout.apply_(mixed, mixout.Mixout(0.9))
    swapped = {name for name, module in authors.named_modules() if isinstance(module, AuthorsLinear)}
    assert swapped == set(mixout.coverage(mixed).mixed)
    assert not dropouts.active(authors)
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert authors.eval()(tokens).logits.equal(plain.eval()(tokens).logits)


@pytest.mark.parametrize("p", [1.0, -0.1, float("nan")])
def test_p_must_be_below_one(p):
    with pytest.raises(ValueError, match="divides by 1-p"):
        apply_authors_(nn.Linear(2, 2), p)
