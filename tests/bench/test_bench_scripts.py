"""The scripts of benchmarks/ go through every row, on tiny models; no time is asserted."""

from __future__ import annotations

import csv
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import mixout
from mixout.bench.cases import CASES

pytestmark = pytest.mark.usefixtures("one_thread")
SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Load a script, which finds its neighbour rows.py as it does when it is run."""
    monkeypatch.syspath_prepend(SCRIPTS)

    def module_of(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", SCRIPTS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses ask for it
        spec.loader.exec_module(module)
        return module

    yield module_of
    for name in ("rows", "host"):
        sys.modules.pop(name, None)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_decay_goes_through_every_method(load, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch):
    decay, place = load("decay"), tmp_path / "decay.csv"
    assert [case.tokens for case, _ in decay.CASES_AND_PAIRS] == [16, 512, 2048]
    monkeypatch.setattr(decay, "CASES_AND_PAIRS", ((replace(decay.CASE, layers=1), 1),))
    decay.main(["--output", str(place)])
    rows = table(place)
    assert [row["method"] for row in rows] == list(decay.METHODS)
    assert all(float(row["ratio"]) > 0 and row["threads"] == "1" for row in rows)
    assert "anchor_decay(weights)" in capsys.readouterr().out


def test_host_goes_through_every_setting(load, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch):
    host, place = load("host"), tmp_path / "results" / "host.csv"
    assert (host.CASE.layers, host.CASE.width, host.CASE.tokens, host.CASE.precision) == (12, 16, 16, "bf16")
    monkeypatch.setattr(host, "CASE", replace(host.CASE, layers=1))
    host.main(["--pairs", "1", "--output", str(place)])
    rows = {(row["method"], row["form"], row["seed"]): row for row in table(place)}
    assert list(rows) == [
        ("dropout(0.0)", "auto", ""), ("dropout(0.1)", "auto", ""), ("mixout(0.9)", "auto", ""),
        ("mixout(0.5)", "auto", ""), ("mixout(0.9)", "fast", ""), ("mixout(0.5)", "fast", ""),
        ("mixout(0.9)", "auto", "1"), ("mixconnect(0.9)", "auto", ""),
    ]  # fmt: skip
    plain, *others = (int(row["operators"]) for row in rows.values())
    assert all(other > plain for other in others)
    assert all(float(row["ratio"]) > 0 and float(row["load"]) >= 0 and row["threads"] == "1" for row in rows.values())
    assert "mixconnect(0.9)" in capsys.readouterr().out


def test_host_counts_operators_as_they_are(load):
    host, x = load("host"), torch.ones(2, 3)
    assert host.operators(lambda: x.mul(x).add(x)) == 2
    assert host.operators(lambda: x.square()) > 1  # pow within it
    assert host.operators(lambda: x) == 0


def test_state_measures_each_part(load, bert, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(CASES, "tiny", bert)
    place = tmp_path / "state.csv"
    load("state").main(["--case", "tiny", "--repetitions", "2", "--output", str(place)])
    rows = {row["what"]: row for row in table(place)}
    assert list(rows) == ["apply_", "state_dict", "distance", "state_dict + distance"]
    assert {row["mixed"] for row in rows.values()} == {str(2 * (4 * 16 * 16 + 2 * 16 * 24) + 16 * 16)}
    assert all(float(row["process_s"]) >= 0 and float(row["wall_s"]) > 0 for row in rows.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_gpu_asks_for_a_gpu(load, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        load("gpu").main(["--output", str(tmp_path / "gpu.csv")])
    assert stopped.value.code == 2
    assert "torch finds no GPU; --dry-run goes through every row on a CPU" in capsys.readouterr().err


def test_gpu_dry_run_goes_through_every_row(load, tmp_path, monkeypatch: pytest.MonkeyPatch):
    gpu, place = load("gpu"), tmp_path / "gpu.csv"
    place.write_text("of another time")

    class Done:
        returncode = 0

    def in_this_process(command: list[str], **_: object) -> Done:
        """What the script does in a process of its own, whose imports would take longer than all the rest."""
        assert gpu.main(command[2:]) == 0
        return Done()

    monkeypatch.setattr(gpu.subprocess, "run", in_this_process)
    assert gpu.main(["--dry-run", "--output", str(place)]) == 0
    rows = table(place)
    bert, llama = ("bert-large", "16"), ("llama-1b", "16")
    mixed, plain, lean, dropout = (
        ("mixout(0.9)", "auto"), ("dropout(0.0)", "auto"), ("mixout(0.9)", "lean"), ("dropout(0.1)", "auto"),
    )  # fmt: skip
    keys = [
        *(("time", *bert, *setting) for setting in (mixed, plain, dropout, lean, ("mixout(0.5)", "auto"))),
        *(("time", *llama, *setting) for setting in (mixed, plain, lean)),
        *(("time", "bert-large", "64", *setting) for setting in (mixed, plain, dropout, lean)),
        *(("peak memory", *bert, *setting) for setting in (plain, mixed, lean, dropout)),
        *(("peak memory", *llama, *setting) for setting in (plain, mixed, lean)),
        *(("seconds to compile", *bert, *setting) for setting in (plain, mixed)), ("compiled", *bert, *mixed),
        *(("seconds to compile", *llama, *setting) for setting in (plain, mixed)), ("compiled", *llama, *mixed),
        *(("busy", *bert, *setting) for setting in (plain, mixed, lean)),
    ]  # fmt: skip
    assert [tuple(row[name] for name in ("what", "case", "tokens", "method", "form")) for row in rows] == keys
    assert {row["note"] for row in rows} == {""}
    assert all(float(row["ratio"]) > 0 for row in rows if row["what"] in ("time", "peak memory", "compiled"))
    assert all(float(row["launched_ms"]) > 0 for row in rows if row["what"] == "busy")
    assert {(row["torch"], row["mixout"]) for row in rows} == {(torch.__version__, mixout.__version__)}


def test_gpu_gives_up_on_a_model_that_is_not_compiled_in_time(load, tmp_path):
    place = tmp_path / "gpu.csv"
    words = ["--dry-run", "--parts", "compiled", "--compile-seconds", "0.1", "--output", str(place)]
    assert load("gpu").main(words) == 0
    assert [(row["what"], row["case"], row["note"]) for row in table(place)] == [
        ("compiled", "bert-large", "not finished after 0 s"),
        ("compiled", "llama-1b", "not finished after 0 s"),
    ]


def test_gpu_keeps_the_other_rows_of_one_that_fails(load, tmp_path, monkeypatch: pytest.MonkeyPatch):
    gpu, place, apply_ = load("gpu"), tmp_path / "gpu.csv", mixout.apply_

    def fails(model: nn.Module, method: str, *, form: str) -> nn.Module:
        if method == "dropout(0.1)":
            raise torch.OutOfMemoryError("of 80 GB")
        if form == "lean":
            raise RuntimeError("no kernel\nand much more")
        return apply_(model, method, form=form)

    monkeypatch.setattr(gpu.mixout, "apply_", fails)
    assert gpu.main(["--dry-run", "--parts", "peak memory", "--output", str(place)]) == 1
    rows = table(place)
    assert [row["note"] for row in rows[:4]] == ["", "", "failed: RuntimeError: no kernel", "out of memory"]
    assert all(row["ratio"] for row in rows if not row["note"])


def test_gpu_says_what_it_had_no_time_for(load, tmp_path):
    place = tmp_path / "gpu.csv"
    assert load("gpu").main(["--dry-run", "--seconds", "0", "--parts", "time", "--output", str(place)]) == 0
    assert {(row["ratio"], row["note"]) for row in table(place)} == {("", "not measured: no time left")}
