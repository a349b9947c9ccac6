from __future__ import annotations

import os
import platform
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.finetune.conftest import same, weights

from mixout.finetune import environment
from mixout.finetune.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_peak_of_the_host_is_the_runs_own():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux forgets the peak of the host")
    held = np.ones(1 << 28, dtype=np.uint8)
    before = environment.peak_memory()["host"]
    del held
    environment.forget_peak_memory()
    assert environment.peak_memory()["host"] < before - (1 << 27)


def test_precision_is_what_the_settings_say(settings, tmp_path, monkeypatch: pytest.MonkeyPatch, fresh_accelerate):
    # As accelerate launch --mixed_precision bf16, or a saved accelerate config, hands it over.
    plain = finetune(settings(), tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    launched = finetune(settings(), tmp_path / "launched")
    assert launched.training == plain.training
    assert same(tmp_path / "plain", tmp_path / "launched")
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_an_empty_world_size_is_one_process(settings, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    assert finetune(settings(epochs=0.5), tmp_path / "out").steps == 3


def test_bfloat16_then_float32_in_one_process(settings, tmp_path):
    low = finetune(settings(precision="bf16"), tmp_path / "low")
    high = finetune(settings(), tmp_path / "high")
    assert low.distance == pytest.approx(high.distance, rel=0.3)
    assert low.distance != high.distance
    assert {value.dtype for value in weights(tmp_path / "low").values()} == {torch.float32}


def test_the_callers_random_streams_go_on(settings, tmp_path):
    def draw() -> list[float]:
        drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return drawn + ([float(torch.rand((), device="cuda"))] if torch.cuda.is_available() else [])

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    expected = draw()
    seed()
    finetune(settings(epochs=0.1), tmp_path / "out")
    assert draw() == expected


PAGES = """
import resource, sys, torch
from mixout.finetune import environment
if sys.argv[1] == "keep":
    environment.keep_memory()
def step():
    kept = [torch.ones(10_000_000) for _ in range(3)]  # 40 MB each
for _ in range(8):  # until it has found places
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_is_kept_is_not_asked_for_again():
    """The system counts the pages that it hands out: for 120 MB some 30,000 of 4 KiB, or fewer large ones."""
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", PAGES, what], capture_output=True, check=True, env=environ).stdout)
        for what in ("give back", "keep")
    )
    assert given_back > 50
    # Other C libraries have no mallopt, and are left alone.
    assert (kept < given_back / 10) is (platform.libc_ver()[0] == "glibc")


@pytest.mark.parametrize(("library", "accelerator"), [("musl", False), ("glibc", True)])
def test_memory_is_left_alone_elsewhere(library, accelerator, monkeypatch):
    called = []
    monkeypatch.setattr(environment.platform, "libc_ver", lambda: (library, ""))
    monkeypatch.setattr(environment.torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr(environment.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *one: called.append(one)))
    environment.keep_memory()
    assert called == []
