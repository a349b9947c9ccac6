"""FSDP2: each process holds a part of the model, as the launcher asks: ``accelerate launch`` with ``fsdp_version: 2``.

Accelerate shards where the Trainer begins to train. A method that is applied before that would keep the whole anchor in
each process. So the model is sharded here, in the way that the launcher's configuration says, then the methods are
applied, and Accelerate leaves a model that is sharded as it is. Each process reads the whole weights and keeps them on
its host, to measure the distance.

Weights are gathered, and gradients reduced, in float32: the precision of the forward pass is autocast's, as without
FSDP2.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from mixout.errors import InputError, needs
from mixout.finetune.course import without_launcher
from mixout.finetune.environment import fsdp2
from mixout.finetune.run_methods import Lora, MeasuredDecay
from mixout.finetune.settings import CAUSAL, Settings

with needs("hf", "fine-tuning"):
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
    from accelerate.utils import fsdp2_prepare_model

# What a launcher may ask for besides, and what to do instead.
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
    for what, instead in refused.items():
        if instead:
            raise InputError(f"expected what FSDP2 can train, got {what}, which works on whole models only; {instead}")


def shard_(model: nn.Module) -> None:
    """Under FSDP2 let each process hold its part of ``model``, in place; all of them hold the same model before.

    Raises:
        InputError: Accelerate does not take the launcher's configuration.
    """
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
    """Let Accelerate work by ``plugin``, on CPUs too, where it does not listen to the launcher.

    By default for a model that is sharded already, whose blocks Accelerate would not find again: they have another
    class by now. Checkpoints of the run are written in parts, whatever the launcher says: they are there for a resume.
    """
    if fsdp2():
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin or FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="NO_WRAP", state_dict_type="SHARDED_STATE_DICT"
        )


def gathered(model: nn.Module) -> dict[str, Tensor] | None:
    """The whole weights, on the host of the first process; None where each has them. Every process must ask."""
    if not fsdp2():
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    found: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    first: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if (other := first.setdefault(id(weight), name)) != name and found:
            found[name] = found[other]  # tied: gathered twice, but written once
    return found
