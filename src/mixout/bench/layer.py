"""The time of one linear layer, forward and backward, against ``nn.Linear``; no optimizer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from mixout.bench.floor import Work, linear_flops
from mixout.bench.pairs import Run
from mixout.bench.plan import Plan, Report
from mixout.bench.runs import autocast, called, compare, compiling
from mixout.bench.table import Row
from mixout.bench.variants import WEIGHTS, Variant


def measure(plan: Plan, report: Report) -> Iterator[Row]:
    """Time the layers of BERT-base (on a CPU) or BERT-large (on a GPU) with several numbers of tokens.

    Args:
        plan: what to measure; its cases play no part.
        report: takes a line on each layer that is begun.
    """
    width, tokens = (1024, [1024, 4096, 16384]) if plan.device.type == "cuda" else (768, [512, 2048, 4096])
    shapes = [(width, width), (width, 4 * width), (4 * width, width)]
    if plan.quick:
        shapes, tokens = shapes[1:2], tokens[:1]
    with compiling(plan):
        for in_features, out_features in shapes:
            for rows in tokens:
                report(f"layer: {in_features} x {out_features}, {rows:,} tokens: {plan.pairs} pairs of each method")
                for variant in WEIGHTS:
                    yield measure_one(rows, in_features, out_features, variant, plan)


def measure_one(tokens: int, in_features: int, out_features: int, variant: Variant, plan: Plan) -> Row:
    """One layer of one variant against the plain layer, with the same weights."""
    plain, mixed = (nn.Linear(in_features, out_features, device=plan.device) for _ in range(2))
    mixed.load_state_dict(plain.state_dict())
    precision = "bf16" if plan.device.type == "cuda" else "fp32"
    return compare(
        _run(plain, tokens, precision, plan),
        _run(variant.install_(mixed), tokens, precision, plan),
        variant,
        plan,
        what="layer",
        case=f"{in_features}x{out_features}",
        tokens=tokens,
        precision=precision,
        floor=Work(mixed=linear_flops(tokens, in_features, out_features)).floor(variant.spared),
    )


def _run(layer: nn.Module, tokens: int, precision: str, plan: Plan) -> Run:
    out_features, in_features = next(layer.parameters()).shape
    x = torch.randn(tokens, in_features, device=plan.device, requires_grad=True)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    grad = torch.randn(tokens, out_features, device=plan.device, dtype=dtype)
    call = called(layer, plan)

    def run() -> None:
        with autocast(precision, plan.device):
            y = call(x)
        y.backward(grad)
        x.grad = None
        layer.zero_grad(set_to_none=True)

    return run
