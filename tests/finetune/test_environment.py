from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixout.finetune import environment


def test_the_peak_of_the_host_is_the_runs_own():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux forgets the peak of the host")
    held = np.ones(1 << 28, dtype=np.uint8)
    before = environment.peak_memory()["host"]
    del held
    environment.forget_peak_memory()
    assert environment.peak_memory()["host"] < before - (1 << 27)
