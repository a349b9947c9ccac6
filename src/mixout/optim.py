r"""MoFO: AdamW in which only the entries with the largest momentum move.

Each step changes each weight of two dimensions or more, with AdamW's moments m and v, as follows:

.. math:: w_i \leftarrow w_i - \eta \left( \frac{\hat m_i}{\sqrt{\hat v_i} + \epsilon} + \lambda w_i \right)
          \quad \text{where } |m_i| \text{ is among the largest share } \alpha, \text{ else } w_i \leftarrow w_i

The moments of all entries go on. Biases and the gains of norms move whole. So a step changes few weights, and a short
run leaves most of a model near its start; no pretrained weights are kept.

The share is exact up to :data:`SAMPLE` entries. In a larger weight the bound on :math:`|m|` comes from that many
entries at fixed random places: with a share of 0.1 between 0.088 and 0.112 of them move in 99 of 100 steps. A weight in
parts on several ranks (FSDP2) counts as its parts, so nothing is sent.

Source: arXiv 2407.20999 (MoFO), where the largest are chosen by sorting. The decay of the chosen alone is ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from mixout.distances import blocks
from mixout.parts import local

SAMPLE = 2**12


class MoFO(Optimizer):
    r"""AdamW that moves the entries with the largest momentum alone.

    Args:
        params: parameters, or groups of them.
        lr: learning rate :math:`\eta`.
        fraction: the share :math:`\alpha` of each matrix that moves in a step, in (0, 1]. The paper uses 0.05 to 0.2.
            At 1 this is AdamW.
        betas: of the moments, each in [0, 1).
        eps: :math:`\epsilon`, added outside the root.
        weight_decay: :math:`\lambda`.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1, 4))
        >>> weight.grad = torch.tensor([[1.0, -3.0, 2.0, 0.5]])
        >>> MoFO([weight], lr=0.1, fraction=0.25).step()
        >>> [round(float(one), 4) for one in weight[0].detach()]
        [0.0, 0.1, 0.0, 0.0]
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        fraction: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"expected fraction in (0, 1], the share of each matrix that moves, got {fraction}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"expected betas in [0, 1), got {betas}")
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"expected {name} >= 0, got {value}")
        options = {"lr": lr, "fraction": fraction, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; returns what ``closure`` returns, if there is one.

        Raises:
            TypeError: if a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            unmasked = []
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if weight.grad.is_sparse:
                    raise TypeError("expected dense gradients, which MoFO compares, got a sparse one")
                if weight.dim() < 2 or group["fraction"] == 1:
                    unmasked.append(weight)
                else:
                    self._step_matrix(group, weight)
            if unmasked:
                states = [self._state_of(weight) for weight in unmasked]
                means, squares = ([local(state[key]) for state in states] for key in ("exp_avg", "exp_avg_sq"))
                weights, gradients = [local(weight) for weight in unmasked], [local(weight.grad) for weight in unmasked]
                steps = [state["step"] for state in states]
                _adamw(weights, gradients, means, squares, steps, group, group["weight_decay"])
        return loss

    def _step_matrix(self, group: dict[str, Any], weight: Tensor) -> None:
        """Step in blocks that stay in a cache: what AdamW would add is computed in a buffer, and masked."""
        state, fraction, beta1 = self._state_of(weight), group["fraction"], group["betas"][0]
        size, bound, buffers = local(weight).numel(), None, list[Tensor]()
        if size > SAMPLE:
            indices = _places(size, weight.device)
            mean, gradient = (torch.take(local(tensor), indices) for tensor in (state["exp_avg"], weight.grad))
            bound = _bound(mean.lerp_(gradient, 1 - beta1), fraction)
        for w, g, m, v in blocks(weight, weight.grad, state["exp_avg"], state["exp_avg_sq"]):
            if not w.numel():
                continue
            if not buffers or buffers[0].shape != w.shape:  # new memory costs more than what is done in it
                buffers = [torch.empty_like(w), torch.empty_like(w)]
            move, mask = buffers
            _adamw([move.zero_()], [g], [m], [v], [state["step"].clone()], group, 0.0)
            if group["weight_decay"]:
                move.add_(w, alpha=-group["lr"] * group["weight_decay"])
            torch.abs(m, out=mask).ge_(_bound(m, fraction) if bound is None else bound)
            w.addcmul_(move, mask)
        state["step"] += 1

    def _state_of(self, weight: Tensor) -> dict[str, Tensor]:
        """The state of ``weight``, with the content and the keys of AdamW's."""
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")  # known without waiting for a GPU
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        return state


def _adamw(
    weights: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    group: dict[str, Any],
    weight_decay: float,
) -> None:
    """AdamW of torch, on plain tensors; the moments and ``steps`` go on too."""
    beta1, beta2 = group["betas"]
    options = {"beta1": beta1, "beta2": beta2, "lr": group["lr"], "eps": group["eps"], "weight_decay": weight_decay}
    # The fused update of the host reads memory in order, whatever the strides.
    tensors = (*weights, *gradients, *means, *squares)
    fused = all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
    adamw(weights, gradients, means, squares, [], steps, **options, fused=fused, amsgrad=False, maximize=False)


def _bound(momentum: Tensor, fraction: float) -> Tensor:
    """The smallest |m| that moves."""
    magnitudes = momentum.abs().flatten()
    return magnitudes.kthvalue(len(magnitudes) + 1 - max(1, round(fraction * len(magnitudes)))).values


@functools.lru_cache(maxsize=256)
def _places(numel: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(numel)
    return torch.randint(numel, (SAMPLE,), generator=generator, device="cpu").to(device)
