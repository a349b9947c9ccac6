"""A disk that fills up, made by a limit on the size of a file that the kernel enforces on a child process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mixout.cli import demo, main
from mixout.finetune.record import Record

pytest.importorskip("resource", reason="only POSIX limits the size of files")
pytestmark = [pytest.mark.sweep, pytest.mark.usefixtures("one_thread")]

# With SIGXFSZ ignored a write beyond the limit is an error, as on a full disk.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from mixout.cli import demo, main
if sys.argv[2] == "demo":
    demo.STUDY = sys.argv.pop()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""
TOKENIZER = """
import resource, signal, sys
from pathlib import Path
from tokenizers import Tokenizer
from mixout.finetune.record import WriteError, writing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
core = Tokenizer.from_file(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    with writing(Path("out")):
        core.save(sys.argv[2])
except WriteError as error:
    sys.exit(str(error))
"""


def limited(size: int, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(size), *words],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def error_of(own_lines):
    """Gives the one line that a command ended with, after its lines of progress."""

    def last(ended: subprocess.CompletedProcess) -> str:
        assert ended.returncode == 1, ended.stderr
        *progress, error = own_lines(ended.stderr)
        known = (
            "words: ",
            "2 classes",
            "learning rate ",
            "method ",
            "anchor_decay(",
            "mixout(",
            "[",
            "  ",
            "/",
            "2 of 4 runs",
        )
        assert all(line.startswith(known) for line in progress), ended.stderr
        assert re.match(r"mixout: error: could not write to .*; .*(make room|call it again)", error)
        return error

    return last


@pytest.fixture
def options(tiny_bert, tiny_task, tmp_path) -> list[str]:
    return [
        "finetune", "--model", tiny_bert, "--task", tiny_task, "--output-dir", str(tmp_path / "out"),
        "--max-length", "32", "--epochs", "0.5", "--batch-size", "8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("save", "share", "said"),
    [
        ("no", 0.5, "os error"),  # safetensors, at the end
        ("1", 0.5, "os error"),  # safetensors, in a checkpoint
        ("1", 1.5, "inline_container"),  # torch: the optimizer's state is twice the weights
    ],
)
def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on(
    options, tiny_bert, tmp_path, save, share, said, error_of
):
    weights = (Path(tiny_bert) / "model.safetensors").stat().st_size
    error = error_of(limited(int(share * weights), *options, "--save", save))
    assert said in error
    assert f"mixout finetune --resume {tmp_path / 'out'}" in error
    assert not (tmp_path / "out" / "record.json").exists()
    assert main([*options, "--save", save, "--resume"]) == 0
    assert Record.read(tmp_path / "out").steps == 3


def test_the_exception_of_tokenizers(tiny_bert, tmp_path):
    words = [str(Path(tiny_bert) / "tokenizer.json"), str(tmp_path / "tokenizer.json")]
    ended = subprocess.run([sys.executable, "-c", TOKENIZER, *words], capture_output=True, text=True, timeout=900)
    assert ended.stderr.startswith("could not write to out: ")


def test_a_study_stops_and_loses_nothing(study_file, tmp_path, error_of):
    ledger = tmp_path / "ledger"
    words = ["study", "run", study_file, "--ledger", str(ledger)]
    assert main([*words, "--pilot"]) == 0
    before = {path: path.read_bytes() for path in (ledger / "runs").rglob("*.json")}
    # Larger than run.json and smaller than record.json: the first new run trains, and cannot be written.
    assert "call it again to continue" in error_of(limited(2000, *words))
    assert {path: path.read_bytes() for path in (ledger / "runs").rglob("*.json")} == before
    assert main(words) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(ledger.rglob("record.json"))) == 4


def test_the_demo_says_it_too_and_goes_on(demo_file, tmp_path, monkeypatch, error_of):
    words = ["demo", "--workers", "1", "--restarts", "1", "--output-dir", str(tmp_path / "demo")]
    assert "call it again to continue" in error_of(limited(2000, *words, demo_file))
    # The report is larger than every record.
    assert "call it again to continue" in error_of(limited(12000, *words, demo_file))
    assert len(list((tmp_path / "demo").rglob("record.json"))) == 6
    monkeypatch.setattr(demo, "STUDY", demo_file)
    assert main(words) == 0


def test_other_errors_are_not_the_disks():
    from mixout.finetune.record import writing

    for error in (RuntimeError("CUDA out of memory"), ValueError("a bug"), OSError("no route to the logger")):
        with pytest.raises(type(error), match=str(error)) as caught, writing(Path("out")):
            raise error
        assert caught.value is error
