"""Where the weights of this moment were loaded from, as far as a model of transformers tells.

A checkpoint of a run under way is the usual mistake of a resume: loaded before ``apply_``, it becomes the anchor. The
Trainer leaves ``trainer_state.json`` in such a folder. Weights from elsewhere (``load_state_dict``, Lightning) leave no
trace; there only the fingerprint, checked on resume, tells.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from torch import nn

from mixout.errors import FineTunedAnchorWarning

_STATE = "trainer_state.json"


def warn_if_fine_tuned(model: nn.Module) -> None:
    """Warn if ``model``, or a part of it, was loaded from a checkpoint of a training run."""
    places = {getattr(module, "name_or_path", None) for module in model.modules()}
    for place in sorted(place for place in places if isinstance(place, str) and place):
        file = Path(place) / _STATE
        if file.is_file():
            warnings.warn(
                f"expected pretrained weights as the anchor, got those of {_step(file)} of a run, loaded from "
                f"{place!r}, which holds {_STATE}; load the pretrained model, call apply_, then resume from the "
                f"checkpoint; or pass anchor={place!r} if these weights are meant",
                FineTunedAnchorWarning,
                stacklevel=3,  # who called apply_
            )


def _step(file: Path) -> str:
    try:
        return f"step {json.loads(file.read_text(encoding='utf-8'))['global_step']}"
    except (ValueError, LookupError, TypeError):  # cut off, or not as the Trainer writes it: it tells as much
        return "some step"
