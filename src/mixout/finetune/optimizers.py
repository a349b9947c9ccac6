r"""Optimizers for fine-tuning: AdamW, SGD, BERTAdam, and :class:`mixout.optim.MoFO`; layer-wise learning rates.

BERTAdam is what BERT was released with and what the mixout paper means by Adam: no bias correction, so step t is
:math:`(1-\beta_1^t)/\sqrt{1-\beta_2^t}` times as long as AdamW's (up to eps): 3.2 times at the first step, 6.6 times at
the 12th, 1.3 times at the 1000th. In that setting restarts fail, and mixout helps most; Mosbach et al. 2021 and Zhang
et al. 2021 found that the correction removes most of the failures.

Layer-wise rates (Howard and Ruder 2018): rate * decay ** (blocks above it + 1) for a block, so that the embeddings
learn slowest and the head at the full rate.

SGD is plain: no momentum. It is the control in which the gradient's size matters, since nothing divides by it: with
``gradient=paper`` mixout's steps are shorter by 1-p there. It needs a far higher learning rate than Adam.

Decay towards the anchor is not here: ``mixout.AnchorDecay`` acts on any optimizer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from mixout.finetune.levels import layer_levels
from mixout.finetune.settings import Settings
from mixout.optim import MoFO


class BERTAdam(AdamW):
    r"""Adam without bias correction, with decoupled weight decay: arguments and their checks are those of AdamW.

    .. math::
        m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        w \leftarrow w - \eta \left( \frac{m}{\sqrt{v} + \epsilon} + \lambda w \right)

    The original has an epsilon of 1e-6 and also clips the gradient of each parameter; here clipping is the trainer's.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> weight.grad = torch.ones(1)
        >>> BERTAdam([weight], lr=0.1, eps=0.0, weight_decay=0.0).step()
        >>> round(1 - weight.item(), 4)  # lr * (1 - 0.9) / sqrt(1 - 0.999)
        0.3162
    """

    def _init_group(self, group: dict[str, Any], *lists: Any) -> bool:  # noqa: ANN401  AdamW's own, version by version
        """Let every parameter begin at step infinity, where AdamW's corrections 1 - beta ** step are 1 and stay so."""
        stateless = [p for p in group["params"] if p.grad is not None and not self.state.get(p)]
        has_complex: bool = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        for p in stateless:
            self.state[p]["step"].fill_(torch.inf)
        return has_complex


def build(model: nn.Module, settings: Settings) -> Optimizer:
    """The optimizer that ``settings`` name; InputError for layer-wise rates in a model without a list of blocks."""
    parameter_groups = groups(model, settings)
    parameters = [parameter for group in parameter_groups for parameter in group["params"]]
    # Whether torch's fused update exists for every parameter's device and dtype.
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "xpu", "mps") for p in parameters)
    if settings.optimizer == "bertadam":
        return BERTAdam(parameter_groups, lr=settings.learning_rate, eps=1e-6, fused=fused)
    if settings.optimizer == "mofo":
        return MoFO(parameter_groups, lr=settings.learning_rate)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameter_groups, lr=settings.learning_rate)
    return AdamW(parameter_groups, lr=settings.learning_rate, fused=fused)


def groups(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Parameter groups: one for each learning rate, with decay and without (biases and norms).

    The optimizer's state is saved by position, so the order is that of the model's parameters, and a resumed run
    finds the same groups.
    """
    levels = layer_levels(model) if settings.layer_decay != 1.0 else {}
    top = max(levels.values(), default=0)
    group_by_key: dict[tuple[int, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        level = levels.get(name, top)
        # Biases and the gains of normalisations do not decay, whatever their name.
        decay = settings.weight_decay if parameter.ndim > 1 and not name.endswith("bias") else 0.0
        rate = settings.learning_rate * settings.layer_decay ** (top - level)
        group = group_by_key.setdefault((level, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return list(group_by_key.values())
