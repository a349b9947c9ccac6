"""The memory of a training step: what autograd keeps for backward, the anchors, and on a GPU the peak.

One model at a time is in memory. Weights, buffers and anchors are there anyway and do not count as kept for backward;
a storage that several operations keep counts once, and as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

from mixout.bench.cases import Case, inputs
from mixout.bench.plan import Plan, Report
from mixout.bench.runs import autocast, called, compiling, model_of, release, train_run
from mixout.bench.table import Row
from mixout.bench.variants import PLAIN, Variant, anchors, step


def measure(plan: Plan, report: Report) -> Iterator[Row]:
    """Measure every variant of every case that trains.

    Args:
        plan: what to measure; the number of pairs plays no part.
        report: takes a line on each model.
    """
    for case in plan.cases:
        with compiling(plan):
            plain = usage(case, PLAIN, plan, report)
            for variant in step(plan.device):
                if variant.mode == "train":
                    of_variant = usage(case, variant, plan, report)
                    yield from (_row(case, variant, plan, name, plain[name], of_variant[name]) for name in plain)


def usage(case: Case, variant: Variant, plan: Plan, report: Report) -> dict[str, int]:
    """Bytes of ``variant`` by quantity: ``saved``, ``saved+anchor``, and on a GPU ``peak``."""
    report(f"memory: {case.name}, {case.tokens:,} tokens, {variant}")
    release()
    before = torch.cuda.memory_allocated() if plan.device.type == "cuda" else 0
    model = model_of(case, variant, plan.device)
    call, batch = called(model, plan), inputs(case, plan.device)

    def forward() -> Tensor:
        with autocast(case.precision, plan.device):
            loss: Tensor = call(**batch).loss
        return loss

    held = list(anchors(model))
    saved = saved_bytes(forward, chain(model.parameters(), model.buffers(), held))
    there = sum(anchor.nbytes for anchor in held if anchor.device.type == plan.device.type)
    found = {"saved": saved, "saved+anchor": saved + there}
    if plan.device.type == "cuda":
        run = train_run(model, case, plan)
        run()  # makes the optimizer's state
        torch.cuda.reset_peak_memory_stats()
        # Masks are random, and with them how many columns are kept.
        for _ in range(plan.pairs):
            run()
        torch.cuda.synchronize()
        found["peak"] = torch.cuda.max_memory_allocated() - before
    return found


def saved_bytes(forward: Callable[[], Tensor], own: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps between forward and backward, without the storages of ``own``.

    Args:
        forward: what is run; its result keeps the graph alive.
        own: tensors that are there anyway.

    Example:
        >>> x, w = torch.ones(5, 4), torch.ones(3, 4, requires_grad=True)
        >>> saved_bytes(lambda: torch.nn.functional.linear(x, w), [w])  # x, 20 floats, for the gradient of w
        80
    """
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Without its history: an operation that kept its own result would hold itself, and all before it, for ever.
        bare = tensor.detach()
        kept[bare.untyped_storage().data_ptr()] = bare
        return bare

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    there = {tensor.untyped_storage().data_ptr() for tensor in own}
    total = sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in there)
    del result
    return total


def _row(case: Case, variant: Variant, plan: Plan, quantity: str, plain: int, value: int) -> Row:
    ratio = value / plain
    return Row(
        what="memory",
        case=case.name,
        tokens=case.tokens,
        precision=case.precision,
        compiled=plan.compile,
        method=variant.method,
        p=variant.p,
        mode=variant.mode,
        anchor=variant.anchor,
        quantity=quantity,
        ratio=ratio,
        low=ratio,
        high=ratio,
        pairs=1,
        floor=None,
        plain=plain,
        value=value,
    )
