"""The parts of ``bench.py``: each measures its rows and adds them to the table."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

import mixout
from models import (
    COSTS_NOTHING,
    PLAIN,
    Case,
    Setting,
    Work,
    anchors,
    autocast,
    build,
    count,
    inputs,
    step,
)
from pairs import Run, process_seconds, release
from suite import Bench
from table import Row

MIXOUT = Setting(method="mixout(0.9)")
LEAN = Setting(method="mixout(0.9)", form="lean")
DROPOUT = Setting(method="dropout(0.1)")
OTHERS = [Setting(method=name) for name in ("mixout(0.5)", "mixout(0.1)", "mixconnect(0.9)", "authors(0.9)")]
# On a CPU anchors lie in the host's memory anyway.
ANCHORS = [Setting(method="mixout(0.9)", anchor="bf16"), Setting(method="mixout(0.9)", anchor="host")]
EVAL = [Setting(method="dropout(0.0)", evaluate=True), Setting(method="mixout(0.9)", evaluate=True)]
EVERY = Setting(method="mixout(0.9, every=16)")
HOST = [PLAIN, DROPOUT, MIXOUT, OTHERS[0], replace(MIXOUT, form="fast"), replace(MIXOUT, seed=1), OTHERS[2]]


def _settings(bench: Bench) -> list[Setting]:
    return [MIXOUT, *OTHERS, EVERY, LEAN, DROPOUT, *ANCHORS[: 2 if bench.device.type == "cuda" else 1]]


def steps(bench: Bench) -> None:
    """Whole steps. One variant at a time lies beside the plain model. Plain against itself is the noise."""
    for case in bench.cases:
        work = count(case)
        for plain, settings in ((PLAIN, [PLAIN, *_settings(bench)]), (EVAL[0], EVAL[1:])):
            base: list[Run] = []  # made in the first row, where a failure is written down
            for setting in settings:
                bench.add("time", case, setting, _step, bench, case, plain, base, setting, work)
            base.clear()
            release()


def _step(bench: Bench, case: Case, plain: Setting, base: list[Run], setting: Setting, work: Work) -> dict[str, Row]:
    if not base:
        base.append(bench.step(case, plain))
    row = bench.timed(base[0], bench.step(case, setting)) | {"floor": work.floor(setting.spared)}
    what = "eval" if setting.evaluate else "step"
    return {what if bench.clock is None else f"{what}, process time": row}


def memory(bench: Bench) -> None:
    """Bytes, one model at a time."""
    for case in bench.cases:
        plain: dict[str, int] = {}
        for setting in _settings(bench):
            bench.add("memory", case, setting, _memory, bench, case, setting, plain)


def _memory(bench: Bench, case: Case, setting: Setting, plain: dict[str, int]) -> dict[str, Row]:
    plain.update(plain or usage(bench, case, PLAIN))
    return {
        what: {"ratio": value / plain[what], "plain": plain[what], "value": value, "unit": "byte"}
        for what, value in usage(bench, case, setting).items()
    }


def usage(bench: Bench, case: Case, setting: Setting) -> dict[str, int]:
    """Bytes that autograd keeps for backward, these and the anchors, and on a GPU the peak of a step."""
    release()
    gpu = bench.device.type == "cuda"
    before = torch.cuda.memory_allocated() if gpu else 0
    model, batch = setting.apply_(build(case, bench.device)), inputs(case, bench.device)

    def forward() -> Tensor:
        with autocast(case, bench.device):
            loss: Tensor = model(**batch).loss
        return loss

    held = list(anchors(model))
    saved = saved_bytes(forward, chain(model.parameters(), model.buffers(), held))
    there = sum(anchor.nbytes for anchor in held if anchor.device.type == bench.device.type)
    found = {"saved": saved, "saved and anchors": saved + there}
    if gpu:
        del model
        run = bench.step(case, setting)
        run()  # makes the optimizer's state
        torch.cuda.reset_peak_memory_stats()
        for _ in range(bench.pairs):  # the number of kept columns is random
            run()
        torch.cuda.synchronize()
        found["peak"] = torch.cuda.max_memory_allocated() - before
    return found


def saved_bytes(forward: Callable[[], Tensor], own: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps between forward and backward, without the storages of ``own``, each storage once.

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


def host(bench: Bench) -> None:
    """Process time on one thread, calls of torch's and mixout's operators, and launches where there is a GPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    on_cpu = replace(bench, device=torch.device("cpu"))
    for setting in HOST:
        bench.add("host", COSTS_NOTHING, setting, _host, bench, on_cpu, setting)
    torch.set_num_threads(threads)


def _host(bench: Bench, on_cpu: Bench, setting: Setting) -> dict[str, Row]:
    plain, run = (on_cpu.step(COSTS_NOTHING, one) for one in (PLAIN, setting))
    found: dict[str, Row] = {"process time": on_cpu.timed(plain, run, clock=process_seconds)}
    found["operators"] = {"value": operators(run)}
    if bench.device.type == "cuda":
        found["launches"] = {"value": _kernels(bench.step(COSTS_NOTHING, setting))[0]}
    return found


