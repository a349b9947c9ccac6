r"""Drop a share of what training has changed, after it: :math:`w \leftarrow u + \frac{M}{1-p} (w - u)`, one draw.

With a random number for each element this is DARE (Yu et al. 2023, arXiv 2311.03099), and one training pass of
mixconnect; with one for each input neuron, one of mixout. No number is scored. In between: :func:`mixout.interpolate_`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from mixout._names import renamed
from mixout.functional import mix
from mixout.layers import Layout, Mixed, entry_of
from mixout.layers.forwards import phi_of
from mixout.layers.mixed import entry_of_mixed
from mixout.masks import check_p
from mixout.measure import covered
from mixout.parts import laid_out, reshard_, whole
from mixout.passes import MixOptions
from mixout.selection import WhereLike
from mixout.sources import AnchorSource, unwrapped
from mixout.streams import Stream


@torch.no_grad()
def drop_(
    model: nn.Module,
    p: float,
    anchor: AnchorSource,
    *,
    unit: Literal["element", "input"] = "element",
    seed: int = 0,
    where: WhereLike = None,
) -> nn.Module:
    """Drop a share ``p`` of w - u and divide the rest by 1 - ``p``; in place.

    Each call starts from the weights as they are, so load the trained ones again before you try another p. Where
    weights lie in parts on several ranks, every rank must call this.

    Args:
        model: the fine-tuned model, or any part of one.
        p: the share, in [0, 1]; 0 leaves w, 1 puts u in its place.
        anchor: u, any source that :func:`mixout.apply_` takes, such as the base model or its state dict.
        unit: ``element``, every number of every parameter is kept or dropped by itself; ``input``, an input neuron is,
            as in mixout, and parameters of one dimension (biases, norms) stay at w.
        seed: of the draw; the parameters' names enter too.
        where: which modules, as in :func:`mixout.apply_`; by default the pretrained body.

    Returns:
        ``model``.

    Raises:
        AnchorMismatchError: if ``anchor`` lacks a parameter, or has another shape.
        InputError: if ``anchor`` is the memory of the model's own weights, as its ``state_dict()`` is.
        TypeError, ValueError: if ``p`` is not a number in [0, 1], ``anchor`` is None, or ``unit`` is another.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> drop_(model, 1.0, {"weight": torch.zeros(1, 2)}).weight.tolist()
        [[0.0, 0.0]]
    """
    if unit not in ("element", "input"):
        raise ValueError(f"expected unit 'element' or 'input', got {unit!r}")
    if anchor is None:
        raise TypeError("expected anchor as the base model, its state dict or a file of it, got None")
    p = check_p(p)
    model, original = unwrapped(model), model
    reshard_(model)
    # A tied weight is dropped once. All anchors first: one that is missing must leave the model as it was.
    for name, module, weight, start in covered(model, anchor, where):
        if unit == "input" and weight.dim() < 2:
            continue
        w = whole(weight)  # what lies in parts is gathered, one weight at a time
        u = torch.zeros_like(w) if start is None else whole(start)
        if unit == "element":  # as one row, whatever the number of dimensions
            phi = mix(w.reshape(1, -1), u.reshape(1, -1), p, unit="element", stream=Stream(seed, name)).view_as(w)
        else:
            entry = entry_of_mixed(module) if isinstance(module, Mixed) else entry_of(module)
            layout = {} if entry is None else entry.weights(module)
            options = MixOptions(p, unit, stream=Stream(seed, name))
            phi = phi_of(w, u, layout.get(name.rpartition(".")[2], Layout()), options)
        weight.copy_(laid_out(phi, weight))
    return original


if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, {"Delta": "mixout.delta.drop_ (and mixout.interpolate_)"})
