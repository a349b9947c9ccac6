"""Mixout under DistributedDataParallel: send the kept columns' gradients only, and find ranks that disagree.

With equal masks on all ranks the gradient of a mixed weight is zero in the same columns everywhere, so of N weights
(1-p) N travel instead of N. Each rank knows the kept columns K from its own stream of masks: nothing is sent to agree
on them, and no device is asked. Several passes before one synchronisation (``no_sync``) send the union of their
columns.

It does not wrap a model and changes no result: the average is DDP's. It needs torch only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mixout.record import applied_to
from mixout.errors import MixoutError, NothingMixedError, RankMismatchError
from mixout.layers import Mixed, is_linear


def check_ranks(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Compare method, layers, anchors, p, seed and the number of masks drawn on all ranks; every rank must call it.

    Of each anchor a few numbers are compared, not all. With ``scope="rank"`` seed and numbers of masks may differ.

    Args:
        model: a model that carries a method, in DDP or not.
        group: the ranks to compare; None for all.

    Raises:
        RankMismatchError: on every rank, if one differs from the first; the message says in what.
        NotAppliedError: if the model carries no method.
    """
    own = _facts(model)
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, own, group=group)
    for rank, facts in enumerate(every):
        for what, first in every[0].items():
            if facts.get(what) != first:
                raise RankMismatchError(
                    f"expected the same {what} on every rank, got {first} on rank 0 and {facts.get(what)} on rank "
                    f'{rank}; {_REMEDIES.get(what, _APPLY_ALIKE)}, or give each rank its own masks with scope="rank"'
                )


_APPLY_ALIKE = "apply the same method with the same seed to the same weights on every rank"
_REMEDIES = {
    "p": "set p from the step, which all ranks share",
    "draws": "call every mixed layer equally often on every rank while the model is in training mode",
}


def _facts(model: nn.Module) -> dict[str, Any]:
    found = applied_to(model)
    facts: dict[str, list[Any]] = {
        "method": [applied.seed.subject for applied in found],
        "scope": [applied.seed.scope for applied in found],
        "p": [None if applied.mixing is None else float(applied.mixing.p) for applied in found],
    }
    if all(applied.seed.scope == "all" for applied in found):
        facts["seed"] = [applied.seed.value for applied in found]
        facts["draws"] = [{m._mixed.stream.key: m._mixed.stream.count for m in model.modules() if isinstance(m, Mixed)}]
    return {what: values[0] if len(values) == 1 else values for what, values in facts.items()}


def send_kept_columns_(ddp: DistributedDataParallel) -> None:
    """From now on ``ddp`` averages of a mixed weight's gradient the kept columns only; the result stays the same.

    Linear layers (also transformers' ``Conv1D``) with input units and Bernoulli coins are meant; every other gradient
    travels as usual. Before each synchronisation 16 bytes tell whether all ranks agree; if not, every rank raises.

    On one rank nothing is done. Gradients must be freed between steps (``zero_grad()``, whose default is
    ``set_to_none=True``): where they are only set to zero, columns of old steps travel too. p must not change between a
    forward and its synchronisation.

    Args:
        ddp: a model that :func:`mixout.apply_` was called on, wrapped; without a communication hook of its own.

    Raises:
        TypeError: if ``ddp`` is no DistributedDataParallel.
        MixoutError: if ranks have masks of their own.
        NothingMixedError: if no layer has columns to leave out.
        RankMismatchError: here, if ranks applied different things; in a backward pass, if they drew different masks.
    """
    if not isinstance(ddp, DistributedDataParallel):
        raise TypeError(f"expected a DistributedDataParallel, got {type(ddp).__name__}; wrap the model first")
    if any(applied.seed.scope == "rank" for applied in applied_to(ddp)):
        raise MixoutError(
            "expected equal masks on all ranks, got scope='rank', where each rank keeps other columns; "
            "apply_ with scope='all', or leave this hook out"
        )
    layers = _sparse_layers(ddp)
    if not layers:
        raise NothingMixedError(
            "expected a mixed linear layer with input units and Bernoulli coins, got none; leave this hook out"
        )
    if dist.get_world_size(ddp.process_group) == 1:
        return
    # On the host, whatever the gradients' backend is: comparing must not wait for a device.
    members = dist.get_process_group_ranks(ddp.process_group)
    host = dist.new_group(members, backend="gloo", use_local_synchronization=True)
    check_ranks(ddp, host)
    state = _KeptColumns(ddp=ddp, layers=layers, host=host)
    # A lambda: DDP compares annotations with classes and would refuse those of this file, which are strings.
    ddp.register_comm_hook(state, lambda state, bucket: state.reduce(bucket))


def _sparse_layers(root: nn.Module) -> dict[Tensor, _Layer]:
    holders: dict[Tensor, int] = {}
    for module in root.modules():
        for parameter in module.parameters(recurse=False):
            holders[parameter] = holders.get(parameter, 0) + 1
    return {
        module.weight: _Layer(module)
        for module in root.modules()
        if isinstance(module, Mixed)
        and is_linear(module)
        and module.weight.requires_grad
        and holders[module.weight] == 1  # a tied weight has gradients from elsewhere
        and (module._mixed.mixing.unit, module._mixed.mixing.noise) == ("input", "bernoulli")
        and module._mixed.mixing.gradient != "dense"
    }


