"""Where a model's current weights were loaded from, as far as a model of transformers tells.

A checkpoint of a run under way is the usual mistake of a resume: loaded before ``apply_``, it becomes the anchor. The
Trainer leaves ``trainer_state.json`` in such a folder, and ``trainer.save_model`` leaves ``training_args.bin``. Weights
from elsewhere (``load_state_dict``, Lightning) leave no trace; there only the fingerprint, checked on resume, tells.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from torch import nn

from mixout.errors import FineTunedAnchorWarning

_STATE, _ARGUMENTS = "trainer_state.json", "training_args.bin"


def warn_if_fine_tuned(model: nn.Module) -> None:
    """Warn if ``model``, or a part of it, was loaded from a folder that a Trainer wrote."""
    folders = {getattr(module, "name_or_path", None) for module in model.modules()}
    for folder in sorted(folder for folder in folders if isinstance(folder, str) and folder):
        mark = next((name for name in (_STATE, _ARGUMENTS) if (Path(folder) / name).is_file()), None)
        if mark is not None:
            when = _step(Path(folder) / _STATE) if mark == _STATE else "the end"
            warnings.warn(
                f"expected pretrained weights as the anchor, got those of {when} of a run, loaded from {folder!r}, "
                f"which holds {mark}; load the pretrained model, call apply_, then load the fine-tuned weights or "
                f"resume; or pass anchor={folder!r} if these weights are meant",
                FineTunedAnchorWarning,
                stacklevel=3,  # who called apply_
            )


def _step(file: Path) -> str:
    try:
        return f"step {json.loads(file.read_text(encoding='utf-8'))['global_step']}"
    except (ValueError, LookupError, TypeError):  # cut off, or not as the Trainer writes it
        return "some step"
