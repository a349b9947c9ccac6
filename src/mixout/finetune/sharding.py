"""FSDP2: each process holds a part of the model, as the launcher asks: ``accelerate launch`` with ``fsdp_version: 2``.

The model is sharded here, before the methods are applied, and not where the Trainer begins to train (docs/design.md):
else each process would keep the whole anchor. Each process reads the whole weights and keeps them on its host, to
measure the distance. Weights are gathered, and gradients reduced, in float32: the precision of the forward pass is
autocast's, as without FSDP2.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from mixout.errors import InputError, needs
from mixout.finetune.environment import fsdp2, without_launcher
from mixout.finetune.run_methods import Lora, MeasuredDecay
from mixout.finetune.settings import CAUSAL, Settings

with needs("hf", "fine-tuning"):
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
    from accelerate.utils import fsdp2_prepare_model

# Requests of a launcher that are refused, and what to do instead.
_LAUNCHER = {
    "FSDP_OFFLOAD_PARAMS": "set fsdp_offload_params: false; weights on the host cannot be mixed",
    "FSDP_ACTIVATION_CHECKPOINTING": "set fsdp_activation_checkpointing: false, and give --gradient-checkpointing",
    "FSDP_IGNORED_MODULES": "leave out fsdp_ignored_modules; their gradients would be those of one process",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "leave out parallelism_config; the batches are shared by all processes",
}


def check(settings: Settings) -> None:
    """Refuse what cannot run under FSDP2, by an InputError: nothing has been read or written yet."""
    if not fsdp2():
        return
    if not os.environ.get("WORLD_SIZE"):
        raise InputError("expected a launch for FSDP2, got none; start it with: accelerate launch -m mixout finetune")
    for name, remedy in _LAUNCHER.items():
        if (value := os.environ.get(name, "")).lower() not in ("", "0", "false", "none"):
            raise InputError(f"expected FSDP2 without {name}, got {value!r}; {remedy}")
    lora = any(isinstance(method, Lora) for method in settings.methods)
    fisher = any(isinstance(method, MeasuredDecay) and method.fisher for method in settings.methods)
    torchrun = "or let each process hold the whole model: start it with torchrun"
    refused = {
        f"task_type {settings.task_type!r}": settings.task_type != CAUSAL and f"use {CAUSAL!r}, {torchrun}",
        "method lora": lora and f"leave it out, {torchrun}",
        "method anchor_decay with fisher": fisher and f"leave fisher out, {torchrun}",
        "optimizer 'mofo'": settings.optimizer == "mofo" and f"choose another one, {torchrun}",
        "precision 'fp16'": settings.precision == "fp16" and "use 'bf16' or 'fp32'",
        "keep_best": settings.keep_best and f"leave it out (patience may stay), {torchrun}",
    }
    for option, advice in refused.items():
        if advice:
            raise InputError(f"expected what FSDP2 can train, got {option}, which works on whole models only; {advice}")


def shard_(model: nn.Module) -> None:
    """Under FSDP2 shard ``model`` in place: all processes hold the same model before, and a part of it after."""
    if not fsdp2():
        return
    try:
        # Every process has read the weights, so none waits for those of the first.
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
        with without_launcher():
            accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        tell(accelerator, plugin)
        fsdp2_prepare_model(accelerator, model)
    except (ImportError, ValueError) as error:
        raise InputError(f"expected a configuration of FSDP2 that accelerate takes, got: {error}") from error


def tell(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None = None) -> None:
    """Make Accelerate use ``plugin``, also on CPUs, where it ignores the launcher.

    The default is for a model that is sharded already: Accelerate would not find its blocks, whose class has changed.
    Checkpoints of the run are written in parts, whatever the launcher says: they only serve a resume.
    """
    if fsdp2():
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin or FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="NO_WRAP", state_dict_type="SHARDED_STATE_DICT"
        )


def gathered(model: nn.Module) -> dict[str, Tensor] | None:
    """The whole weights, on the host of the first process; None without FSDP2. Every process must call this."""
    if not fsdp2():
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weight_by_name: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    name_by_id: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if (first_name := name_by_id.setdefault(id(weight), name)) != name and weight_by_name:
            weight_by_name[name] = weight_by_name[first_name]  # tied: gathered twice, but written once
    return weight_by_name
