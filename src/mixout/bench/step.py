"""The time of a whole training step: forward, loss, backward, AdamW.

Every variant is a model of its own with the same initial weights. One variant at a time lies beside the plain model,
so that two models with their optimizers and one anchor have to fit.
"""

from __future__ import annotations

from collections.abc import Iterator

from mixout.bench.cases import Case
from mixout.bench.floor import count
from mixout.bench.plan import Plan, Report
from mixout.bench.runs import compare, compiling, eval_run, model_of, release, train_run
from mixout.bench.table import Row
from mixout.bench.variants import PLAIN, SWEEP, Variant, step


def measure(plan: Plan, report: Report) -> Iterator[Row]:
    """Time every variant of every case, and a few of the first case with smaller batches.

    Args:
        plan: what to measure.
        report: takes a line on each comparison that is begun.
    """
    for case in plan.cases:
        yield from _measure(case, step(plan.device), plan, report)
    for case in plan.smaller:
        yield from _measure(case, SWEEP, plan, report)


def _measure(case: Case, variants: tuple[Variant, ...], plan: Plan, report: Report) -> Iterator[Row]:
    work = count(case)
    release()  # the case before this one
    plain = model_of(case, PLAIN, plan.device)
    with compiling(plan):
        for variant in variants:
            report(f"step: {case.name}, {case.tokens:,} tokens, {variant}: {plan.pairs} pairs with plain")
            run = train_run if variant.mode == "train" else eval_run
            yield compare(
                run(plain.train(variant.mode == "train"), case, plan),
                run(model_of(case, variant, plan.device), case, plan),
                variant,
                plan,
                what="step",
                case=case.name,
                tokens=case.tokens,
                precision=case.precision,
                floor=work.floor(variant.spared),
            )
            release()
