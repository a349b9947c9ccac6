"""Layers whose own forward computes with Phi: while it runs, Phi lies where the weight is read.

Any forward that reads its weights as attributes is mixed exactly, with one draw of each weight for one call: all
experts of a stack, whichever kernel computes them; all time steps of a recurrent layer; a packed projection. The
parameters stay where they are, so another layer that shares one is not touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mixout.layers.mixed import Mixed, check_weights, mixes, stays
from mixout.layers.registry import Entry, Layout, find, holder_of
from mixout.passes import MixOptions, phi_pass


def phi_of(weight: Tensor, anchor: Tensor | None, layout: Layout, options: MixOptions) -> Tensor:
    """Phi of a weight that is stored as ``layout`` says."""
    rows, blocks = layout.view(weight)
    near = None if anchor is None else layout.view(anchor)[0]
    phi = phi_pass(rows, near, options, input_dim=0 if layout.transposed else 1, groups=blocks)
    return phi.view_as(weight)


class Lending(Mixed):
    """A layer of a registered class: its forward reads Phi while training and its weights in eval mode."""

    def forward(self, *inputs: Any, **options: Any) -> Any:  # noqa: ANN401  the layer's own
        """As the plain layer."""
        if not mixes(self):
            return super().forward(*inputs, **options)
        self.count_pass()
        check_weights(self)
        entry: Entry = find(self, self._mixed.plain)[1]  # type: ignore[index]  # registered, or it were not mixed
        layouts = entry.weights(self)
        phis = {path: self._phi(path, layouts[path]) for path in self._mixed.anchors}
        if entry.forward is not None:
            return entry.forward(self, *phis.values(), *inputs, **options)
        with self.lent(phis):
            return super().forward(*inputs, **options)

    def _phi(self, path: str, layout: Layout) -> Tensor:
        holder, field = holder_of(self, path)
        weight: Tensor = getattr(holder, field)
        held = self._mixed.anchors[path]
        if stays(weight, held):
            return weight
        options = self.mix_options()._replace(stream=self._mixed.stream.of(path))
        return phi_of(weight, held.beside(weight), layout, options)

    @contextmanager
    def lent(self, phis: dict[str, Tensor]) -> Iterator[None]:
        """Let the attributes of these names be ``phis``; the parameters stay where they are."""
        places = [holder_of(self, path) for path in phis]
        before = [vars(holder).get(field) for holder, field in places]  # replicas of DataParallel hold theirs so
        for (holder, field), phi in zip(places, phis.values(), strict=True):
            vars(holder)[field] = phi
        try:
            yield
        finally:
            for (holder, field), own in zip(places, before, strict=True):
                if own is None:
                    del vars(holder)[field]
                else:
                    vars(holder)[field] = own


class Recurrent(Lending):
    """nn.RNN, nn.LSTM and nn.GRU, which read a list of their weights: one mask for all time steps of a call."""

    _flat_weights: list[Any]
    _flat_weights_names: list[str]

    @contextmanager
    def lent(self, phis: dict[str, Tensor]) -> Iterator[None]:
        """As :meth:`Lending.lent`, in that list."""
        own = self._flat_weights
        self._flat_weights = [
            phis.get(name, weight) for name, weight in zip(self._flat_weights_names, own, strict=True)
        ]
        try:
            yield
        finally:
            self._flat_weights = own
