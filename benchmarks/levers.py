"""A roofline from measured ceilings: what the parts of a mixed linear cost, and what step their sum leaves reachable.

    python benchmarks/levers.py --output benchmarks/results/levers-cpu.csv

The floor that FLOPs set (``models.count``) supposes that only matrix products take time and that thin ones are
as fast per FLOP as full ones. Here each operation is timed by itself, each in turn within a round, the lower quartile
over rounds. Tensors go round a pool that no cache holds, since in a model a weight is not in the cache when its layer
comes. For every p::

    sparse    = y + grad_x + thin grad_w + gather + 2 Phi + columns into grad_w     of one linear
    reachable = 1 - sum over the linears of (y + grad_x + grad_w - sparse) / plain step

``reachable`` is the ratio of a whole step of that case whose mixed linears cost no more than their parts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mixout.masks import draw_elements
from models import CASES, PLAIN, build, step
from table import Table

ROUNDS = 15
STEPS = 7
POOL_BYTES = 200_000_000
PS = (0.1, 0.5, 0.9)
PRODUCTS = ("y", "grad_x", "grad_w")


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Equal linears of a case: how many, and their shape."""

    name: str
    count: int
    inputs: int
    out: int


LINEARS = {
    "minilm": [
        Linear(name="attention", count=24, inputs=384, out=384),
        Linear(name="in", count=6, inputs=384, out=1536),
        Linear(name="out", count=6, inputs=1536, out=384),
    ],
    "bert-base-3": [
        Linear(name="attention", count=12, inputs=768, out=768),
        Linear(name="in", count=3, inputs=768, out=3072),
        Linear(name="out", count=3, inputs=3072, out=768),
    ],
}


class Pool:
    """Equal tensors that take turns."""

    def __init__(self, *shape: int) -> None:
        count = max(2, min(64, POOL_BYTES // (4 * shape[0] * shape[1])))
        self.tensors = [torch.randn(shape) for _ in range(count)]
        self.turn = 0

    def __call__(self) -> Tensor:
        """The next one."""
        self.turn = (self.turn + 1) % len(self.tensors)
        return self.tensors[self.turn]


def operations(tokens: int, linear: Linear) -> dict[tuple[str, float], Callable[[], object]]:
    """What is timed, by name and p (0 where it plays no part)."""
    inputs, out = linear.inputs, linear.out
    x, g, w, u = Pool(tokens, inputs), Pool(tokens, out), Pool(out, inputs), Pool(out, inputs)
    coefficient = torch.rand(inputs)
    found: dict[tuple[str, float], Callable[[], object]] = {
        ("y", 0.0): lambda: x() @ w().t(),
        ("grad_x", 0.0): lambda: g() @ w(),
        ("grad_w", 0.0): lambda: g().t() @ x(),
        ("Phi", 0.0): lambda: torch.lerp(u(), w(), coefficient),
        ("element masks", 0.9): lambda: draw_elements((out, inputs), 0.9, device=torch.device("cpu")),
    }
    for p in PS:
        kept = (torch.rand(inputs) >= p).nonzero().squeeze(1)
        thin, columns = torch.randn(tokens, len(kept)), torch.randn(len(kept), out).t()
        found["draw", p] = partial(lambda p: (torch.rand(inputs) >= p).nonzero(), p)
        found["gather", p] = partial(lambda kept: x().index_select(1, kept), kept)
        found["thin grad_w", p] = partial(lambda thin: thin.t() @ g(), thin)
        found["columns into grad_w", p] = partial(
            lambda kept, columns: torch.zeros(out, inputs).index_copy_(1, kept, columns), kept, columns
        )
    return found


def timed(runs: dict[tuple[str, float], Callable[[], object]]) -> dict[tuple[str, float], float]:
    """Seconds of each, the lower quartile over rounds in which each has its turn."""
    seconds: dict[tuple[str, float], list[float]] = {key: [] for key in runs}
    for _ in range(ROUNDS):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    return {key: sorted(values)[len(values) // 4] for key, values in seconds.items()}


def plain_step(name: str) -> float:
    """Seconds of a plain training step of a case, the lower quartile."""
    case, device = CASES[name], torch.device("cpu")
    run = step(PLAIN.apply_(build(case, device)), case, device)
    run()
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[STEPS // 4]


def measured(name: str) -> list[dict[str, str]]:
    """The rows of a case: every operation of each of its linears, their sums, and what step is reachable."""
    whole = plain_step(name)
    rows: list[dict[str, str]] = []

    def add(linear: str, operation: str, p: float, seconds: float, of: float) -> None:
        row = {"case": name, "linear": linear, "operation": operation, "p": f"{p:g}", "ms": f"{1e3 * seconds:.3f}"}
        rows.append(row | {"share_of_plain": f"{seconds / of:.4f}"})

    saved = dict.fromkeys(PS, 0.0)
    for linear in LINEARS[name]:
        found = timed(operations(CASES[name].tokens, linear))
        plain = sum(found[kind, 0.0] for kind in PRODUCTS)
        for (operation, p), seconds in found.items():
            add(linear.name, operation, p, seconds, plain)
        for p in PS:
            parts = sum(found[kind, p] for kind in ("draw", "gather", "thin grad_w", "columns into grad_w"))
            sparse = found["y", 0.0] + found["grad_x", 0.0] + 2 * found["Phi", 0.0] + parts
            add(linear.name, "sparse", p, sparse, plain)
            saved[p] += linear.count * (plain - sparse)
    for p in PS:
        add("whole step", "reachable", p, whole - saved[p], whole)
    return rows


def main() -> None:
    """Time every operation of every linear and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    table = Table(args.output)
    for row in (row for name in LINEARS for row in measured(name)):
        table.add(row)
        place = f"{row['case']} {row['linear']}"
        print(f"{place:<24} {row['operation']:<20} p={row['p']:<4} {row['ms']:>9} ms  {row['share_of_plain']}")


if __name__ == "__main__":
    main()
