"""The forwards of mixed layers.

A linear, one whose weight is (in, out), and an embedding have a forward of ours, which saves arithmetic. All others run
their own forward, and while it runs Phi is the attribute that it reads: one draw of each weight for one call. The
parameters stay where they are, so another layer that shares one is not touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixout.anchor import OwnWeight
from mixout.layers.mixed import Mixed, Share, check_weights, entry_of_mixed, mixes, stays
from mixout.layers.registry import Layout, holder_of
from mixout.masks import coefficients, constants, draw_coefficients, mask_shape
from mixout.ops.mix import autocast_dtype
from mixout.parts import check_whole
from mixout.passes import MixOptions, embedding_pass, linear_pass, native_up_to, phi_pass
from mixout.seeds import ranks


def mixed_pass(layer: Mixed, x: Tensor, weight: Tensor, anchor: Tensor | None, bias: Tensor | None) -> Tensor:
    """The linear y = x Phi^T + b with a new draw for ``layer``; weight and anchor are (out, in) views."""
    layer.count_pass()
    return linear_pass(x, weight, anchor, bias, layer.mix_options())


def own_weight(holder: nn.Module, field: str) -> Tensor:
    """The parameter, and not the attribute, which may be the Phi that another thread or a registered parent lends."""
    weight: Tensor | None = holder._parameters.get(field)
    return getattr(holder, field) if weight is None else weight  # replicas of DataParallel have no parameters


@dataclass(frozen=True, slots=True, eq=False)
class Short:
    """What passes in torch's own operations need, once an earlier pass has made the checks."""

    size: tuple[int, ...]  # the mask's shape
    weight: Tensor  # the layer's Parameter; not to be used with another one,
    anchor: Tensor  # with another anchor (this has the weight's dtype and device),
    version: int  # or with another p
    most: float  # numbers in an input from which another form is faster
    p: float
    dtype: torch.dtype  # of weight and anchor
    numel: int
    on_host: bool
    free: bool  # masks follow from torch's default generator, unless ranks have met since
    like: Tensor  # ones of the mask's shape; on a GPU their dropout is M / (1-p) in one kernel
    of_p: tuple[Tensor, Tensor, Tensor]  # see mixout.masks.constants

    @classmethod
    def of(cls, share: Share, weight: Tensor) -> Short | None:
        """For a layer that can be small and has its anchor beside its weight; None for any other."""
        check_whole(weight)  # DeepSpeed's ZeRO-3 is initialised after apply_
        mixing = share.mixing
        p = float(mixing.probability())  # a number: selective checkpointing counts torch's operations
        if isinstance(share.anchor, OwnWeight) or type(weight) is not nn.Parameter or p == 0:
            return None
        anchor = share.anchor.beside(weight)
        if anchor is None or (anchor.dtype, anchor.device) != (weight.dtype, weight.device):
            return None
        if mixing.noise != "bernoulli" or mixing.unit == "element":
            return None
        options = MixOptions(p, mixing.unit, mixing.gradient, mixing.noise, share.stream, mixing.form)
        most = native_up_to(weight, options, autocast=True)
        if most == 0.0 or not (weight.is_cpu or weight.is_cuda):
            return None
        size, on_host = mask_shape(tuple(weight.shape), mixing.unit), weight.is_cpu
        like = torch.ones(size, dtype=torch.float32 if on_host else weight.dtype, device=weight.device)
        if type(like) is not Tensor:  # FakeTensorMode's: not for later passes
            return None
        free, of_p = not share.stream.in_force, constants(p, weight.dtype)
        return cls(
            size, weight, anchor, mixing.version, most, p, weight.dtype, weight.numel(), on_host, free, like, of_p
        )

    def fits(self, share: Share, parameters: dict[str, Any], x: Tensor) -> bool:
        """Whether weight, anchor and p are unchanged, and ``x`` is small enough."""
        weight = self.weight
        return (
            parameters.get("weight") is weight
            and share.anchor.tensor is self.anchor
            and share.mixing.version == self.version
            and weight.dtype is self.dtype  # its data may have been exchanged; other devices and shapes raise in lerp
            and weight.numel() == self.numel
            and weight.is_cpu is self.on_host
            and weight.requires_grad
            and x.numel() < self.most
            and x.layout is torch.strided
            and not x.is_nested
            and (self.on_host or (autocast_dtype(x) or weight.dtype).itemsize == 2)
        )


