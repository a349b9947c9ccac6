"""Two processes that share each batch end as one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.finetune.conftest import options

from mixout import cli
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune

pytestmark = [pytest.mark.sweep, pytest.mark.usefixtures("one_thread")]


# A program says how its processes end. What Gloo's threads may hold must not be freed in Python's finalisation: that
# ends the process by SIGABRT.
FINALISED = """
import atexit
import os

class Finalised:
    def __del__(self, write=os.write):
        write(2, b"finalised\\n")

finalised = Finalised()
atexit.register(os.write, 2, b"handlers ran\\n")
"""


def launch(settings: Settings, place: Path, what: Sequence[str] = ("-m", "mixout")) -> subprocess.CompletedProcess:
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *what]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = ["finetune", "--output-dir", str(place), *options(settings)]
    return subprocess.run([*program, *command], capture_output=True, text=True, timeout=900, env=environment)


def check(settings: Settings, tmp_path: Path, printed: str) -> None:
    one, two = finetune(settings, tmp_path / "one"), Record.read(tmp_path / "two")
    assert (two.digest, two.steps) == (one.digest, one.steps)
    assert two.predictions == (one.predictions if one.nested else pytest.approx(one.predictions, rel=1e-5))
    assert two.scores == pytest.approx(one.scores, rel=1e-5)
    assert two.distance == pytest.approx(one.distance, rel=1e-5)
    for entries in ("training", "evaluations"):
        found = [entry.loss for entry in getattr(two, entries)]
        assert found == pytest.approx([entry.loss for entry in getattr(one, entries)], rel=1e-5)
    first, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert first.keys() == other.keys()
    for name, value in first.items():
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-5, msg=name)
    # One of the two has spoken.
    assert printed.count("model, record.json and model card") == 1
    assert not (tmp_path / "two" / "checkpoints").exists()


def test_an_end_without_haste_is_seen():
    ended = subprocess.run([sys.executable, "-c", FINALISED], capture_output=True, text=True, check=True)
    assert ended.stderr == "handlers ran\nfinalised\n"


def test_classes(settings, tmp_path):
    # 42 rows in batches of 8: the last has two rows, of which the second process gets none.
    chosen = settings(method="mixout(0.5)+anchor_decay(0.1)", accumulation=2, save=2, keep_best=True)
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nfrom mixout.cli import command\n{FINALISED}\nsys.exit(command())\n")
    ended = launch(chosen, tmp_path / "two", [str(program)])
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("handlers ran") == 2
    assert "finalised" not in ended.stderr
    check(chosen, tmp_path, ended.stdout)


def test_a_language_model(causal, tmp_path):
    chosen = causal(epochs=1.0)
    ended = launch(chosen, tmp_path / "two")
    assert ended.returncode == 0, ended.stderr
    check(chosen, tmp_path, ended.stdout)


@pytest.mark.parametrize("kind", ["labels", "tags"])
def test_several_labels_and_tags(settings, moods, names, kind, tmp_path):
    # 80 rows in batches of 24: the last has 8. Of tags the loss is the mean over words, of which rows have 2 to 6.
    task = {"task": str(moods)} if kind == "labels" else {"task": str(names), "task_type": "token-classification"}
    chosen = settings(**task, batch_size=24, epochs=1.0)
    ended = launch(chosen, tmp_path / "two")
    assert ended.returncode == 0, ended.stderr
    check(chosen, tmp_path, ended.stdout)


def test_a_batch_that_cannot_be_shared(settings, tmp_path):
    ended = launch(settings(batch_size=7), tmp_path / "two")
    assert ended.returncode != 0
    assert ended.stderr.count("mixout: error: expected a batch size that 2 processes can share, got 7") == 1
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("process", ["0", "1"])
def test_an_error_of_any_process_is_told(process, monkeypatch: pytest.MonkeyPatch, capsys):
    """Of one that fails alone too, after it has waited for the first."""
    waited = []
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    monkeypatch.setenv("LOCAL_RANK", process)
    assert cli.main(["finetune", "--batch-size", "0"]) == 2
    assert "mixout: error: expected batch_size >= 1" in capsys.readouterr().err
    assert waited == ([] if process == "0" else [cli.PATIENCE])


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_launcher_that_splits_the_model(settings, tmp_path, monkeypatch: pytest.MonkeyPatch, name):
    from mixout.errors import InputError

    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(InputError, match=name):
        finetune(settings(), tmp_path / "out")
