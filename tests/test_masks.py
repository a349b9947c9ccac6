"""The laws of the masks, their shapes by meaning, and the two sources of randomness."""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mixout
from mixout import masks
from mixout.masks import NOISES, UNITS, check_p, draw, mask_shape, spread
from mixout.seeds import SharedSeed
from mixout.streams import Stream

P = st.floats(0.0, 1.0)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.7, 0.9])
def test_bernoulli_mask_keeps_with_probability_one_minus_p(p):
    torch.manual_seed(0)
    mask = draw((200_000,), p)
    assert mask.dtype == torch.bool
    assert abs(mask.double().mean().item() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / 200_000) + 1e-12


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_gaussian_mask_has_bernoullis_mean_and_variance(p):
    torch.manual_seed(0)
    mask = draw((200_000,), p, noise="gaussian").double()
    assert abs(mask.mean().item() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / 200_000)
    assert mask.var().item() == pytest.approx(p * (1 - p), rel=0.02)
    assert mask.unique().numel() > 100_000


@given(P, st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_ends_are_certain(p, size):
    assert draw((size,), 0.0).all()
    assert not draw((size,), 1.0).any()
    assert draw((size,), p).shape == (size,)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_the_unit_is_defined_by_meaning_not_by_dimension_zero(out, inputs, kernel_dims):
    """Trap: mask axis fixed to dimension 0 is wrong for layers stored as (in, out), embeddings and convolutions."""
    kernel = (3,) * kernel_dims
    ones = (1,) * kernel_dims
    assert mask_shape((out, inputs, *kernel), "input") == (1, inputs, *ones)
    assert mask_shape((out, inputs, *kernel), "output") == (out, 1, *ones)
    assert mask_shape((out, inputs, *kernel), "element") == (out, inputs, *kernel)
    assert mask_shape((inputs, out), "input", input_dim=0) == (inputs, 1)
    assert mask_shape((inputs, out), "output", input_dim=0) == (1, out)


@pytest.mark.parametrize(("rows", "per_group", "groups"), [(8, 2, 4), (6, 1, 6), (12, 1, 6), (6, 3, 2), (4, 5, 1)])
@pytest.mark.parametrize(("unit", "input_dim"), [("input", 1), ("output", 0)], ids=["convolution", "transposed"])
def test_channels_of_a_grouped_convolution_have_one_mask_entry_each(rows, per_group, groups, unit, input_dim):
    """Input channels, or of a transposed convolution output channels: those that lie in the second dimension."""
    shape = (rows, per_group, 3)
    drawn = mask_shape(shape, unit, input_dim=input_dim, groups=groups)
    assert math.prod(drawn) == per_group * groups
    mask = torch.arange(per_group * groups).reshape(drawn)
    full = spread(mask, shape).expand(shape)
    for row in range(rows):
        group = row // (rows // groups)
        for j in range(per_group):
            assert (full[row, j] == group * per_group + j).all()


@pytest.mark.parametrize("bad", [-0.1, 1.2, math.nan, math.inf])
def test_p_outside_its_range_says_expected_and_got(bad):
    with pytest.raises(ValueError, match=r"expected p in \[0, 1\].*got"):
        check_p(bad)


@pytest.mark.parametrize("bad", ["0.5", None, True, [0.5]])
def test_p_that_is_no_number_is_a_type_error(bad):
    with pytest.raises(TypeError, match="expected p to be a number"):
        check_p(bad)


def test_integers_are_probabilities_too():
    assert check_p(1) == 1.0
    assert isinstance(check_p(0), float)


def test_torch_manual_seed_decides_unseeded_masks():
    torch.manual_seed(3)
    first = draw((64,), 0.5)
    assert not draw((64,), 0.5).equal(first)
    torch.manual_seed(3)
    assert draw((64,), 0.5).equal(first)


@pytest.mark.parametrize("noise", NOISES)
def test_a_stream_follows_from_seed_key_and_count_alone(noise):
    one, two, other = Stream(7, "x"), Stream(7, "x"), Stream(8, "x")
    torch.manual_seed(0)
    a = [draw((64,), 0.5, noise=noise, stream=one) for _ in range(3)]
    torch.manual_seed(99)
    torch.rand(17)
    b = [draw((64,), 0.5, noise=noise, stream=two) for _ in range(3)]
    c = [draw((64,), 0.5, noise=noise, stream=other) for _ in range(3)]
    assert all(x.equal(y) for x, y in zip(a, b, strict=True))
    assert not any(x.equal(y) for x, y in zip(a, c, strict=True))
    assert not a[0].equal(a[1])
    assert not a[1].equal(a[2])


def test_a_streams_keys_are_independent():
    assert not draw((64,), 0.5, stream=Stream(7, "a")).equal(draw((64,), 0.5, stream=Stream(7, "b")))


def test_a_stream_does_not_depend_on_reseeding_the_global_generator():
    """Trap: ranks that disagree by accident. One rank seeds torch once, the other before every forward pass."""
    one, two = Stream(7), Stream(7)
    torch.manual_seed(0)
    once = [draw((64,), 0.5, stream=one) for _ in range(4)]
    often = []
    for _ in range(4):
        torch.manual_seed(0)
        often.append(draw((64,), 0.5, stream=two))
    assert all(x.equal(y) for x, y in zip(once, often, strict=True))


def test_a_stream_mask_has_the_right_mean():
    kept = sum(draw((1000,), 0.7, stream=Stream(seed)).sum().item() for seed in range(100))
    assert kept / 100_000 == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 100_000))


