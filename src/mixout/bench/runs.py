"""What is run, a training step or a forward pass of a variant, eager or compiled; and one comparison of two."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mixout.bench.cases import Case, build, inputs
from mixout.bench.pairs import Run, clock_of, interleave
from mixout.bench.plan import Plan
from mixout.bench.table import Row
from mixout.bench.variants import Variant

# More graphs than torch keeps by default for one forward, which all variants of a model share.
_GRAPHS = 64


def model_of(case: Case, variant: Variant, device: torch.device) -> nn.Module:
    """The model of ``case`` as ``variant``, in its mode."""
    return variant.install_(build(case, device)).train(variant.mode == "train")


def called(module: nn.Module, plan: Plan) -> Callable[..., Any]:
    """``module`` as it is called: compiled if the plan says so.

    The whole forward is one graph: a graph break, or more graphs than torch keeps, is an error, not a slow run.
    """
    return torch.compile(module, fullgraph=True, dynamic=False) if plan.compile else module


def compiling(plan: Plan) -> AbstractContextManager[object]:
    """Room for the graphs of all variants, and none left over from before."""
    if not plan.compile:
        return nullcontext()
    torch.compiler.reset()
    patch: AbstractContextManager[object] = torch._dynamo.config.patch(recompile_limit=_GRAPHS)
    return patch


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast for ``bf16``, nothing for ``fp32``."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def train_run(model: nn.Module, case: Case, plan: Plan) -> Run:
    """A training step of ``model``, with its own optimizer; gradients are dropped at its end, as trainers do."""
    call, batch = called(model, plan), inputs(case, plan.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)

    def run() -> None:
        with autocast(case.precision, plan.device):
            loss: Tensor = call(**batch).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def eval_run(model: nn.Module, case: Case, plan: Plan) -> Run:
    """A forward pass of ``model`` in eval mode, without gradients."""
    call, batch = called(model, plan), inputs(case, plan.device)

    def run() -> None:
        with torch.no_grad(), autocast(case.precision, plan.device):
            call(**batch)

    return run


def compare(
    plain: Run,
    other: Run,
    variant: Variant,
    plan: Plan,
    *,
    what: str,
    case: str,
    tokens: int,
    precision: str,
    floor: float,
) -> Row:
    """Time pairs of ``plain`` and ``other``, which is a run of ``variant``."""
    paired = interleave(plain, other, pairs=plan.pairs, warmup=plan.warmup, clock=clock_of(plan.device))
    return Row(
        what=what,
        case=case,
        tokens=tokens,
        precision=precision,
        compiled=plan.compile,
        method=variant.method,
        p=variant.p,
        mode=variant.mode,
        anchor=variant.anchor,
        quantity="time",
        ratio=paired.ratio,
        low=paired.low,
        high=paired.high,
        pairs=paired.pairs,
        floor=floor,
        plain=paired.base,
        value=paired.variant,
    )


def release() -> None:
    """Give back the memory of models that are gone; their modules refer to each other in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
