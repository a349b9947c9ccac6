"""What mixout costs on a GPU: step time, peak memory and compiled steps, as ratios to plain fine-tuning.

    PYTHONPATH=src python benchmarks/gpu.py --output benchmarks/results/gpu.csv

At most 6 minutes on one GPU with 80 GB, no network: models have random weights; torch and transformers are enough. Each
row is in the file as soon as it is known, so that a run that is cut off keeps the others. In this order:

- ``time``: steps of BERT-large with 4,096 tokens, of a Llama-shaped model of 1.2B parameters with 4 x 1,024, and of
  BERT-large with 16,384 tokens; bfloat16 autocast, fused AdamW, interleaved pairs with plain fine-tuning, every dropout
  off, between two synchronisations. Plain against itself is the noise.
- ``peak memory``: allocated bytes of the first two, anchors and optimizer included.
- ``compiled``: both models' steps under ``torch.compile``, plain too, each pair in a process of its own. A pair that is
  not compiled after twice 90 seconds, or when the time is over, is ``not finished``.
- ``busy``: milliseconds until a step is launched, until it is done, and in which kernels run, and the number of kernels
  (profiler). Where the first two are equal and the third is smaller, the GPU waits for the host.

``--dry-run`` goes through every row with tiny models, on a CPU too; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rows import Row, read, show, with_machine, write
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import mixout
from mixout.bench.cases import Case, build, find, inputs
from mixout.bench.memory import saved_bytes
from mixout.bench.pairs import Run, clock_of, interleave
from mixout.bench.plan import Plan
from mixout.bench.runs import autocast, release, train_run
from mixout.functional import Form

COLUMNS = ("what", "case", "tokens", "method", "form", "ratio", "low", "high", "pairs", "plain", "value", "note")
FIELDS = (*COLUMNS, "launched_ms", "done_ms", "busy_ms", "kernels")
PARTS = ("time", "peak memory", "compiled", "busy")
# Seconds: of the whole run without the imports before it, until a model must be compiled, and for what follows that.
WHOLE, COMPILE, BUSY = 340.0, 90.0, 20.0
WARMUP = 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A method, and the form in which ``apply_`` computes linear layers."""

    method: str
    form: Form = "auto"

    def apply_(self, model: nn.Module) -> nn.Module:
        """Make ``model`` train so."""
        return mixout.apply_(model, self.method, form=self.form)


PLAIN = Setting(method="dropout(0.0)")
MIXOUT = Setting(method="mixout(0.9)")
LEAN = Setting(method="mixout(0.9)", form="lean")
DROPOUT = Setting(method="dropout(0.1)")
HALF = Setting(method="mixout(0.5)")


