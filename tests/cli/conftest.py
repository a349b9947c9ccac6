"""The demo as a small study, and what a command says without what optional packages say of themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mixout.cli import main
from mixout.finetune import train
from mixout.finetune.settings import Settings
from mixout.study import executors

_OTHERS = re.compile("torchao|register_constant|kernels-community")


@pytest.fixture
def own_lines() -> Callable[[str], list[str]]:
    """The lines of a text that are not from packages which transformers looks for as it is imported."""
    return lambda text: [line for line in text.splitlines() if not _OTHERS.search(line)]


@pytest.fixture
def demo_file(study_file: str, tmp_path: Path) -> str:
    """A study file in the demo's form, of the tiny model on the tiny task: three methods, two learning rates."""
    text = Path(study_file).read_text().partition("[[method]]")[0]
    text = text.replace('baseline = "dropout(0.0)"', 'baseline = "dropout(0.1)"').replace("learning_rate = 1e-2\n", "")
    methods = "".join(f'[[method]]\nname = "{m}"\n' for m in ("dropout(0.1)", "mixout(0.7)", "gradient_mask(0.7)"))
    path = tmp_path / "tiny-demo.toml"
    path.write_text(f"{text}{methods}[factors]\nlearning_rate = [1e-2, 5e-2]\n")
    return str(path)


@pytest.fixture
def study(study_file: str, tmp_path: Path) -> Callable[..., int]:
    """Call a subcommand on the tiny study and a ledger of its own; returns the exit status."""

    def call(step: str, *words: str, file: str | None = study_file) -> int:
        return main(["study", step, *([file] if file else []), "--ledger", str(tmp_path / "ledger"), *words])

    return call


@pytest.fixture
def failing(monkeypatch) -> pytest.MonkeyPatch:
    """mixout(0.5) raises with seed 1."""
    original = executors.finetune

    def fails(settings, *args, **options):
        if settings.method == "mixout(0.5)" and settings.seed == 1:
            raise RuntimeError("CUDA out of memory")
        return original(settings, *args, **options)

    monkeypatch.setattr(executors, "finetune", fails)
    return monkeypatch


@pytest.fixture
def numbers() -> Callable[[str], list[str]]:
    """The cells of a row after task and method."""
    return lambda line: line.split()[2:]


@pytest.fixture
def options(tiny_bert, tiny_task, tmp_path) -> list[str]:
    return [
        "finetune", "--model", tiny_bert, "--task", tiny_task, "--output-dir", str(tmp_path / "out"),
        "--max-length", "32", "--epochs", "0.5", "--batch-size", "8", "--save", "no",
    ]  # fmt: skip


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, Path, dict]]:
    """What the command passes on; nothing is trained."""
    calls: list[tuple[Settings, Path, dict]] = []

    def spy(settings, place, **rest):
        calls.append((settings, place, rest))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "finetune", spy)
    return calls
