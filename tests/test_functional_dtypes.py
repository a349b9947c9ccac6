"""Exactness where it can be exact, and values within the dtype's rounding everywhere else."""

import pytest
import torch
from torch.nn.functional import embedding, linear

from mixout.functional import mix, mixed_embedding, mixed_linear

UNITS = ["input", "output", "element"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
IDS = [str(d).removeprefix("torch.") for d in DTYPES]


def pair(dtype, shape=(6, 11)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]


def same_bits(a, b):
    return a.dtype == b.dtype and a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=IDS)
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("p", [0.1, 0.7, 0.9, 0.99])
def test_w_equal_u_gives_exactly_u(dtype, unit, p):
    """Trap: expanded formula, 1.3 % error in bf16 where w == u."""
    u, _ = pair(dtype)
    x = torch.eye(11, dtype=dtype)
    index = torch.arange(6)
    assert same_bits(mix(u.clone(), u, p, unit=unit), u)
    assert same_bits(mix(u.clone(), u, torch.tensor(p, dtype=torch.float64), unit=unit), u)
    assert same_bits(mixed_linear(x, u.clone(), u, p=p, unit=unit), linear(x, u))
    assert same_bits(mixed_embedding(index, u.clone(), u, p=p, unit=unit), u)


@pytest.mark.parametrize("dtype", DTYPES, ids=IDS)
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_the_ends_are_w_and_u_bit_for_bit(dtype, unit, as_tensor):
    w, u = pair(dtype)
    x, index = torch.randn(5, 11).to(dtype), torch.tensor([0, 5, 5, 2])
    for p, phi in ((0.0, w), (1.0, u)):
        q = torch.tensor(p, dtype=torch.float64) if as_tensor else p
        assert same_bits(mix(w, u, q, unit=unit), phi)
        assert same_bits(mixed_linear(x, w, u, p=q, unit=unit), linear(x, phi))
        assert same_bits(mixed_embedding(index, w, u, p=q, unit=unit), embedding(index, phi))


@pytest.mark.parametrize("unit", UNITS)
def test_at_p_one_nothing_is_learned(unit):
    w, u = pair(torch.float32)
    for gradient in ("exact", "paper"):
        leaf = w.clone().requires_grad_()
        mixed_linear(torch.randn(3, 11), leaf, u, p=1.0, unit=unit, gradient=gradient).sum().backward()
        assert not leaf.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("zero", [False, True], ids=["anchor", "zero"])
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_in_16_bits_the_scale_is_not_rounded(dtype, unit, zero, as_tensor):
    """1/(1-.7) = 3.3333 rounds to 3.3281 in bf16, a bias of -.16 % (a fifth of eps) in every kept weight.

    Rounding of the results is random and averages out over 40,000 weights; the rounding of the scale would not.
    """
    p, generator = 0.7, torch.Generator().manual_seed(0)
    w = (1 + torch.rand(200, 200, generator=generator)).to(dtype)
    u = None if zero else torch.zeros_like(w)
    torch.manual_seed(0)
    phi = mix(w, u, torch.tensor(p, dtype=torch.float64) if as_tensor else p, unit=unit).double()
    kept = phi != 0
    ratio = (phi[kept] / w.double()[kept]).mean().item()
    assert ratio == pytest.approx(1 / (1 - p), rel=torch.finfo(dtype).eps / 20)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("path", ["mix", "linear", "embedding"])
def test_in_bf16_the_gradients_scale_is_not_rounded(unit, path):
    p, generator = 0.7, torch.Generator().manual_seed(0)
    g = (1 + torch.rand(200, 200, generator=generator)).to(torch.bfloat16)
    w = torch.zeros(200, 200, dtype=torch.bfloat16, requires_grad=True)
    u = torch.zeros(200, 200, dtype=torch.bfloat16)
    if path == "mix":
        mix(w, u, p, unit=unit).backward(g)
    elif path == "linear":
        mixed_linear(torch.eye(200, dtype=torch.bfloat16), w, u, p=p, unit=unit).backward(g)
        g = g.t()
    else:
        mixed_embedding(torch.arange(200), w, u, p=p, unit=unit).backward(g)
    kept = w.grad != 0
    ratio = (w.grad[kept].double() / g[kept].double()).mean().item()
    assert ratio == pytest.approx(1 / (1 - p), rel=torch.finfo(torch.bfloat16).eps / 20)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("gradient", ["exact", "paper"])
