"""Two processes that each hold half of the model (FSDP2) end as one process does; what cannot run so is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.finetune.conftest import options
from tests.finetune.test_processes import FINALISED, check

from mixout.errors import InputError
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune

several = [pytest.mark.sweep, pytest.mark.usefixtures("one_thread")]

# What docs/finetune.md shows.
CONFIG = """\
distributed_type: FSDP
num_machines: 1
num_processes: {processes}
main_process_port: 0
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_state_dict_type: {kept}_STATE_DICT
"""
# The command, which fails after a step, and says how its processes end.
STOPPED = f"""
import sys
{FINALISED}
from mixout import cli
from mixout.errors import InputError
from mixout.finetune.course import Course

method, step = Course.on_step_end, int(sys.argv[1])

def stopping(self, args, state, control, **kwargs):
    method(self, args, state, control, **kwargs)
    if state.global_step == step:
        raise InputError("stopped")

Course.on_step_end = stopping
sys.argv[1:] = sys.argv[2:]
sys.exit(cli.command())
"""


def launch(
    settings: Settings,
    place: Path,
    *more: str,
    stop: int | None = None,
    kept: str = "SHARDED",
    processes: int = 2,
) -> subprocess.CompletedProcess:
    config, program = place.with_suffix(".yaml"), place.with_suffix(".py")
    config.write_text(CONFIG.format(kept=kept, processes=processes))
    program.write_text(STOPPED)
    what = ["-m", "mixout"] if stop is None else [str(program), str(stop)]
    command = ["finetune", "--output-dir", str(place), *options(settings), *more]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *what, *command],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.fixture
def fsdp2(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment that a launch with FSDP2 leaves."""
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "lora(2)"}, "got method lora, which works on whole models only; leave it out, or"),
        ({"method": "anchor_decay(40, fisher=2)"}, "got method anchor_decay with fisher, .* leave fisher out, or"),
        ({"optimizer": "mofo"}, "got optimizer 'mofo', .*; choose another one, or .* start it with torchrun"),
        ({"precision": "fp16"}, "precision 'fp16', .* use 'bf16' or 'fp32'"),
        ({"keep_best": True}, "got keep_best, .* leave it out"),
    ],
)
def test_what_needs_whole_weights_is_refused_by_name(causal, tmp_path, fsdp2, changes, says):
    fsdp2.setattr("torch.cuda.is_available", lambda: True)  # else fp16 is refused for another reason
    with pytest.raises(InputError, match=says):
        finetune(causal(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_classifier_is_refused(settings, tmp_path, fsdp2):
    with pytest.raises(InputError, match=r"got task_type 'classification', .* use 'causal-lm', or"):
        finetune(settings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params: false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "--gradient-checkpointing"),
        ("FSDP_IGNORED_MODULES", "lm_head", "leave out fsdp_ignored_modules"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "leave out parallelism_config"),
        ("FSDP_VERSION", "1", "got a launch with FSDP; .* fsdp_version: 2"),
        ("WORLD_SIZE", "", "expected a launch for FSDP2, got none"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "got a launch with DEEPSPEED"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "got a launch with MEGATRON_LM"),
    ],
)
def test_what_the_launcher_asks_for_besides_is_refused(causal, tmp_path, fsdp2, name, value, says):
    fsdp2.setenv(name, value)
    with pytest.raises(InputError, match=says):
        finetune(causal(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class TestTraining:
    pytestmark = several

    @pytest.mark.parametrize(
        "changes",
        [
            {"method": "plain", "accumulation": 2, "max_grad_norm": 0.05, "gradient_checkpointing": True},
            {"method": "mixout(0.5)", "optimizer": "bertadam", "weight_decay": 0.1, "interpolate": (0.5,)},
            {"method": "anchor_decay(radius=0.01)", "layer_decay": 0.5},
            {"method": "mixconnect(0.5)+anchor_decay(0.1)"},
            {"method": "output_anchor(0.5)"},
        ],
        ids=lambda changes: changes["method"],
    )
    def test_it_ends_as_one_process_does(self, causal, tmp_path, changes):
        from transformers import AutoModelForCausalLM

        chosen = causal(epochs=1.0, **changes)
        ended = launch(chosen, tmp_path / "two")
        assert ended.returncode == 0, ended.stderr
        check(chosen, tmp_path, ended.stdout)
        one, two = Record.read(tmp_path / "one"), Record.read(tmp_path / "two")
        assert (two.hardware["processes"], two.hardware["model"]) == (2, "FSDP2")
        assert "processes" not in one.hardware
        assert two.coverage == one.coverage
        assert two.distance_by_layer == pytest.approx(one.distance_by_layer, rel=1e-4, abs=1e-6)
        assert two.interpolated == tuple(pytest.approx(entry, rel=1e-5) for entry in one.interpolated)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
        assert type(loaded).__name__ == "LlamaForCausalLM"
        files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
        assert files[0] == files[1]

    @pytest.mark.parametrize("kept", ["SHARDED", "FULL"])
    def test_a_run_that_was_cut_off_goes_on(self, causal, tmp_path, kept):
        # In parts, whatever the configuration says.
        chosen = causal(epochs=1.0, save=3, method="mixout(0.5)+anchor_decay(0.1)")
        place = tmp_path / "two"
        ended = launch(chosen, place, stop=4, kept=kept)
        assert ended.returncode != 0
        assert "mixout: error: stopped" in ended.stderr
        assert "finalised" not in ended.stderr
        assert "SIGABRT" not in ended.stderr
        checkpoint = place / "checkpoints" / "checkpoint-3"
        assert {"complete", "pytorch_model_fsdp_0"} <= {path.name for path in checkpoint.iterdir()}
        with pytest.raises(InputError, match="began with FSDP2, got a launch without"):
            finetune(chosen, place, resume=True)
        ended = launch(chosen, place, "--resume", kept=kept, stop=10**6)
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.count("handlers ran") == 2
        assert "finalised" not in ended.stderr
        assert "from step 3" in ended.stderr
        check(chosen, tmp_path, ended.stdout)

    def test_processes_without_a_row_of_several_weights(self, causal, tiny_llama, tmp_path):
        """Accelerate takes these for one another in the optimizer; a selective decay sends something for each."""
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        narrow = str(tmp_path / "narrow")
        heads = {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 2}
        config = LlamaConfig.from_pretrained(tiny_llama, **heads)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            LlamaForCausalLM(config).save_pretrained(narrow)
        AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(narrow)
        chosen = causal(model=narrow, epochs=1.0, method="anchor_decay(0.1, selective=true)")
        ended = launch(chosen, tmp_path / "two", processes=4)
        assert ended.returncode == 0, ended.stderr
        check(chosen, tmp_path, ended.stdout)

    def test_two_processes_say_what_is_wrong_once(self, causal, tmp_path):
        ended = launch(causal(optimizer="mofo"), tmp_path / "two")
        assert ended.returncode != 0
        assert ended.stderr.count("mixout: error: expected what FSDP2 can train, got optimizer 'mofo'") == 1
        assert not (tmp_path / "two").exists()
