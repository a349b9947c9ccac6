"""What the host spends on a training step of a model whose matrices cost nothing, as a ratio to plain fine-tuning.

    python benchmarks/host.py

Whole steps (forward, loss, backward, fused AdamW) of a BERT of 12 layers of width 16 on 2 x 8 tokens, under autocast in
bfloat16, on one thread. All time goes to Python and to torch's dispatch: what a GPU waits for where layers are small.
Times are *process* times of interleaved pairs with plain fine-tuning, every dropout off, so that other processes
disturb them little; the first row is plain against itself, the noise. ``operators`` are the calls of torch's operators
in one step, nested ones included, and ``launches`` the GPU's kernels, counted on the same model on a GPU where there is
one; both by torch's profiler. Writes ``benchmarks/results/host.csv``; about 2 minutes on a core of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rows import Row, show, with_machine, write
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import mixout
from mixout.bench.cases import Case, build
from mixout.bench.pairs import Run, interleave
from mixout.bench.plan import Plan
from mixout.bench.runs import train_run
from mixout.functional import Form

RESULTS = Path(__file__).parent / "results" / "host.csv"
COLUMNS = ("method", "form", "seed", "ratio", "low", "high", "pairs", "plain_ms", "ms", "operators", "launches", "load")
WARMUP = 10
CASE = Case(
    name="costs-nothing",
    family="bert",
    width=16,
    intermediate=64,
    heads=2,
    key_heads=2,
    layers=12,
    vocabulary=100,
    batch=2,
    length=8,
    precision="bf16",
    gpu=False,
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A method, and the options of ``apply_`` that change what it costs."""

    method: str
    form: Form = "auto"
    seed: int | None = None

    def apply_(self, model: nn.Module) -> nn.Module:
        """Make ``model`` train so."""
        return mixout.apply_(model, self.method, form=self.form, seed=self.seed)


PLAIN = Setting(method="dropout(0.0)")
SETTINGS = (
    PLAIN,
    Setting(method="dropout(0.1)"),
    Setting(method="mixout(0.9)"),
    Setting(method="mixout(0.5)"),
    Setting(method="mixout(0.9)", form="fast"),
    Setting(method="mixout(0.5)", form="fast"),
    Setting(method="mixout(0.9)", seed=1),
    Setting(method="mixconnect(0.9)"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each setting and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200, help="timed pairs of each row; default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="table to write; default: %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for setting in SETTINGS:
        rows.append(with_machine(measured(setting, args.pairs)))
        write(args.output, rows)
    print(show(rows, COLUMNS))


def measured(setting: Setting, pairs: int) -> Row:
    """The row of one setting."""
    run = step(setting, "cpu")
    timed = interleave(step(PLAIN, "cpu"), run, pairs=pairs, warmup=WARMUP, clock=process_seconds)
    return {
        "method": setting.method,
        "form": setting.form,
        "seed": "" if setting.seed is None else setting.seed,
        "ratio": f"{timed.ratio:.3f}",
        "low": f"{timed.low:.3f}",
        "high": f"{timed.high:.3f}",
        "pairs": timed.pairs,
        "plain_ms": f"{1e3 * timed.base:.2f}",
        "ms": f"{1e3 * timed.variant:.2f}",
        "operators": operators(run),
        "launches": launches(step(setting, "cuda")) if torch.cuda.is_available() else "",
    }


def step(setting: Setting, device: str) -> Run:
    """A training step of the model on ``device``."""
    plan = Plan(cases=(CASE,), pairs=1, quick=False, compile=False, device=torch.device(device))
    return train_run(setting.apply_(build(CASE, device)), CASE, plan)


def process_seconds(run: Run) -> float:
    """The processor time that this process spends on ``run``."""
    began = time.process_time()
    run()
    return time.process_time() - began


def operators(run: Run) -> int:
    """Calls of torch's and mixout's operators in one step after those that have warmed up, nested ones included."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return sum(event.count for event in seen.key_averages() if event.key.startswith(("aten::", "mixout::")))


def launches(run: Run) -> int:
    """Kernels, copies and fills that one step launches on the GPU."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    return sum(event.count for event in seen.key_averages() if event.device_type == DeviceType.CUDA)


if __name__ == "__main__":
    main()
