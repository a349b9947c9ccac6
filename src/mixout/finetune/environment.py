"""The process and machine of a run: versions, hardware, memory; and how a run leaves the process as it found it.

The random streams are those of the process, so nothing here is for several threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mixout.errors import needs

# Begins a line of progress that is about the machine rather than the run.
NOTE = "note: "
# Parameters of mallopt: the most blocks mapped separately, and the free memory above which it is returned.
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1
# Of a launch: the places of a process, and the precision and compilation that it asks for.
_PLACES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_LAUNCHER = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO", "ACCELERATE_DOWNCAST")
_LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy", "scipy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of Python, mixout and the libraries that the numbers depend on; those that are installed."""
    import mixout

    installed = {"python": platform.python_version(), "mixout": mixout.__version__}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, threads, accelerator, operating system."""
    return {
        "processor": _in_proc("cpuinfo", r"^model name\s*:\s*(.+)$") or platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def forget_peak_memory() -> None:
    """Reset what :func:`peak_memory` counts; a container may forbid it for the host."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)  # returns what an earlier run has left, see keep_memory
    # Before its first use CUDA has no peak to forget.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> dict[str, int | None]:
    """Peak bytes since :func:`forget_peak_memory` of this process (``host``) and of torch on the GPU (``device``).

    None where they are not known: on other systems than Linux, and without a GPU. VmHWM can be reset, unlike
    ``ru_maxrss``, and does not start with the parent process's peak.
    """
    host = _in_proc("self/status", r"^VmHWM:\s*(\d+) kB$")
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {"host": None if host is None else int(host) * 1024, "device": device}


def keep_memory() -> None:
    """Let this process keep what it frees, where the C library is glibc and there is no accelerator.

    Else the memory of each large tensor goes back to the system, which clears it before its next use: that takes a
    quarter of a small model's training step with few tokens (benchmarks/results/allocator.csv).
    """
    libc = _glibc()
    if libc is not None and not torch.accelerator.is_available():
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def _in_proc(file: str, pattern: str) -> str | None:
    """What the group of ``pattern`` stands for in a file of Linux about its processes; None elsewhere."""
    match = None
    with contextlib.suppress(OSError):
        match = re.search(pattern, Path("/proc", file).read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else None


def processes() -> int:
    """How many processes train together and share a batch."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def launched_with(name: str) -> bool:
    """Whether ``accelerate launch`` asks for ``name``, such as FSDP."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"


def fsdp2() -> bool:
    """Whether the launcher asks that each process hold a part of the model, by FSDP2."""
    return launched_with("FSDP") and os.environ.get("FSDP_VERSION") == "2"


def launch() -> dict[str, Any]:
    """How many processes there are, and how they share the model; empty for one without FSDP2."""
    return {"processes": processes(), "model": "FSDP2" if fsdp2() else "whole"} if processes() > 1 or fsdp2() else {}


def leads() -> bool:
    """Whether this process reports and writes for all that train together."""
    return int(os.environ.get("RANK") or 0) == 0


@contextmanager
def without_launcher() -> Iterator[None]:
    """Hide what ``accelerate launch`` or ``accelerate config`` says of precision and compilation: settings decide.

    Empty numbers of processes, which some schedulers leave in the environment, are hidden too.
    """
    empty = [name for name in _PLACES if os.environ.get(name) == ""]
    hidden = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith(_LAUNCHER) or name in empty}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the advice and loading bars of transformers in the body; its errors still show."""
    with needs("hf", "fine-tuning"):
        from transformers.utils import logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def own_streams() -> Iterator[None]:
    """The body may seed and draw: the global streams of Python, numpy and torch (CPU and CUDA) are restored."""
    with needs("hf", "fine-tuning"):
        import numpy as np
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # Every device: torch.manual_seed reaches all of them.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
