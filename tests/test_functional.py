"""mix, mixed_linear, mixed_embedding: the definition, exactly, by enumeration of masks and by gradcheck."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from mixout import passes
from mixout.functional import mix, mixed_embedding, mixed_linear

UNITS = ["input", "output", "element"]
MASK_SHAPES = {"input": (1, 3), "output": (2, 1), "element": (2, 3)}


def tensors(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def revealed(seed, shape, p, unit, **options):
    """The mask that a draw after this seed gives, read off Phi with w = 1 and u = 0 (the definition's M/mu)."""
    torch.manual_seed(seed)
    return mix(torch.ones(shape), torch.zeros(shape), p, unit=unit, **options) != 0


def all_masks(shape, p):
    """Every Bernoulli mask of ``shape`` with its probability."""
    for drawn in itertools.product([False, True], repeat=torch.Size(shape).numel()):
        yield torch.tensor(drawn).reshape(shape), p ** drawn.count(False) * (1 - p) ** drawn.count(True)


def fix_mask(monkeypatch, mask):
    """Let the next draws be ``mask``."""
    for name in ("draw", "draw_elements"):
        monkeypatch.setattr(passes, name, lambda shape, *_, **__: mask.reshape(shape))
    for name in ("draw_coefficients", "draw_element_coefficients"):
        monkeypatch.setattr(passes, name, lambda shape, p, dtype, *_, **__: mask.reshape(shape).to(dtype) / (1 - p))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("p", [0.3, 0.9])
def test_mix_is_unbiased_over_all_masks(unit, p, monkeypatch):
    """Trap: no rescaling, or rescaling without the -p u term: biased."""
    w, u = tensors((2, 3), (2, 3))
    mean, mean_gradient, total = torch.zeros_like(w), torch.zeros_like(w), 0.0
    for mask, chance in all_masks(MASK_SHAPES[unit], p):
        fix_mask(monkeypatch, mask)
        leaf = w.clone().requires_grad_()
        phi = mix(leaf, u, p, unit=unit)
        phi.sum().backward()
        mean += chance * phi.detach()
        mean_gradient += chance * leaf.grad
        total += chance
    assert total == pytest.approx(1.0)
    torch.testing.assert_close(mean, w, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mean_gradient, torch.ones_like(w), rtol=1e-12, atol=1e-12)


FORMS = {"dense": (1.0, 0, 0), "sparse": (0.0, 0, 0), "split": (0.0, 10**9, 0), "native": (0.0, 0, 10**9)}


@pytest.mark.parametrize(
    ("unit", "form"),
    [
        *(("input", form) for form in FORMS),
        ("output", "dense"),
        ("output", "native"),
        ("element", "dense"),
        ("element", "native"),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_mixed_linear_is_unbiased_over_all_masks(unit, form, bias, monkeypatch):
    """Output, gradient of x, of w and of b: the mean over all masks is the plain linear's, in each form."""
    for name, value in zip(("SPARSE_FROM", "SPLIT_BELOW", "NATIVE_ON_CPU_BELOW"), FORMS[form], strict=True):
        monkeypatch.setattr(passes, name, value)
    p = 0.7
    x, w, u, b, g = tensors((4, 3), (2, 3), (2, 3), (2,), (4, 2))
    leaves = [x, w, b] if bias else [x, w]
    plain = [t.clone().requires_grad_() for t in leaves]
    y = linear(*plain)
    expected = [y.detach(), *torch.autograd.grad(y, plain, g)]
    means = [torch.zeros_like(e) for e in expected]
    for mask, chance in all_masks(MASK_SHAPES[unit], p):
        fix_mask(monkeypatch, mask)
        mine = [t.clone().requires_grad_() for t in leaves]
        out = mixed_linear(mine[0], mine[1], u, mine[2] if bias else None, p=p, unit=unit)
        for total, value in zip(means, [out.detach(), *torch.autograd.grad(out, mine, g)], strict=True):
            total += chance * value
    for value, reference in zip(means, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-11, atol=1e-11)


def test_mixed_embedding_is_unbiased_over_all_masks(monkeypatch):
    p, index = 0.6, torch.tensor([[0, 2], [2, 3]])
    w, u = tensors((4, 3), (4, 3))
    mean = torch.zeros(2, 2, 3, dtype=torch.float64)
    for mask, chance in all_masks((4, 1), p):
        fix_mask(monkeypatch, mask)
        mean += chance * mixed_embedding(index, w, u, p=p)
    torch.testing.assert_close(mean, w[index], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
def test_gradcheck_and_gradgradcheck_of_mix(unit, noise):
    """Trap: gradient without 1/(1-p) presented as exact: gradcheck fails."""
    w, u = tensors((2, 3), (2, 3))

    def fixed(weight):
        torch.manual_seed(5)
        return mix(weight, u, 0.5, unit=unit, noise=noise) ** 3  # a nonlinear loss: second derivatives exist

    assert torch.autograd.gradcheck(fixed, w.requires_grad_())
    assert torch.autograd.gradgradcheck(fixed, w)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradcheck_of_mixed_linear_in_x_weight_and_bias(unit, seed):
    """Trap: gradient without 1/(1-p) presented as exact: gradcheck fails."""
    x, w, u, b = tensors((2, 3, 5), (4, 5), (4, 5), (4,))

    def fixed(x, weight, bias):
        torch.manual_seed(seed)
        return mixed_linear(x, weight, u, bias, p=0.6, unit=unit)

    assert torch.autograd.gradcheck(fixed, tuple(t.requires_grad_() for t in (x, w, b)))


@pytest.mark.parametrize("unit", ["input", "output", "element"])
def test_gradcheck_of_mixed_embedding(unit):
    w, u = tensors((5, 3), (5, 3))

    def fixed(weight):
        torch.manual_seed(1)
        return mixed_embedding(torch.tensor([[0, 2, 2], [4, 0, 1]]), weight, u, p=0.5, unit=unit)

    assert torch.autograd.gradcheck(fixed, w.requires_grad_())


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("p", [0.3, 0.9])
def test_the_paper_convention_is_the_exact_gradient_times_one_minus_p(unit, p, monkeypatch):
    monkeypatch.setattr(passes, "NATIVE_ON_CPU_BELOW", 0)  # a form that has both
    x, w, u, g = tensors((7, 5), (4, 5), (4, 5), (7, 4))
    found = {}
    for gradient in ("exact", "paper"):
        leaf, x_leaf = w.clone().requires_grad_(), x.clone().requires_grad_()
        torch.manual_seed(2)
        y = mixed_linear(x_leaf, leaf, u, p=p, unit=unit, gradient=gradient)
        found[gradient] = (y.detach(), *torch.autograd.grad(y, (x_leaf, leaf), g))
    torch.testing.assert_close(found["exact"][0], found["paper"][0], rtol=0, atol=0)  # the same forward
    torch.testing.assert_close(found["exact"][1], found["paper"][1], rtol=0, atol=0)  # the same gradient of x
    torch.testing.assert_close(found["exact"][2] * (1 - p), found["paper"][2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("unit", UNITS)
def test_phi_equals_the_expanded_formula_in_float64(unit):
    """Equation 4 as printed, ((1-m) u + m w - p u) / (1-p), agrees where cancellation is harmless."""
    p = 0.9
    w, u = tensors((7, 5), (7, 5))
    m = revealed(3, (7, 5), p, unit).double()
    torch.manual_seed(3)
    phi = mix(w, u, p, unit=unit)
    torch.testing.assert_close(phi, ((1 - m) * u + m * w - p * u) / (1 - p), rtol=1e-12, atol=1e-12)


@given(
    st.lists(st.integers(0, 4), min_size=0, max_size=2),
    st.integers(1, 7),
    st.integers(1, 7),
    st.floats(0.0, 1.0),
    st.sampled_from(UNITS),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_mixed_linear_is_linear_of_mix_for_any_shape(batch, out, inputs, p, unit, zero):
    """Non-square and odd shapes, batch dimensions, empty batches, every p."""
    x, w, u = tensors((*batch, inputs), (out, inputs), (out, inputs))
    anchor = None if zero else u
    torch.manual_seed(0)
    y = mixed_linear(x, w, anchor, p=p, unit=unit)
    torch.manual_seed(0)
    phi = mix(w, anchor, p, unit=unit)
    assert y.shape == (*batch, out)
    torch.testing.assert_close(y, linear(x, phi), rtol=1e-9, atol=1e-9 / max(1 - p, 1e-9))


@pytest.mark.parametrize("unit", UNITS)
def test_an_empty_batch_has_zero_gradients(unit):
    x, w, u, b = tensors((0, 5), (4, 5), (4, 5), (4,))
    leaves = [t.requires_grad_() for t in (x, w, b)]
    mixed_linear(leaves[0], leaves[1], u, leaves[2], p=0.5, unit=unit).sum().backward()
    assert [tuple(t.grad.shape) for t in leaves] == [(0, 5), (4, 5), (4,)]
    assert not leaves[1].grad.any()
    assert not leaves[2].grad.any()


def test_a_grouped_convolution_against_an_explicit_loop():
    """One draw per input channel: all kernels of its group that read the channel share it."""
    rows, per_group, groups, p = 6, 2, 3, 0.5
    w, u = tensors((rows, per_group, 3), (rows, per_group, 3))
    torch.manual_seed(4)
    phi = mix(w, u, p, groups=groups)
    seen = set()
    for channel in range(per_group * groups):
        group, j = divmod(channel, per_group)
        block = slice(group * rows // groups, (group + 1) * rows // groups)
        kept = torch.allclose(phi[block, j], u[block, j] + (w - u)[block, j] / (1 - p), rtol=1e-12)
        assert kept or phi[block, j].equal(u[block, j])
        seen.add(kept)
    assert seen == {True, False}
