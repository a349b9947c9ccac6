"""Tensors of a linear, and a mask of its columns, for tests."""

import torch


def case(batch, out, inputs, keep, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((*batch, inputs), (out, inputs), (out, inputs), (out,), (*batch, out))
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return tensors, torch.rand(inputs, generator=generator) < keep
