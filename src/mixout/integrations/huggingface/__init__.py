"""Mixout with transformers: callbacks for its Trainer and those built on it; a loader that names new parameters."""

from typing import TYPE_CHECKING

from mixout._names import renamed
from mixout.errors import needs

with needs("hf", "the Trainer of transformers"):
    from mixout.integrations.huggingface.callback import HeadFirst as HeadFirst
    from mixout.integrations.huggingface.callback import MixoutCallback as MixoutCallback
    from mixout.integrations.huggingface.callback import attach_ as attach_
    from mixout.integrations.huggingface.loading import from_pretrained as from_pretrained
    from mixout.integrations.huggingface.loading import new_parameters as new_parameters
    from mixout.integrations.huggingface.loading import pretrained_only as pretrained_only

if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, {"AnchorCallback": "MixoutCallback"})
