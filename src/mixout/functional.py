"""mix(), mixed_linear() and mixed_embedding(): argument checks, then one of the passes of :mod:`mixout.passes`.

For layers of your own: all take plain tensors and know nothing of modules. In eval mode do not call them; use
``weight``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixout.masks import NOISES, UNITS, Noise, Unit, check_p
from mixout.ops.mix import autocast_dtype
from mixout.ops.reference import GRADIENTS, Gradient
from mixout.passes import FORMS, Form, MixOptions, check_dense, embedding_pass, linear_pass, phi_pass
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
        unit: what shares a random number: ``input`` neuron (mixout), ``output`` neuron, ``element`` (mixconnect), or
            the whole ``layer``.
        gradient: ``exact``, dPhi/dw = M/(1-p); ``paper``, M, as in equation 2 and in the authors' code; or
            ``dense``, 1, a control.
        noise: ``bernoulli``, or ``gaussian`` with the same mean and variance.
        input_dim: the dimension of the input neurons: 1 for (out, in, ...), 0 for (in, out).
        groups: groups of a convolution, whose weight is (out, in / groups, ...).
        stream: where random numbers come from; None for torch's default generators.

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
    options = _checked(weight, anchor, MixOptions(p, unit, gradient, noise, stream), input_dim)
    return phi_pass(weight, anchor, options, input_dim=input_dim, groups=groups)


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
    form: Form = "auto",
) -> Tensor:
    r"""The linear y = x Phi^T + b with one draw of Phi; :func:`mix`, then a linear, in less time and memory.

    Small layers are computed in torch's own operations, which keep Phi for backward. In larger ones nothing as large as
    the weight is kept but an anchor and a mask of elements; :mod:`mixout.ops.linear` describes the forms.

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
        form: ``auto``, by device and size; ``fast``, always torch's own operations where the gradient is exact and a
            unit is a neuron; ``lean``, always what keeps least memory.

    Returns:
        (..., out), under autocast in autocast's dtype.

    Raises:
        TypeError: if ``p`` is not a number, or ``x`` is a nested or sparse tensor.
        ValueError: if an argument is out of its range or shapes do not fit.

    Example:
        >>> x, w = torch.ones(2, 3), torch.ones(4, 3)
        >>> mixed_linear(x, w, w, p=0.9)[0]  # w equals u: the mask makes no difference
        tensor([3., 3., 3., 3.])

    Source: Lee et al. 2020, section 3.
    """
    check_dense(x)
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"expected x of shape (..., {weight.shape[-1]}), got {tuple(x.shape)}")
    options = _checked(weight, anchor, MixOptions(p, unit, gradient, noise, stream, form), 1)
    if x.dtype != weight.dtype and autocast_dtype(x) is None:
        raise ValueError(f"expected x in {weight.dtype}, the weight's dtype, got {x.dtype}; cast it, or use autocast")
    anchor = anchor.detach() if anchor is not None and anchor.requires_grad else anchor
    return linear_pass(x, weight, anchor, bias, options)


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
    occurrences in the batch share one entry of the mask.

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
    mix_options = _checked(weight, anchor, MixOptions(p, unit, gradient, noise, stream), 0)
    return embedding_pass(index, weight, anchor, mix_options, **options)


def _checked(weight: Tensor, anchor: Tensor | None, options: MixOptions, input_dim: int) -> MixOptions:
    """``options`` with p as a number, except in a compiled graph, which cannot look into a tensor."""
    for name, allowed in (("unit", UNITS), ("gradient", GRADIENTS), ("noise", NOISES), ("form", FORMS)):
        if (value := getattr(options, name)) not in allowed:
            raise ValueError(f"expected {name} in {allowed}, got {value!r}")
    if input_dim not in (0, 1):
        raise ValueError(f"expected input_dim 0 or 1, got {input_dim}")
    if weight.dim() < 2:
        raise ValueError(f"expected a weight of at least two dimensions, got shape {tuple(weight.shape)}")
    if not weight.is_floating_point():
        raise ValueError(f"expected a floating point weight, got {weight.dtype}")
    if anchor is not None and anchor.shape != weight.shape:
        raise ValueError(f"expected an anchor of shape {tuple(weight.shape)}, the weight's, got {tuple(anchor.shape)}")
    if anchor is not None and anchor.device != weight.device and not anchor.is_pinned():
        raise ValueError(
            f"expected the anchor on {weight.device}, where the weight is, got {anchor.device}; move it once"
        )
    p = options.p
    if isinstance(p, Tensor) and p.numel() != 1:
        raise ValueError(f"expected p as one number, got a tensor of shape {tuple(p.shape)}")
    if isinstance(p, Tensor) and torch.compiler.is_compiling():
        return options
    return MixOptions(check_p(float(p) if isinstance(p, Tensor) else p, options.noise), *options[1:])