class MixedLinear(Mixed, nn.Linear):
    """A linear that reads Phi while training and its weight in eval mode."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        share: Share | None = self.__dict__.get("_mixed")
        # Asked first: a graph or a trace must not depend on state that eager passes leave.
        compiling = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if not compiling and share is not None and share.short is not None and self.training:
            # Written inline: where layers are small, Python takes most of a step's time.
            short, parameters = share.short, self._parameters
            if short.fits(share, parameters, input):
                share.passes += 1
                if not short.free or ranks() > 1:
                    weight, period = short.weight, share.mixing.period
                    if period is not None:
                        period.note(f"{share.stream.key}.weight", weight)
                    dtype_device = weight.dtype, weight.device
                    coefficient = draw_coefficients(short.size, short.p, *dtype_device, stream=share.stream)
                elif short.on_host:
                    coefficient = coefficients(torch.rand_like(short.like), short.of_p)
                else:
                    coefficient = torch.dropout(short.like, short.p, True)
                phi = torch.lerp(short.anchor, short.weight, coefficient)
                bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401  .get would read both
                return nn.functional.linear(input, phi, bias)
        if not mixes(self):
            return nn.Linear.forward(self, input)
        parameter = self._parameters.get("weight")
        if parameter is None:  # a replica of DataParallel, which holds plain attributes
            return mixed_pass(self, input, self.weight, self._mixed.anchor.beside(self.weight), self.bias)
        if not compiling:
            self._mixed.short = short = Short.of(self._mixed, parameter)
            if short is not None and short.fits(self._mixed, self._parameters, input):
                # Already in the first pass: selective checkpointing expects the same operations in its recomputation.
                return MixedLinear.forward(self, input)
        return mixed_pass(self, input, parameter, self._mixed.anchor.beside(parameter), self.bias)


class Transposed(Mixed):
    """A linear whose weight is stored as (in, out), as that of GPT-2 in transformers (Conv1D): a unit is a row."""

    bias: Tensor

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401  the layer's own
        """(..., in) to (..., out)."""
        if not mixes(self):
            return super().forward(x)
        weight = own_weight(self, "weight")
        anchor = self._mixed.anchor.beside(weight)
        return mixed_pass(self, x, weight.t(), None if anchor is None else anchor.t(), self.bias)


class MixedEmbedding(Mixed, nn.Embedding):
    """A linear on one-hot vectors, so a token is an input neuron and its row is its unit."""

    def forward(self, input: Tensor) -> Tensor:
        """Indices of any shape to (..., embedding_dim)."""
        if not mixes(self):
            return nn.Embedding.forward(self, input)
        self.count_pass()
        weight = own_weight(self, "weight")
        return embedding_pass(
            input,
            weight,
            self._mixed.anchor.beside(weight),
            self.mix_options(),
            padding_idx=self.padding_idx,
            max_norm=self.max_norm,
            norm_type=self.norm_type,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
        )


def phi_of(weight: Tensor, anchor: Tensor | None, layout: Layout, options: MixOptions) -> Tensor:
    """Phi of a weight that is stored as ``layout`` says."""
    rows, blocks = layout.view(weight)
    anchor_rows = None if anchor is None else layout.view(anchor)[0]
    phi = phi_pass(rows, anchor_rows, options, input_dim=0 if layout.transposed else 1, groups=blocks)
    return phi.view_as(weight)


_LENDING = threading.RLock()


class Lending(Mixed):
    """A layer of a registered class: its forward reads Phi while training and its weights in eval mode."""

    def forward(self, *inputs: Any, **options: Any) -> Any:  # noqa: ANN401  the layer's own
        """As the plain layer."""
        if not mixes(self):
            return super().forward(*inputs, **options)
        self.count_pass()
        check_weights(self)
        entry = entry_of_mixed(self)
        layouts = entry.weights(self)
        phis = {path: self._phi(path, layouts[path]) for path in self._mixed.anchors}
        if entry.forward is not None:
            return entry.forward(self, *phis.values(), *inputs, **options)
        if torch.compiler.is_compiling() or getattr(self, "_is_replica", False):
            with self.lent(phis):
                return super().forward(*inputs, **options)
        # One thread at a time: all of them read the same attributes. Replicas of DataParallel have their own.
        with _LENDING, self.lent(phis):
            return super().forward(*inputs, **options)

    def _phi(self, path: str, layout: Layout) -> Tensor:
        holder, field = holder_of(self, path)
        weight = own_weight(holder, field)
        anchor, stream = self._mixed.anchors[path], self._mixed.stream
        if stays(weight, anchor):
            return weight
        return phi_of(weight, anchor.beside(weight), layout, self.mix_options(stream.of(path)))

    @contextmanager
    def lent(self, phis: dict[str, Tensor]) -> Iterator[None]:
        """Let the attributes that ``phis`` names be its values; the parameters stay where they are."""
        attributes = [holder_of(self, path) for path in phis]
        saved = [vars(holder).get(field) for holder, field in attributes]  # not None in replicas of DataParallel
        for (holder, field), phi in zip(attributes, phis.values(), strict=True):
            vars(holder)[field] = phi
        try:
            yield
        finally:
            for (holder, field), weight in zip(attributes, saved, strict=True):
                if weight is None:
                    del vars(holder)[field]
                else:
                    vars(holder)[field] = weight


class Recurrent(Lending):
    """nn.RNN, nn.LSTM and nn.GRU, which read a list of their weights: one mask for all time steps of a call."""

    _flat_weights: list[Any]
    _flat_weights_names: list[str]
    _update_flat_weights: Callable[[], None]

    @contextmanager
    def lent(self, phis: dict[str, Tensor]) -> Iterator[None]:
        """As :meth:`Lending.lent`, in the list of weights."""
        # Where weights were exchanged torch makes a new list. It does so now, not in the forward, which would lose Phi.
        self._update_flat_weights()
        weights, names = self._flat_weights, self._flat_weights_names
        self._flat_weights = [phis.get(name, weight) for name, weight in zip(names, weights, strict=True)]
        try:
            yield
        finally:
            self._flat_weights = weights
