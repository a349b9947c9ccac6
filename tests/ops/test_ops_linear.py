"""The forms of the mixed linear against ops.reference under autograd, and what they keep and allocate."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_case import case
from torch.utils._python_dispatch import TorchDispatchMode

from mixout import functional, passes
from mixout.functional import mixed_linear
from mixout.ops import linear as forms
from mixout.ops import reference

pytestmark = pytest.mark.usefixtures("every_form")


def compare(batch, out, inputs, keep, gradient, *, bias, seed=0, scale=3.7):
    (x, w, u, b, g), mask = case(batch, out, inputs, keep, seed)
    leaves = [t.requires_grad_() for t in ((x, w, b) if bias else (x, w))]
    kept = mask.nonzero().squeeze(1)
    y = forms.sparse(x, w, u, b if bias else None, kept, scale, gradient=gradient)
    oracle = torch.nn.functional.linear(x, reference.mix(w, u, mask, scale, gradient=gradient), b if bias else None)
    torch.testing.assert_close(y, oracle, rtol=1e-11, atol=1e-11)
    mine, theirs = (torch.autograd.grad(z, leaves, g) for z in (y, oracle))
    for name, a, e in zip(("x", "weight", "bias"), mine, theirs, strict=False):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11, msg=lambda m, name=name: f"gradient of {name}: {m}")
    assert not mine[1][:, ~mask].any()  # exactly zero, not small


@pytest.mark.parametrize("gradient", ["exact", "paper"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)])
@pytest.mark.parametrize("keep", [0.0, 0.4, 1.1])
def test_output_and_every_gradient_match_the_definition(batch, bias, gradient, keep):
    compare(batch, 4, 7, keep, gradient, bias=bias)


@given(
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(0, 1),
    st.integers(0, 99),
    st.floats(1, 100),
)
@settings(max_examples=50, deadline=None)
def test_any_shape(batch, out, inputs, keep, seed, scale):
    compare(tuple(batch), out, inputs, keep, "exact", bias=True, seed=seed, scale=scale)


def saved_by(function):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = function()
    return y, saved


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_nothing_weight_sized_is_kept_and_x_is_kept_thin(anchored, transposed, monkeypatch):
    """Trap: mask of weight size stored for backward. Only w and u themselves, x[:, K] and K are kept."""
    monkeypatch.setattr(passes, "SPLIT_BELOW", 0)
    rows, size, p = 50, 100, 0.9
    x = torch.randn(rows, size, requires_grad=True)
    w, u = torch.randn(size, size, requires_grad=True), torch.randn(size, size)
    weight, anchor = (w.t(), u.t()) if transposed else (w, u)
    y, saved = saved_by(lambda: mixed_linear(x, weight, anchor if anchored else None, None, p=p))
    own = {w.untyped_storage().data_ptr(), u.untyped_storage().data_ptr()}
    others = [t for t in saved if t.untyped_storage().data_ptr() not in own]
    assert x.untyped_storage().data_ptr() not in {t.untyped_storage().data_ptr() for t in saved}
    assert sum(t.numel() for t in others) < 0.3 * rows * size  # about (1-p) of x, and the indices
    assert len(saved) - len(others) == (2 if anchored else 1)
    y.sum().backward()


def test_a_frozen_weight_keeps_no_x():
    x = torch.randn(3, 100, requires_grad=True)
    w, u = torch.randn(100, 100), torch.randn(100, 100)
    _, saved = saved_by(lambda: mixed_linear(x, w, u, p=0.5))
    assert all(t.shape != x.shape and t.shape[0] != 3 for t in saved)


class Allocations(TorchDispatchMode):
    """Counts results as large as the weight that live in storage of their own."""

    def __init__(self, like, *known):
        super().__init__()
        self.numel = like.numel()
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor) and t.numel() >= self.numel:
                pointer = t.untyped_storage().data_ptr()
                if pointer not in self.known:
                    self.known.add(pointer)
                    self.found.append((str(func), t))  # kept alive: no storage is used twice
        return out


@pytest.mark.parametrize(
    ("dtype", "autocast", "most"),
    [(torch.float32, False, 1), (torch.float32, True, 2), (torch.bfloat16, False, 2)],
    ids=["fp32", "autocast", "bf16"],
)
def test_weight_sized_temporaries_of_the_forward(dtype, autocast, most, monkeypatch):
    """Trap: five weight-sized temporaries in forward."""
    monkeypatch.setattr(passes, "SPLIT_BELOW", 0)
    w, u = torch.randn(60, 70).to(dtype).requires_grad_(), torch.randn(60, 70).to(dtype)
    x = torch.randn(3, 70).to(dtype)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Allocations(w, w, u) as mode:
        y = mixed_linear(x, w, u, p=0.9)
    assert 1 <= len(mode.found) <= most, [name for name, _ in mode.found]
    with Allocations(w, w, u) as mode:
        y.float().sum().backward()
    assert len(mode.found) <= most + 1, [name for name, _ in mode.found]  # the gradient, and Phi again where x needs it


def test_the_weights_gradient_is_computed_for_the_kept_columns_only():
    """grad_w[:, K] = s g^T x[:, K] is a GEMM of |K| columns: no full-size product is made."""

    class Products(TorchDispatchMode):
        sizes: list[int]

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if "mm" in str(func):
                self.sizes.append(out.numel())
            return out

    x, w, u = torch.randn(8, 1000), torch.randn(5, 1000, requires_grad=True), torch.randn(5, 1000)
    y = mixed_linear(x, w, u, p=0.9)
    mode = Products()
    mode.sizes = []
    with mode:
        y.sum().backward()
    kept = int((w.grad.abs().sum(0) != 0).sum())
    assert mode.sizes == [5 * kept]
    assert kept < 200


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("anchored", [True, False])
def test_the_split_form_is_the_sparse_form(tokens, anchored):
    """The same outputs and gradients as the form that makes Phi; where w equals u, the anchor's output to the bit."""
    x, w, u, b, g = (torch.randn(s, dtype=torch.float64) for s in ((tokens, 9), (5, 9), (5, 9), (5,), (tokens, 5)))
    kept = torch.tensor([0, 3, 8])
    results = []
    for form in (forms.sparse, forms.split):
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        y = form(leaves[0], leaves[1], u if anchored else None, leaves[2], kept, 3.0)
        results.append([y, *torch.autograd.grad(y, leaves, g)])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert forms.split(x, u.clone(), u, b, kept, 3.0).equal(torch.nn.functional.linear(x, u, b))


