"""Mixout with transformers: a callback for its Trainer and those built on it; a loader that names new parameters."""

from typing import TYPE_CHECKING

from mixout.integrations.huggingface.callback import MixoutCallback as MixoutCallback
from mixout.integrations.huggingface.callback import attach_ as attach_
from mixout.integrations.huggingface.loading import from_pretrained as from_pretrained
from mixout.integrations.huggingface.loading import new_parameters as new_parameters
from mixout.integrations.huggingface.loading import pretrained_only as pretrained_only

if not TYPE_CHECKING:

    def __getattr__(name):  # noqa: ANN001, ANN202
        new = "; it is called MixoutCallback now" if name == "AnchorCallback" else ""
        raise AttributeError(f"module 'mixout.integrations.huggingface' has no attribute {name!r}{new}")
