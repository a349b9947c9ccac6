"""mix(), mixed_linear() and mixed_embedding(): argument checks and the draw.

For layers of your own: all take plain tensors and know nothing of modules. In eval mode do not call them; use
``weight``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixout import forms
from mixout.masks import NOISES, UNITS, Noise, Unit, check_p, coins, draw, mask_shape, scale_of, spread
from mixout.ops.autocast import autocast_dtype
from mixout.ops.gathered import Draw
from mixout.ops.graph import graph_linear
from mixout.ops.mix import mix as mix_op
from mixout.ops.reference import GRADIENTS, Gradient
from mixout.streams import Stream


def mix(
    weight: Tensor,
    anchor: Tensor | None,
    p: float | Tensor,
    *,
    unit: Unit = "input",
    gradient: Gradient = "exact",
    noise: Noise = "bernoulli",
    input_dim: int = 1,
    groups: int = 1,
    stream: Stream | None = None,
) -> Tensor:
    r"""One draw of Phi(w; u, M) = u + (M / (1-p)) (w - u), with E Phi = w.

    Args:
        weight: w, at least two dimensions: neurons in the first two, then a kernel.
        anchor: u, of the shape and on the device of ``weight``, or pinned on the host; None for u = 0. A constant to
            autograd.
        p: probability that a unit is replaced by the anchor, in [0, 1]. 0 returns ``weight``, 1 the anchor.
        unit: what shares a coin: ``input`` neuron (mixout), ``output`` neuron, or ``element`` (mixconnect).
        gradient: ``exact``, dPhi/dw = M/(1-p); ``paper``, M, as in equation 2 and in the authors' code; or
            ``dense``, 1, a control.
        noise: ``bernoulli``, or ``gaussian`` with the same mean and variance.
        input_dim: the dimension of the input neurons: 1 for (out, in, ...), 0 for (in, out).
        groups: groups of a convolution, whose weight is (out, in / groups, ...).
        stream: a seeded stream of masks; None for torch's default generators.

    Returns:
        Phi, like ``weight``.

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if an argument is out of its range, or ``anchor`` does not fit ``weight``.

    Example:
        >>> w, u = torch.ones(2, 3), torch.zeros(2, 3)
        >>> mix(w, u, 0.0).equal(w), mix(w, u, 1.0).equal(u), mix(u, u, 0.9).equal(u)
        (True, True, True)

    Source: Lee et al. 2020, equation 4 and section 3.
    """
    _check(weight, anchor, unit, gradient, noise, input_dim)
    if not isinstance(p, Tensor):
        p = check_p(p, noise)
        if p == 0.0:
            return weight
    scale = scale_of(p)
    shape = tuple(weight.shape)
    if unit == "element" and not isinstance(p, Tensor) and not torch.compiler.is_compiling():
        mask = coins(shape, p, noise=noise, device=weight.device, stream=stream)()  # as mixed_linear draws it
    else:
        tossed = mask_shape(shape, unit, input_dim=input_dim, groups=groups)
        mask = spread(draw(tossed, p, noise=noise, device=weight.device, stream=stream), shape)
    return mix_op(weight, _match(anchor, weight), mask, scale, gradient=gradient)


def mixed_linear(
    x: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    bias: Tensor | None = None,
    *,
    p: float | Tensor,
    unit: Unit = "input",
    gradient: Gradient = "exact",
    noise: Noise = "bernoulli",
    stream: Stream | None = None,
) -> Tensor:
    r"""Y = x Phi^T + b with one draw of Phi; :func:`mix`, then a linear, in less time and memory.

    For input units and Bernoulli coins with p from .3 on, and under ``torch.compile`` with every p, the backward
    computes the kept columns of the weight's gradient only and keeps only those columns of ``x``; with few tokens Phi
    is not made at all. For every other mask nothing as large as the weight is kept but an anchor. Small layers on a GPU
    under autocast are computed in torch's own operations, which keep Phi where plain fine-tuning keeps a cast weight.

    Args:
        x: (..., in).
        weight: w, (out, in).
        anchor: u, like ``weight``; None for u = 0.
        bias: (out,), never mixed; or None.
        p: probability that a unit is replaced by the anchor, in [0, 1].
        unit: see :func:`mix`.
        gradient: see :func:`mix`.
        noise: see :func:`mix`.
        stream: see :func:`mix`.

    Returns:
        (..., out), under autocast in autocast's dtype.

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if an argument is out of its range or shapes do not fit.

    Example:
        >>> x, w = torch.ones(2, 3), torch.ones(4, 3)
        >>> mixed_linear(x, w, w, p=0.9)[0]  # w equals u: nothing to draw from
        tensor([3., 3., 3., 3.])

    Source: Lee et al. 2020, section 3; the sparse backward is described in docs/design.md.
    """
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"expected x of shape (..., {weight.shape[-1]}), got {tuple(x.shape)}")
    compiling = torch.compiler.is_compiling()
    if compiling and not forms.has_thin_gradient(unit, noise, gradient):
        phi = mix(weight, anchor, p, unit=unit, gradient=gradient, noise=noise, stream=stream)
        return torch.nn.functional.linear(x, phi, bias)
    _check(weight, anchor, unit, gradient, noise, 1)
    if not compiling or not isinstance(p, Tensor):
        p = check_p(float(p) if isinstance(p, Tensor) else p, noise)
        if p == 0.0:
            return torch.nn.functional.linear(x, weight, bias)
    autocast = autocast_dtype(x)
    if x.dtype != weight.dtype and autocast is None:
        raise ValueError(f"expected x in {weight.dtype}, the weight's dtype, got {x.dtype}; cast it, or use autocast")
    dtype = autocast or weight.dtype
    # The same object each time, where it can be: copies from the host are foreseen by it.
    u = anchor.detach() if anchor is not None and anchor.requires_grad else anchor
    if compiling:
        kept = draw((weight.shape[1],), p, stream=stream)
        scale = scale_of(p)
        scale = scale if isinstance(scale, Tensor) else torch.tensor(scale, dtype=torch.float64, device="cpu")
        cast = None if bias is None else bias.to(dtype)
        return graph_linear(x.to(dtype), weight, u, cast, kept, scale, gradient=gradient)
    return forms.linear(
        x, weight, u, bias, p=float(p), unit=unit, gradient=gradient, noise=noise, stream=stream, dtype=dtype
    )


def toss(
    shape: tuple[int, ...],
    device: torch.device | str,
    *,
    p: float | Tensor,
    unit: Unit = "input",
    gradient: Gradient = "exact",
    noise: Noise = "bernoulli",
    stream: Stream | None = None,
) -> Draw | None:
    """The coins of one :func:`mixed_linear`, for a Phi that is made elsewhere; None at p = 0, where nothing is drawn.

    Args:
        shape: (out, in), of the whole weight.
        device: where the mask is read.
        p: see :func:`mix`; so are the others.
        unit: see :func:`mix`.
        gradient: see :func:`mix`.
        noise: see :func:`mix`.
        stream: see :func:`mix`.

    Raises:
        TypeError, ValueError: if ``p`` is out of its range.

    Example:
        >>> toss((2, 3), "cpu", p=1.0).mask()
        tensor([[False, False, False]])
    """
    p = check_p(float(p), noise)
    if p == 0.0:
        return None
    scale = scale_of(p)
    kept = None
    if unit == "element":
        mask: Callable[[], Tensor] = coins(shape, p, noise=noise, device=device, stream=stream)
    else:
        host = draw(mask_shape(shape, unit), p, noise=noise, stream=stream)
        there = host.to(device, non_blocking=True)
        mask = lambda: there  # noqa: E731
        if forms.has_thin_gradient(unit, noise, gradient) and p >= forms.SPARSE_FROM:
            kept = host[0].nonzero().squeeze(1).to(device, non_blocking=True)
    slope = {"exact": scale, "paper": 1.0, "dense": None}[gradient]
    return Draw(mask=mask, kept=kept, scale=scale, gradient_scale=slope)


def mixed_embedding(
    index: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    *,
    p: float | Tensor,
    unit: Unit = "input",
    gradient: Gradient = "exact",
    noise: Noise = "bernoulli",
    stream: Stream | None = None,
    **options: Any,  # noqa: ANN401
) -> Tensor:
    r"""Rows ``index`` of one draw of Phi, without making the rest of Phi.

    An embedding is a linear on one-hot vectors: a token is an input neuron, its row is its unit, and all its
    occurrences in the batch share one coin.

    Args:
        index: integers of any shape.
        weight: w, (tokens, features).
        anchor: u, like ``weight``; None for u = 0.
        p: probability that a unit is replaced by the anchor, in [0, 1].
        unit: ``input`` is a token, ``output`` a feature; see :func:`mix`.
        gradient: see :func:`mix`.
        noise: see :func:`mix`.
        stream: see :func:`mix`.
        options: passed to :func:`torch.nn.functional.embedding` (``padding_idx``, ``sparse``, ...).

    Returns:
        (..., features).

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if an argument is out of its range or shapes do not fit.

    Example:
        >>> w, u = torch.ones(4, 2), torch.zeros(4, 2)
        >>> mixed_embedding(torch.tensor([3]), w, u, p=1.0)
        tensor([[0., 0.]])
    """
    _check(weight, anchor, unit, gradient, noise, 0)
    rows = torch.nn.functional.embedding(index, weight, **options)
    if not isinstance(p, Tensor):
        p = check_p(p, noise)
        if p == 0.0:
            return rows
    scale = scale_of(p)
    tossed = mask_shape(tuple(weight.shape), unit, input_dim=0)
    mask = draw(tossed, p, noise=noise, device=weight.device, stream=stream)
    if unit != "output":
        mask = mask[index]
    match = _match(anchor, weight)
    anchor_rows = None if match is None else torch.nn.functional.embedding(index, match)
    return mix_op(rows, anchor_rows, mask, scale, gradient=gradient)


def _match(anchor: Tensor | None, weight: Tensor) -> Tensor | None:
    return None if anchor is None else anchor.detach().to(weight.device, weight.dtype, non_blocking=True)


def _check(weight: Tensor, anchor: Tensor | None, unit: str, gradient: str, noise: str, input_dim: int) -> None:
    if unit not in UNITS:
        raise ValueError(f"expected unit in {UNITS}, got {unit!r}")
    if gradient not in GRADIENTS:
        raise ValueError(f"expected gradient in {GRADIENTS}, got {gradient!r}")
    if noise not in NOISES:
        raise ValueError(f"expected noise in {NOISES}, got {noise!r}")
    if input_dim not in (0, 1):
        raise ValueError(f"expected input_dim 0 or 1, got {input_dim}")
    if weight.dim() < 2:
        raise ValueError(f"expected a weight of at least two dimensions, got shape {tuple(weight.shape)}")
    if not weight.is_floating_point():
        raise ValueError(f"expected a floating point weight, got {weight.dtype}")
    if anchor is None:
        return
    if anchor.shape != weight.shape:
        raise ValueError(f"expected an anchor of shape {tuple(weight.shape)}, the weight's, got {tuple(anchor.shape)}")
    if anchor.device != weight.device and not anchor.is_pinned():
        raise ValueError(
            f"expected the anchor on {weight.device}, where the weight is, got {anchor.device}; move it once"
        )