def test_few_tokens_make_no_weight_sized_tensor_in_forward():
    """The split form reads the weight and the anchor and writes thin matrices only."""
    w, u, x = torch.randn(60, 70, requires_grad=True), torch.randn(60, 70), torch.randn(3, 70)
    with Allocations(w, w, u) as mode:
        mixed_linear(x, w, u, p=0.9)
    assert mode.found == []


def test_element_masks_are_kept_as_bytes():
    """Trap: mask of weight size stored for backward: a byte an element, and nothing else as large as the weight."""
    x, w, u = torch.randn(5, 40, requires_grad=True), torch.randn(30, 40, requires_grad=True), torch.zeros(30, 40)
    torch.manual_seed(3)
    y, saved = saved_by(lambda: mixed_linear(x, w, u, p=0.8, unit="element"))
    torch.rand(7)  # whatever is drawn in between
    y.sum().backward()
    own = {t.untyped_storage().data_ptr() for t in (x, w, u)}
    assert [t.dtype for t in saved if t.untyped_storage().data_ptr() not in own] == [torch.bool]
    torch.manual_seed(3)
    phi = functional.mix(w.detach(), u, 0.8, unit="element")
    torch.testing.assert_close(y, x @ phi.t())
    torch.testing.assert_close(x.grad, phi.sum(0).expand(5, 40))
    torch.testing.assert_close(w.grad, x.detach().sum(0) * (phi != 0) * 5.0)


def test_columns_that_are_named_several_times_change_nothing():
    torch.manual_seed(0)
    w, u, x = torch.randn(6, 9), torch.randn(6, 9), torch.randn(20, 9)
    found = []
    for kept in (torch.tensor([1, 4, 7]), torch.tensor([1, 4, 7, 7, 7])):
        weight = w.clone().requires_grad_()
        y = forms.sparse(x, weight, u, None, kept, 2.0)
        y.square().sum().backward()
        found.append((y, weight.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