@pytest.mark.parametrize("stream", [None, Stream(1)], ids=["default", "stream"])
def test_masks_do_not_depend_on_the_default_dtype(stream):
    torch.set_default_dtype(torch.bfloat16)
    try:
        kept = draw((200_000,), 0.999, stream=stream).float().mean().item()
    finally:
        torch.set_default_dtype(torch.float32)
    assert kept == pytest.approx(0.001, abs=5 * math.sqrt(0.001 / 200_000))


def test_units_are_the_four_documented():
    assert UNITS == ("input", "output", "element", "layer")
    assert NOISES == ("bernoulli", "gaussian")


@pytest.mark.parametrize("p", [0.0, 1 / 256, 0.1, 0.5, 0.9, 1 - 1e-9, 1.0])
def test_element_masks_have_the_law_of_draw(p):
    """The share kept within five standard deviations, in rows and columns."""
    torch.manual_seed(0)
    drawn = masks.draw_elements((1000, 403), p, device=torch.device("cpu"))
    assert drawn.dtype == torch.bool
    assert drawn.shape == (1000, 403)
    count, q = drawn.numel(), 1 - p
    assert abs(int(drawn.sum()) - count * q) <= 5 * (count * q * p) ** 0.5 + 1e-3
    if 0.05 < p < 0.95:  # independent: the variance of row sums is binomial
        variance = float(drawn.sum(1).double().var())
        assert variance == pytest.approx(403 * p * q, rel=0.25)


def test_element_masks_resolve_p_between_two_bytes():
    """p = 0.9 is 230.4 / 256: two neighbours of it that a byte cannot tell apart differ by as many as they should."""
    shape, cpu = (2000, 2000), torch.device("cpu")
    torch.manual_seed(0)
    low = masks.draw_elements(shape, 230.1 / 256, device=cpu)
    torch.manual_seed(0)
    high = masks.draw_elements(shape, 230.9 / 256, device=cpu)
    assert int(low.sum()) - int(high.sum()) == pytest.approx(4e6 * 0.8 / 256, rel=0.1)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.7, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coefficients_of_elements_are_the_mask_times_the_scale(p, dtype):
    """The two forms of a linear draw the same mask."""
    shape, cpu = (31, 7), torch.device("cpu")
    torch.manual_seed(0)
    mask = masks.draw_elements(shape, p, device=cpu)
    torch.manual_seed(0)
    found = masks.draw_element_coefficients(shape, p, dtype, cpu)
    assert found.dtype == dtype
    assert found.equal(mask.to(dtype) * masks.scale_of(p))


class _Generator:
    """What the host knows of a GPU's generator: its seed, and how many numbers it has given."""

    def __init__(self):
        self.offset = 0

    def initial_seed(self):
        return 7

    def get_offset(self):
        return self.offset

    def set_offset(self, offset):
        self.offset = offset


def test_masks_drawn_on_the_host_for_a_gpu_follow_the_gpus_generator(monkeypatch):
    """As dropout's there: the order in which a DataLoader shuffles does not change, and a restored state repeats."""
    generator = _Generator()
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    stream, gpu = Stream(SharedSeed(None)), torch.device("cuda", 0)
    state = torch.get_rng_state()
    first, second = stream.draw((64,), device=gpu), stream.draw((64,), device=gpu)
    assert torch.get_rng_state().equal(state)
    assert generator.offset == 8
    assert not first.equal(second)
    generator.offset = 4
    assert stream.draw((64,), device=gpu).equal(second)
    seeded = Stream(SharedSeed(3), "layer")
    seeded.draw((64,), device=gpu)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize(
    "method",
    [
        mixout.Mixout(0.5),
        mixout.Mixout(0.2),
        mixout.Mixout(0.5, every=2),
        mixout.Mixconnect(0.5),
        mixout.Mixconnect(0.5, noise="gaussian"),
    ],
    ids=str,
)
def test_the_default_device_makes_no_difference(method, seed):
    """As after torch.set_default_device: with meta, which stands for cuda on a machine without one."""
    results = []
    for device in (None, "meta"):
        torch.manual_seed(0)
        model = mixout.apply_(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 700)), method, seed=seed)
        with torch.no_grad():
            model[0].weight.add_(torch.randn(8, 16))
        x = torch.randn(4, 16)
        torch.manual_seed(1)
        # Within a block: in torch 2.7 set_default_device(None) leaves a state in which transformers fails.
        with contextlib.nullcontext() if device is None else torch.device(device):
            outputs = [model(x) for _ in range(3)]
            outputs[-1].sum().backward()
        results.append([*outputs, model[0].weight.grad])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))
