"""Convolutions: one draw per input channel, read off by an explicit reference with the same Phi."""

import pytest
import torch
from torch import nn

import mixout

CASES = {
    "conv1d": (nn.Conv1d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3}, (2, 4, 9)),
    "conv1d_circular": (
        nn.Conv1d,
        {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 2, "padding_mode": "circular"},
        (2, 4, 9),
    ),
    "conv2d_stride": (
        nn.Conv2d,
        {"in_channels": 3, "out_channels": 5, "kernel_size": (3, 2), "stride": 2, "padding": 1, "bias": False},
        (2, 3, 9, 8),
    ),
    "conv2d_reflect": (
        nn.Conv2d,
        {"in_channels": 3, "out_channels": 5, "kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        (2, 3, 6, 6),
    ),
    "conv2d_groups": (nn.Conv2d, {"in_channels": 6, "out_channels": 9, "kernel_size": 2, "groups": 3}, (2, 6, 5, 5)),
    "conv2d_depthwise": (nn.Conv2d, {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "groups": 6}, (1, 6, 5, 5)),
    "conv2d_multiplier": (
        nn.Conv2d,
        {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "groups": 4},
        (1, 4, 5, 5),
    ),
    "conv3d_same": (
        nn.Conv3d,
        {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": "same", "dilation": 2},
        (1, 2, 5, 6, 7),
    ),
}


@pytest.mark.parametrize("unit", ["input", "output", "element"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_convolution_with_its_units_by_meaning(case, unit):
    """Trap: mask axis fixed to dimension 0 has the wrong meaning for convolutions."""
    kind, options, shape = case
    torch.manual_seed(2)
    p = 0.5
    plain, oracle = kind(**options).double(), kind(**options).double()
    oracle.load_state_dict(plain.state_dict())
    layer = mixout.apply_(plain, mixout.Mixout(p, unit=unit), where=lambda *_: True)
    u = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    w = layer.weight.detach().clone()
    torch.manual_seed(1)
    groups = options.get("groups", 1)
    phi = mixout.functional.mix(w, u, p, unit=unit, groups=groups)
    mask = ~torch.isclose(phi, u, rtol=1e-12)
    torch.testing.assert_close(phi, u + mask * (w - u) / (1 - p))
    per_group, rows = w.shape[1], w.shape[0] // groups
    flat = mask.flatten(2)
    if unit == "input":
        blocks = flat.unflatten(0, (groups, rows))
        assert (blocks == blocks[:, :1, :, :1]).all()  # shared by the group's outputs and by the kernel
        drawn = blocks[:, 0, :, 0]
        assert drawn.numel() == options["in_channels"] == groups * per_group
        assert drawn.any()
        assert not drawn.all()
    elif unit == "output":
        assert (flat == flat[:, :1, :1]).all()

    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    y = layer(x)
    x_leaf = x.detach().clone().requires_grad_()
    with torch.no_grad():
        oracle.weight.copy_(phi)
    reference = oracle(x_leaf)
    torch.testing.assert_close(y, reference)
    y.pow(2).sum().backward()
    reference.pow(2).sum().backward()
    torch.testing.assert_close(x.grad, x_leaf.grad)
    torch.testing.assert_close(layer.weight.grad, oracle.weight.grad * mask / (1 - p))