class _Layer:
    """Which draws of one layer are in the gradient that its weight has accumulated."""

    def __init__(self, module: Mixed) -> None:
        self.module = module
        self.dim = 1 if isinstance(module, nn.Linear) else 0
        self.since = self.seen = module._mixed.stream.count
        module.weight.register_hook(self._before_accumulation)  # type: ignore[no-untyped-call]

    def _before_accumulation(self, _grad: Tensor) -> None:
        if self.module.weight.grad is None:  # freed: what was drawn before the last backward pass is not in it
            self.since = self.seen
        self.seen = self.module._mixed.stream.count

    def kept(self) -> Tensor | None:
        """Indices of the columns that may be other than zero; None for all."""
        p, stream = float(self.module._mixed.mixing.p), self.module._mixed.stream
        if p == 0:
            return None
        kept = torch.zeros(self.module.weight.shape[self.dim], dtype=torch.bool)
        for count in range(self.since + 1, stream.count + 1):
            kept |= stream.drawn(count, len(kept)) >= p
        return kept.nonzero().squeeze(1)


@dataclass(kw_only=True)
class _Piece:
    """One parameter's share of a message."""

    grad: Tensor
    dim: int
    kept: Tensor | None

    @property
    def shape(self) -> list[int]:
        if self.kept is None:
            return list(self.grad.shape)
        return [len(self.kept) if i == self.dim else size for i, size in enumerate(self.grad.shape)]

    def pack(self, message: Tensor) -> Tensor:
        """Write into ``message``; return how many numbers are left behind that are neither zero nor nan."""
        if self.kept is None:
            message.copy_(self.grad)
            return message.new_zeros((), dtype=torch.int64)
        torch.index_select(self.grad, self.dim, self.kept, out=message)
        # A column that is not kept may hold 0 times infinity, where a loss scale was too large.
        return _count(self.grad) - _count(message)

    def unpack(self, message: Tensor) -> None:
        if self.kept is None:
            self.grad.copy_(message)
        else:
            self.grad.index_copy_(self.dim, self.kept, message)


def _count(x: Tensor) -> Tensor:
    return torch.count_nonzero(x) - torch.count_nonzero(x.isnan())


@dataclass(kw_only=True)
class _KeptColumns:
    """The hook: reduces one bucket after the other, of which the first in a backward pass has index 0."""

    ddp: DistributedDataParallel
    layers: dict[Tensor, _Layer]
    host: dist.ProcessGroup
    left_behind: Tensor | None = None

    def reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:  # noqa: ANN401  mypy does not know dist.GradBucket
        if bucket.index() == 0:
            self._compare()
            self._check_left_behind()
        buffer: Tensor = bucket.buffer()
        pieces = [self._piece(*pair) for pair in zip(bucket.parameters(), bucket.gradients(), strict=True)]
        sizes = [torch.Size(piece.shape).numel() for piece in pieces]
        message = buffer.new_empty(sum(sizes))
        parts = [part.view(piece.shape) for part, piece in zip(torch.split(message, sizes), pieces, strict=True)]
        for piece, part in zip(pieces, parts, strict=True):
            left = piece.pack(part)
            self.left_behind = left if self.left_behind is None else self.left_behind + left
        if not buffer.is_cuda:  # a GPU is asked in the next pass, when it knows
            self._check_left_behind()
        message.div_(dist.get_world_size(self.ddp.process_group))

        def unpack(done: torch.futures.Future[Any]) -> Tensor:
            done.value()  # raises what the collective raised
            for piece, part in zip(pieces, parts, strict=True):
                piece.unpack(part)
            return buffer

        sent: Any = dist.all_reduce(message, group=self.ddp.process_group, async_op=True)
        future: torch.futures.Future[Tensor] = sent.get_future().then(unpack)
        return future

    def _piece(self, parameter: Tensor, grad: Tensor) -> _Piece:
        layer = self.layers.get(parameter)
        kept = None if layer is None else layer.kept()
        return _Piece(
            grad=grad,
            dim=1 if layer is None else layer.dim,
            kept=None if kept is None else kept.to(grad.device, non_blocking=True),
        )

    def _compare(self) -> None:
        digest = hashlib.blake2b(repr(_facts(self.ddp)).encode(), digest_size=7).digest()
        number = int.from_bytes(digest, "little")
        bounds = torch.tensor([number, -number], device="cpu")
        dist.all_reduce(bounds, op=dist.ReduceOp.MAX, group=self.host)
        if int(bounds[0]) != -int(bounds[1]):
            check_ranks(self.ddp, self.host)

    def _check_left_behind(self) -> None:
        if self.left_behind is None:
            return
        count, self.left_behind = int(self.left_behind), None
        if count:
            raise MixoutError(
                f"expected no gradient outside the columns that mixout kept, got {count} numbers: a mixed weight is "
                "used outside its layer (a penalty in the loss), or p changed between forward and backward; "
                "train without send_kept_columns_"
            )
