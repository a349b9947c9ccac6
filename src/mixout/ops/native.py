"""The linear in torch's own operations, with torch's own autograd: the least work for the host.

::

    Phi    = lerp(u, w, c)     c = M scale, a coefficient for each row or column
    y      = x Phi^T + b
    grad_w = c (g^T x)

Phi is kept for backward in the dtype of the product, once for each use of the layer; under autocast plain fine-tuning
keeps a cast weight in its place.
For GPUs, which wait for the host where layers are small: an autograd function in Python costs it more time than the
GPU needs for such a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixout.ops.mix import beside


def native_linear(x: Tensor, weight: Tensor, anchor: Tensor | None, bias: Tensor | None, coefficient: Tensor) -> Tensor:
    """Y = x Phi^T + b, with the exact derivative; autocast casts what it reads.

    Args:
        x: (..., in).
        weight: w, (out, in).
        anchor: u, like ``weight``, or None for 0.
        bias: (out,), or None.
        coefficient: M scale, (in,), (1, in) or (out, 1), in the dtype of ``weight``.

    Returns:
        (..., out).

    Example:
        >>> w, u, x = torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[3.0, 5.0]])
        >>> native_linear(x, w, u, None, torch.tensor([0.0, 2.0]))  # p = 1/2, column 1 kept
        tensor([[10.]])
    """
    phi = weight * coefficient if anchor is None else torch.lerp(beside(anchor, weight), weight, coefficient)
    return torch.nn.functional.linear(x, phi, bias)
