"""Bytes that two DDP ranks hand to the collective in a step: every gradient against the kept columns' only.

    python benchmarks/ddp_traffic.py --output benchmarks/results/ddp_traffic.csv

Two gloo processes on this machine, one thread each; the same mixed model twice in each process, once with torch's
all-reduce hook and once with send_kept_columns_, in interleaved pairs of steps. Bytes are counted where
``torch.distributed.all_reduce`` is called. Times are those of two processes that share memory and a processor: they
tell what packing costs, not what a network gains.
"""

from __future__ import annotations

import argparse
import csv
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import mixout
from mixout.bench import cases
from mixout.bench.pairs import Run, interleave
from mixout.bench.table import environment
from mixout.integrations.ddp import send_kept_columns_
from mixout.layers import Mixed

RANKS = 2
SHAPES = ("minilm", "bert-base-3")
PS = (0.1, 0.5, 0.9)
SEQUENCES, LENGTH = 16, 32
PAIRS, WARMUP = 8, 2


class Step:
    """One training step of one model under DDP, and what it hands to the collective."""

    def __init__(self, case: cases.Case, p: float, *, frozen: bool, kept_only: bool) -> None:
        model = cases.build(case, "cpu")
        if frozen:
            for module in model.modules():
                if isinstance(module, nn.Embedding):
                    module.requires_grad_(False)
        mixout.apply_(model, mixout.Mixout(p), seed=0)
        self.model = DistributedDataParallel(model)
        if kept_only:
            send_kept_columns_(self.model)
        else:
            self.model.register_comm_hook(None, allreduce_hook)
        self.optimizer = torch.optim.SGD((q for q in model.parameters() if q.requires_grad), lr=0.001)
        self.batch = {
            name: value[:SEQUENCES, :LENGTH] for name, value in cases.inputs(case, "cpu").items() if name != "labels"
        }
        self.labels = cases.inputs(case, "cpu")["labels"][:SEQUENCES]
        self.bytes: list[int] = []

    def __call__(self) -> None:
        """Forward, backward with synchronisation, step."""
        whole, sent = dist.all_reduce, []

        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  as all_reduce
            sent.append(tensor.nbytes)
            return whole(tensor, *args, **kwargs)

        dist.all_reduce = counted
        try:
            self.model(**self.batch, labels=self.labels).loss.backward()
        finally:
            dist.all_reduce = whole
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.bytes.append(sum(sent))


def seconds(step: Run) -> float:
    """Of one step, all ranks together."""
    dist.barrier()
    start = time.perf_counter()
    step()
    dist.barrier()
    return time.perf_counter() - start


def measure(shape: str, p: float, *, frozen: bool) -> dict[str, Any]:
    """One row."""
    case = cases.find(shape)
    plain, kept = (Step(case, p, frozen=frozen, kept_only=kept_only) for kept_only in (False, True))
    paired = interleave(plain, kept, pairs=PAIRS, warmup=WARMUP, clock=seconds)
    trained = sum(q.numel() for q in kept.model.parameters() if q.requires_grad)
    mixed = sum(module.weight.numel() for module in kept.model.modules() if isinstance(module, Mixed))
    plain_bytes, kept_bytes = (sum(step.bytes) / len(step.bytes) for step in (plain, kept))
    others = 4 * (trained - mixed)
    return {
        "case": shape,
        "embeddings": "frozen" if frozen else "trained",
        "p": p,
        "ranks": RANKS,
        "trained_parameters": trained,
        "mixed_parameters": mixed,
        "plain_bytes": round(plain_bytes),
        "sent_bytes": round(kept_bytes),
        "ratio": kept_bytes / plain_bytes,
        "mixed_ratio": (kept_bytes - others) / (4 * mixed),
        "steps": len(kept.bytes),
        "tokens_per_rank": SEQUENCES * LENGTH,
        "time_ratio": paired.ratio,
        "time_low": paired.low,
        "time_high": paired.high,
        "pairs": paired.pairs,
        "plain_seconds": paired.base,
        "sent_seconds": paired.variant,
    }


def work(rank: int, port: int, output: Path) -> None:
    """One rank; rank 0 writes the table."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    rows = [measure(shape, p, frozen=frozen) for shape in SHAPES for frozen in (False, True) for p in PS]
    if rank == 0:
        constants = environment()
        with output.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, [*rows[0], *constants], lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | constants for row in rows)
        for row in rows:
            print(
                f"{row['case']:<12} embeddings {row['embeddings']:<8} p={row['p']}: {row['plain_bytes']:>12,} to "
                f"{row['sent_bytes']:>12,} bytes ({row['ratio']:.3f}; mixed weights {row['mixed_ratio']:.3f}), "
                f"time {row['time_ratio']:.3f} ({row['time_low']:.3f} to {row['time_high']:.3f})"
            )
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Fork the ranks: one import of torch serves both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="CSV to write")
    output = parser.parse_args().output
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(RANKS):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(rank, port, output)
                code = 0
            except BaseException:  # os._exit prints nothing
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        raise SystemExit("a rank failed; see above")


if __name__ == "__main__":
    main()