@dataclass(kw_only=True)
class Bench:
    """Where to measure, with which models, until when, and what is known so far."""

    output: Path
    device: torch.device
    dry: bool
    ends: float  # time.monotonic()
    compile_seconds: float
    rows: list[Row]

    def case(self, name: str, *, times: int = 1) -> Case:
        """The case called ``name``, ``times`` its batch; tiny in a dry run."""
        case = find(name)
        if self.dry:
            tiny = {"width": 16, "intermediate": 24, "heads": 2, "key_heads": 2, "layers": 1, "vocabulary": 40}
            case = replace(case, **tiny, batch=2, length=8)
        return replace(case, batch=times * case.batch)

    def pairs(self, number: int) -> int:
        """Timed pairs."""
        return 1 if self.dry else number

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def add(self, what: str, case: Case, setting: Setting, measure: Callable[[], Row]) -> None:
        """Write a row of what ``measure`` returns, or of why there is nothing."""
        row = dict.fromkeys(FIELDS, "") | {"what": what, "case": case.name, "tokens": case.tokens}
        row |= {"method": setting.method, "form": setting.form}
        try:
            row |= measure() if self.left() > 0 else {"note": "not measured: no time left"}
        except torch.OutOfMemoryError:
            row["note"] = "out of memory"
        except Exception as error:  # one row must not cost the others: time on a GPU is scarce
            row["note"] = f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        self.rows.append(with_machine(row))
        write(self.output, self.rows)
        print(*(f"{row[name]}" for name in COLUMNS if row[name] != ""), f"({self.left():.0f} s left)", flush=True)
        self.release()

    def release(self) -> None:
        """Give back the memory of models that are gone; on a CPU they are tiny."""
        if self.device.type == "cuda":
            release()

    def step(self, case: Case, setting: Setting) -> Run:
        """A training step of a model of its own."""
        return train_run(setting.apply_(build(case, self.device)), case, self.plan(case))

    def plan(self, case: Case) -> Plan:
        """An eager one: compiled models are compiled here."""
        return Plan(cases=(case,), pairs=1, quick=False, compile=False, device=self.device)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all parts and write the table; 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="table to write")
    parser.add_argument("--dry-run", action="store_true", help="tiny models, one pair, on any device")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--seconds", type=float, default=WHOLE, help="of the whole run; default: %(default)g")
    parser.add_argument("--compile-seconds", type=float, default=COMPILE, help="a model; default: %(default)g")
    parser.add_argument("--compile-case", choices=("bert-large", "llama-1b"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not (args.dry_run or torch.cuda.is_available()):
        parser.error("torch finds no GPU; --dry-run goes through every row on a CPU")
    if not args.compile_case:
        args.output.unlink(missing_ok=True)
    bench = Bench(
        output=args.output,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        dry=args.dry_run,
        ends=time.monotonic() + args.seconds,
        compile_seconds=args.compile_seconds,
        rows=read(args.output) if args.output.exists() else [],
    )
    if args.compile_case:
        compiled_case(bench, bench.case(args.compile_case))
        return 0
    parts = {"time": times, "peak memory": memory, "compiled": compiled, "busy": busy}
    for name in PARTS:
        if name in args.parts:
            parts[name](bench)
    print(show(bench.rows, COLUMNS))
    return int(any(row["note"].startswith("failed") for row in bench.rows))


def times(bench: Bench) -> None:
    """Whole steps, eager."""
    for name, batches, pairs, settings in (
        ("bert-large", 1, 20, (MIXOUT, PLAIN, DROPOUT, LEAN, HALF)),
        ("llama-1b", 1, 10, (MIXOUT, PLAIN, LEAN)),
        ("bert-large", 4, 10, (MIXOUT, PLAIN, DROPOUT, LEAN)),
    ):
        case = bench.case(name, times=batches)
        plain: list[Run] = []

        def measure(setting: Setting, case: Case = case, plain: list[Run] = plain, pairs: int = pairs) -> Row:
            if not plain:
                plain.append(bench.step(case, PLAIN))
            return timed(bench, plain[0], bench.step(case, setting), bench.pairs(pairs))

        for setting in settings:
            bench.add("time", case, setting, lambda setting=setting, measure=measure: measure(setting))
        plain.clear()
        bench.release()


def timed(bench: Bench, plain: Run, run: Run, pairs: int) -> Row:
    """The columns of a comparison; seconds."""
    found = interleave(plain, run, pairs=pairs, warmup=WARMUP, clock=clock_of(bench.device))
    row = {"ratio": f"{found.ratio:.3f}", "low": f"{found.low:.3f}", "high": f"{found.high:.3f}", "pairs": found.pairs}
    return row | {"plain": f"{found.base:.5f}", "value": f"{found.variant:.5f}"}


def memory(bench: Bench) -> None:
    """Peaks of one model at a time."""
    for name, settings in (("bert-large", (PLAIN, MIXOUT, LEAN, DROPOUT)), ("llama-1b", (PLAIN, MIXOUT, LEAN))):
        case = bench.case(name)
        peaks: list[int] = []

        def measure(setting: Setting, case: Case = case, peaks: list[int] = peaks) -> Row:
            peaks.append(peak(bench, case, setting))
            return {"ratio": f"{peaks[-1] / peaks[0]:.3f}", "plain": peaks[0], "value": peaks[-1], "pairs": 1}

        for setting in settings:
            bench.add("peak memory", case, setting, lambda setting=setting, measure=measure: measure(setting))


def peak(bench: Bench, case: Case, setting: Setting) -> int:
    """Bytes allocated at the peak of a step; on a CPU those that autograd keeps."""
    if bench.device.type != "cuda":
        model, batch = setting.apply_(build(case, bench.device)), inputs(case, bench.device)

        def forward() -> torch.Tensor:
            with autocast(case.precision, bench.device):
                loss: torch.Tensor = model(**batch).loss
            return loss

        return saved_bytes(forward, model.parameters())
    before = torch.cuda.memory_allocated()
    run = bench.step(case, setting)
    run()  # makes the optimizer's state
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):  # the number of kept columns is random
        run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def busy(bench: Bench) -> None:
    """Whether the GPU waits; after the times, which a profiler might disturb."""
    case = bench.case("bert-large")
    for setting in (PLAIN, MIXOUT, LEAN):
        bench.add("busy", case, setting, lambda setting=setting: waits(bench, bench.step(case, setting)))


def waits(bench: Bench, run: Run) -> Row:
    """Milliseconds of a step until it is launched, until it is done, and in which kernels run."""
    steps, gpu = 1 if bench.dry else 10, bench.device.type == "cuda"
    synchronize: Callable[[], object] = torch.cuda.synchronize if gpu else lambda: None
    for _ in range(WARMUP):
        run()
    synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        run()
    launched = time.perf_counter()
    synchronize()
    done = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as seen:
        run()
        synchronize()
    kernels = [event for event in seen.key_averages() if event.device_type == DeviceType.CUDA]
    return {
        "launched_ms": f"{1e3 * (launched - began) / steps:.1f}",
        "done_ms": f"{1e3 * (done - began) / steps:.1f}",
        "busy_ms": f"{sum(event.self_device_time_total for event in kernels) / 1e3:.1f}",
        "kernels": sum(event.count for event in kernels),
    }


def compiled(bench: Bench) -> None:
    """Each case in a process of its own, which adds to the table and is ended when its time is over."""
    cases = [bench.case("bert-large"), bench.case("llama-1b")]
    for place, case in enumerate(cases):
        share = (bench.left() - BUSY) / (len(cases) - place)
        seconds = max(0.0, min(2 * bench.compile_seconds, share))
        command = [sys.executable, __file__, "--output", str(bench.output), "--seconds", f"{seconds:g}"]
        command += ["--compile-case", case.name, *(["--dry-run"] if bench.dry else [])]
        try:
            status = subprocess.run(command, timeout=seconds, check=False).returncode
            note = f"failed: exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            note = f"not finished after {seconds:.0f} s"
        bench.rows = read(bench.output) if bench.output.exists() else []
        if note:
            bench.add("compiled", case, MIXOUT, lambda note=note: {"note": note})


def compiled_case(bench: Bench, case: Case) -> None:
    """Rows of one case: seconds until plain and mixout are compiled, and the ratio of their steps."""
    runs: list[Run] = []

    def compiled_step(setting: Setting) -> Row:
        began = time.monotonic()
        model = setting.apply_(build(case, bench.device))
        call: Any = torch.compile(model, fullgraph=True, dynamic=False, backend="eager" if bench.dry else "inductor")
        run = train_run(call, case, bench.plan(case))
        for _ in range(2):
            run()
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
        runs.append(run)
        return {"value": f"{time.monotonic() - began:.1f}"}

    for setting in (PLAIN, MIXOUT):
        bench.add("seconds to compile", case, setting, lambda setting=setting: compiled_step(setting))
    if len(runs) == 2:
        bench.add("compiled", case, MIXOUT, lambda: timed(bench, *runs, bench.pairs(20)))


if __name__ == "__main__":
    sys.exit(main())
