"""On what a run ran: versions, hardware, peak memory. It measures nothing else and changes nothing."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy", "scipy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of Python, mixout and the libraries that the numbers depend on; those that are installed."""
    import mixout

    found = {"python": platform.python_version(), "mixout": mixout.__version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, threads, accelerator, operating system."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
    }


def peak_memory() -> dict[str, int | None]:
    """Peak bytes of this process so far (``host``) and of torch on the GPU (``device``); None where unknown."""
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return {"host": None, "device": device}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    return {"host": peak if sys.platform == "darwin" else peak * 1024, "device": device}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or "unknown")