def operators(run: Run) -> int:
    """Calls of operators in one step, nested ones included."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return sum(event.count for event in seen.key_averages() if event.key.startswith(("aten::", "mixout::")))


def _kernels(run: Run, warmup: int = 3) -> tuple[int, float]:
    """Kernels of one step on the GPU, and the milliseconds in which they run."""
    for _ in range(warmup):
        run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    kernels = [event for event in seen.key_averages() if event.device_type == DeviceType.CUDA]
    return sum(event.count for event in kernels), sum(event.self_device_time_total for event in kernels) / 1e3


def busy(bench: Bench) -> None:
    """Whether the GPU waits for the host: then a step is done when it is launched, and kernels run for less."""
    for case in bench.cases:
        for setting in (PLAIN, MIXOUT, LEAN):
            bench.add("busy", case, setting, _busy, bench, case, setting)


def _busy(bench: Bench, case: Case, setting: Setting) -> dict[str, Row]:
    run, number, gpu = bench.step(case, setting), 1 if bench.dry else 10, bench.device.type == "cuda"
    synchronize: Callable[[], object] = torch.cuda.synchronize if gpu else lambda: None
    run()
    synchronize()
    began = time.perf_counter()
    for _ in range(number):
        run()
    launched = time.perf_counter() - began
    synchronize()
    done = time.perf_counter() - began
    kernels, running = _kernels(run) if gpu else (0, 0.0)
    milliseconds = {"launched": 1e3 * launched / number, "done": 1e3 * done / number, "kernels run": running}
    return {what: {"value": value, "unit": "ms"} for what, value in milliseconds.items()} | {
        "kernels": {"value": kernels}
    }


def state(bench: Bench) -> None:
    """What mixout adds to a checkpoint on the host, process time; ``apply_`` copies and hashes the anchor, once."""
    for case in bench.cases:
        bench.add("state", case, MIXOUT, _state, bench, case)


def _state(bench: Bench, case: Case) -> dict[str, Row]:
    model = build(case, "cpu")
    seconds = {"apply_": [process_seconds(lambda: MIXOUT.apply_(model))]}
    for _ in range(bench.pairs):
        with torch.no_grad():
            for parameter in model.parameters():  # every weight changes between two checkpoints
                parameter.add_(1e-3 * torch.randn(()))
        seconds.setdefault("save_state", []).append(process_seconds(lambda: mixout.save_state(model)))
        seconds.setdefault("distance", []).append(process_seconds(lambda: mixout.distance(model)))
    return {
        what: {"value": statistics.median(values), "pairs": len(values), "unit": "s"}
        for what, values in seconds.items()
    }


def compiled(bench: Bench) -> None:
    """Each case in a process of its own with an empty cache, ended when its time is over."""
    bench_py = str(Path(__file__).with_name("bench.py"))
    for case in bench.cases:
        left = max(0.0, bench.ends - time.monotonic())
        command = [sys.executable, "-W", "ignore", bench_py, "--add", "--parts", ONE, "--case", case.name]
        command += ["--batch", str(case.batch), "--pairs", str(bench.pairs), "--output", str(bench.table.path)]
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
            try:
                status = subprocess.run(
                    command + ["--dry-run"] * bench.dry, timeout=min(left, 1e6), check=False, env=environment
                ).returncode
                note = f"failed: exit status {status}" if status else ""
            except subprocess.TimeoutExpired:
                note = f"not finished after {left:.0f} s"
        bench.table.reread()
        if note:
            # The time may be over, which is what the row says.
            replace(bench, ends=math.inf).add(
                "compile", case, MIXOUT, lambda note=note: {"compiled step": {"note": note}}
            )


def compiled_here(bench: Bench) -> None:
    """Wall time until plain and mixout are compiled (of mixout as a ratio), and the ratio of their steps."""
    for case in bench.cases:
        runs: list[Run] = []
        bench.add("compile", case, MIXOUT, _compiled, bench, case, runs)
        if len(runs) == 2:
            bench.add("compile", case, MIXOUT, lambda runs=runs: {"compiled step": bench.timed(*runs)})


def _compiled(bench: Bench, case: Case, runs: list[Run]) -> dict[str, Row]:
    seconds = []
    for setting in (PLAIN, MIXOUT):
        began = time.monotonic()
        model = setting.apply_(build(case, bench.device))
        model.compile(fullgraph=True, dynamic=False, backend="eager" if bench.dry else "inductor")
        run = step(model, case, bench.device)
        run()
        run()
        seconds.append(time.monotonic() - began)
        runs.append(run)
    return {
        "time to compile": {"ratio": seconds[1] / seconds[0], "plain": seconds[0], "value": seconds[1], "unit": "s"}
    }


ONE = "compile-one"  # what a process of its own is told
PARTS: dict[str, Callable[[Bench], None]] = {
    "time": steps,
    "memory": memory,
    "host": host,
    "state": state,
    "compile": compiled,
    ONE: compiled_here,
    "busy": busy,
}
