"""Mixout in Lightning: p on a schedule, p and the distance from the anchor in the logs, exact resume.

Lightning's checkpoints hold neither the state of torch's random generators, from which masks are drawn, nor anything
of mixout; the callback adds both. Lightning itself resumes the data: exactly at the end of an epoch, and within
one if the dataloader has ``state_dict`` and ``load_state_dict``. With several processes the first one's state is
restored in all; pass ``seed=`` to ``apply_`` there.
"""

# ruff: noqa: ANN401, ARG002  the signatures of the overridden methods are those of Lightning
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import mixout
from mixout._names import renamed
from mixout.errors import AnchorMismatchError, MissingExtraError, missing_module
from mixout.integrations import measures
from mixout.reach import warn_if_adapted_later
from mixout.record import applied_to, follow_, mixing_of
from mixout.schedule import Schedule, check_schedule

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"expected lightning to be installed, got no {missing_module(error)!r}; run: pip install lightning"
    ) from error

_KEY = "mixout"


class MixoutCallback(Callback):
    """Keeps p on a schedule, logs p and ||w - u||, and saves and checks :func:`mixout.save_state`.

    Apply the method to the pretrained model in the module's ``__init__`` or ``configure_model``, then let
    ``trainer.fit(module, ckpt_path=...)`` load the checkpoint's weights.

    >>> from lightning.pytorch import Trainer
    >>> trainer = Trainer(callbacks=[MixoutCallback()], logger=False, enable_checkpointing=False, accelerator="cpu")

    Args:
        schedule: p as a function of the optimizer steps done; None leaves p alone, and a resumed run gets its own back.
        log: log what :func:`mixout.integrations.measures` finds after the step just done, every
            ``log_every_n_steps`` optimizer steps and at the end of each epoch. It reads all anchored weights.

    Raises:
        NotAppliedError: when training begins, if the module carries no method, or with ``schedule`` none that mixes.
        AnchorMismatchError: on resume, if the model is anchored elsewhere than the run that wrote the checkpoint, or
            if the checkpoint was written without this callback.
        MixoutError: on resume, if the method differs.
    """

    def __init__(self, *, schedule: Schedule | None = None, log: bool = True) -> None:
        self.schedule = schedule
        self._logs = log  # Lightning sets an attribute log of its own
        self._streams: dict[str, Any] | None = None
        self._within_epoch = False
        self._told = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning casts the module after it has loaded a checkpoint: float64 weights would be rounded to float32."""
        self._streams = None  # of a checkpoint that was loaded before, as by Tuner.lr_find
        if trainer.precision == "64-true":
            pl_module.double()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Beside the weights: method, anchor, p, masks drawn; and the generators, which masks are drawn from."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        streams = {"cpu": torch.get_rng_state(), "cuda": cuda}
        checkpoint[_KEY] = {"model": mixout.save_state(pl_module), "streams": streams}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The anchor must still be the old one."""
        if _KEY not in checkpoint:
            raise AnchorMismatchError(
                "expected a checkpoint that holds the anchor's fingerprint, got none; the anchor of a run saved "
                "without MixoutCallback cannot be checked, start it again"
            )
        mixout.load_state_(pl_module, checkpoint[_KEY]["model"])
        self._streams = checkpoint[_KEY]["streams"]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        self._within_epoch = not progress["is_last_batch"]
        # Strategies that load after their set-up (FSDP) do so after on_fit_start.
        _restore(self._streams)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last moment before the dataloader draws the order of the next epoch."""
        applied_to(pl_module)  # without a method this raises
        warn_if_adapted_later(pl_module)
        if self.schedule is not None:
            check_schedule(pl_module, self.schedule)
        self._follow(trainer, pl_module)
        if self._streams is not None:
            _restore(self._streams)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Within an epoch the order was drawn before the checkpoint: what the dataloader has drawn now is undone."""
        if not self._told:
            self._told = True
            for mixing in mixing_of(applied_to(pl_module)):
                mixing.watch.look()  # Lightning leaves a module's mode as it is
        self._follow(trainer, pl_module)
        if self._streams is not None and self._within_epoch:
            _restore(self._streams)
        self._streams = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning begins the epoch of a checkpoint again, if only to end it: its dataloader has drawn once more."""
        if self._streams is not None:
            _restore(self._streams)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """As often as Lightning hands metrics to its loggers, and before an epoch's end, when monitors look."""
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._logs and (trainer.is_last_batch or (interval and trainer.global_step % interval == 0)):
            pl_module.log_dict(measures(pl_module), on_step=True, on_epoch=False)

    def _follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.schedule is not None:
            follow_(pl_module, self.schedule(trainer.global_step))


def _restore(streams: dict[str, Any]) -> None:
    torch.set_rng_state(streams["cpu"].cpu())
    if streams["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in streams["cuda"]])


if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, {"AnchorCallback": "MixoutCallback"})
