"""A loaded model kept in memory, so that it can be made again without its files: bit for bit the same.

Made again by the loader that read it, from copies: a new output head is drawn as it would be beside the files. What is
kept is never trained.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from mixout.finetune.extras import needs
from mixout.finetune.isolation import own_streams
from mixout.finetune.models import Loaded

with needs("hf", "fine-tuning"):
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model as it was loaded.

    Args:
        kind: class of the model.
        config: with the labels of the output head.
        generation: how a language model is asked to generate, which is saved with it; None for other models.
        state: parameters and buffers that the checkpoint holds, on the CPU.
        tokenizer: as it was loaded; to be copied before it is used.
        new: names of the parameters that have no pretrained weights.
        source: where the weights came from, in words.
        sha256: of the weights' file; None where there is no single local file.
    """

    kind: type[PreTrainedModel]
    config: PreTrainedConfig
    generation: GenerationConfig | None
    state: dict[str, Tensor]
    tokenizer: Tokenizer
    new: frozenset[str]
    source: str
    sha256: str | None


def keep(loaded: Loaded) -> Pretrained:
    """Copy what :func:`make` needs.

    Args:
        loaded: as it came, not trained yet.
    """
    held = {name: value for name, value in loaded.model.state_dict().items() if name not in loaded.new}
    return Pretrained(
        kind=type(loaded.model),
        config=copy.deepcopy(loaded.model.config),
        generation=copy.deepcopy(getattr(loaded.model, "generation_config", None)),
        # In one go, so that tied weights are one copy.
        state=copy.deepcopy(held),
        tokenizer=copy.deepcopy(loaded.tokenizer),
        new=loaded.new,
        source=loaded.source,
        sha256=loaded.sha256,
    )


def make(kept: Pretrained, *, init_seed: int) -> Loaded:
    """The model once more.

    Args:
        kept: stays as it is.
        init_seed: seeds the new parameters; the global streams are left as they were.

    Example:
        >>> from mixout.finetune.models import load
        >>> loaded = load("minilm", labels=("no", "yes"), init_seed=0)
        >>> again = make(keep(loaded), init_seed=0)
        >>> torch.equal(loaded.model.classifier.weight, again.model.classifier.weight)
        True
    """
    with own_streams():
        torch.manual_seed(init_seed)
        # The loader takes the tensors that it is given for the parameters: without a copy, training would change them.
        network = kept.kind.from_pretrained(
            None,
            config=copy.deepcopy(kept.config),
            generation_config=copy.deepcopy(kept.generation),
            state_dict=copy.deepcopy(kept.state),
            dtype=torch.float32,
        )
    return Loaded(
        model=network,
        tokenizer=copy.deepcopy(kept.tokenizer),
        new=kept.new,
        source=kept.source,
        sha256=kept.sha256,
    )
