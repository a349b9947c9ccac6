"""What each lever on a mixed linear's cost could move, as a share of plain fine-tuning's three GEMMs of that linear.

    python benchmarks/levers.py --output benchmarks/results/levers-cpu.csv

Single operations, each in turn within a round, the lower quartile over rounds. Tensors go round a pool that no cache
holds, since in a model a weight is not in the cache when its layer comes.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mixout.bench.table import environment
from mixout.masks import coins

SHAPES = {
    "bert-base attention": (4096, 768, 768),
    "bert-base in": (4096, 768, 3072),
    "minilm attention": (512, 384, 384),
}
ROUNDS = 15
POOL_BYTES = 200_000_000


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


def operations(tokens: int, inputs: int, out: int) -> dict[tuple[str, float], Callable[[], object]]:
    """What is timed, by name and p (0 where it plays no part)."""
    x, g, w, u = Pool(tokens, inputs), Pool(tokens, out), Pool(out, inputs), Pool(out, inputs)
    coefficient = torch.rand(inputs)
    found: dict[tuple[str, float], Callable[[], object]] = {
        ("gemm y", 0.0): lambda: x() @ w().t(),
        ("gemm grad_x", 0.0): lambda: g() @ w(),
        ("gemm grad_w", 0.0): lambda: g().t() @ x(),
        ("zero-fill of grad_w", 0.0): lambda: torch.zeros(out, inputs),
        ("Phi by lerp", 0.0): lambda: torch.lerp(u(), w(), coefficient),
        ("element coins", 0.9): coins((out, inputs), 0.9),
    }
    for p in (0.1, 0.5, 0.9):
        kept = (torch.rand(inputs) >= p).nonzero().squeeze(1)
        columns, thin = torch.randn(out, len(kept)), torch.randn(tokens, len(kept))
        found |= {
            ("gather of x[:, K]", p): lambda kept=kept: x().index_select(1, kept),
            ("gemm grad_w[:, K]", p): lambda thin=thin: g().t() @ thin,
            ("columns into grad_w", p): lambda kept=kept, columns=columns: w().index_copy_(1, kept, columns),
            ("Phi by copy of columns", p): lambda kept=kept, columns=columns: u().clone().index_copy_(1, kept, columns),
        }
    return found


def main() -> None:
    """Time every operation of every shape and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    rows = []
    for name, shape in SHAPES.items():
        timed = operations(*shape)
        seconds: dict[tuple[str, float], list[float]] = {key: [] for key in timed}
        for _ in range(ROUNDS):
            for key, run in timed.items():
                start = time.perf_counter()
                run()
                seconds[key].append(time.perf_counter() - start)
        lower = {key: sorted(values)[len(values) // 4] for key, values in seconds.items()}
        plain = sum(lower[f"gemm {kind}", 0.0] for kind in ("y", "grad_x", "grad_w"))
        for (what, p), value in lower.items():
            row = {"linear": name, "tokens": shape[0], "operation": what, "p": p, "ms": f"{1e3 * value:.3f}"}
            rows.append(row | {"share_of_plain": f"{value / plain:.4f}"} | environment())
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"{row['linear']:<20} {row['operation']:<24} p={row['p']:<4} {row['ms']:>8} ms  {row['share_of_plain']}")


if __name__ == "__main__":
    main()