def test_16_bit_weights_against_float64(dtype, unit, gradient):
    w, u = pair(dtype)
    x, g = torch.randn(5, 11).to(dtype), torch.randn(5, 6).to(dtype)
    found = []
    for kind in (dtype, torch.float64):
        leaves = [x.to(kind).requires_grad_(), w.to(kind).requires_grad_(), u[:, 0].to(kind).requires_grad_()]
        torch.manual_seed(1)
        y = mixed_linear(leaves[0], leaves[1], u.to(kind), leaves[2], p=0.7, unit=unit, gradient=gradient)
        found.append((y.detach(), *torch.autograd.grad(y, leaves, g.to(kind))))
    eps = torch.finfo(dtype).eps
    for value, reference in zip(*found, strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), reference, rtol=4 * eps, atol=30 * eps)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_autocast_gives_its_dtype_and_keeps_the_weights(unit, weight_dtype):
    w, u = pair(weight_dtype)
    x, b = torch.randn(5, 11), u[:, 0].float()
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_(), b.clone().requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        y = mixed_linear(leaves[0], leaves[1], u, leaves[2], p=0.7, unit=unit)
        assert y.dtype == torch.bfloat16
        y.float().pow(2).sum().backward()
    assert [t.grad.dtype for t in leaves] == [torch.float32, weight_dtype, torch.float32]
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    torch.manual_seed(1)
    reference = mixed_linear(doubles[0], doubles[1], u.double(), doubles[2], p=0.7, unit=unit)
    reference.pow(2).sum().backward()
    assert (y.double() - reference).norm() < 0.01 * reference.norm()
    for ours, theirs in zip(leaves, doubles, strict=True):
        assert (ours.grad.double() - theirs.grad).norm() < 0.02 * theirs.grad.norm()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("p", [0.3, 0.7, 0.9])
def test_in_float64_the_scale_is_float64(unit, p):
    """A bool mask times a Python number is float32 in torch: 1/(1-p) would be wrong by 1e-8."""
    w, u = pair(torch.float64)
    torch.manual_seed(0)
    phi = mix(w.requires_grad_(), u, p, unit=unit)
    phi.sum().backward()
    ratio = ((phi.detach() - u) / (w.detach() - u)).masked_fill(phi.detach() == u, 1 / (1 - p))
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1 / (1 - p)), rtol=1e-12, atol=0)
    torch.testing.assert_close(w.grad[w.grad != 0] * (1 - p), torch.ones_like(w.grad[w.grad != 0]), rtol=1e-14, atol=0)


@pytest.mark.parametrize("unit", UNITS)
def test_autocast_leaves_float64_alone_as_torch_does(unit):
    w, u = pair(torch.float64)
    x = torch.randn(5, 11, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, w).dtype == torch.float64
        assert mixed_linear(x, w, u, p=0.5, unit=unit).dtype == torch.float64


def test_an_anchor_of_another_dtype_is_matched():
    """Trap: anchor and weight in different dtypes or on different devices: matmul raises."""
    w, u = pair(torch.float32)
    for unit in UNITS:
        assert mixed_linear(torch.ones(2, 11), w, u.double(), p=0.5, unit=unit).dtype == torch.float32
        assert mix(w.bfloat16(), u, 0.5, unit=unit).dtype == torch.bfloat16
    assert mixed_embedding(torch.tensor([1]), w, u.bfloat16(), p=0.5).dtype == torch.float32
