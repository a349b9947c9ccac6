"""What the runs of one process share: pretrained weights, tokenizer, tokens, data of the hub. Nothing that is trained.

A run from the cache equals one from the files, bit for bit: it gets copies, and its new output head is drawn by the
same code. Nothing goes stale while a process lives: texts are known by their content, and a model's folder is read
again when a file in it has changed. What comes from the hub is asked for once.

One model is kept, the last: a study that goes task by task reads it once a task. Not for several threads.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixout.finetune import causal, data, models
from mixout.finetune.batches import Example, encode
from mixout.finetune.environment import own_streams
from mixout.finetune.extras import needs
from mixout.finetune.models import Loaded
from mixout.finetune.settings import CAUSAL, EMBEDDED, TASK_TYPES, Settings
from mixout.finetune.tasks import Split, Task, is_path
from mixout.finetune.tasks.documents import Corpus, Documents

with needs("hf", "fine-tuning"):
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel


_OF_TASK = ("task", "task_type", "original", "metric", "text_column", "pair_column", "label_column")


class Cache:
    """Hands out what a run needs, and keeps what the next one may share.

    Example:
        >>> cache = Cache()
        >>> first, _ = cache.model("minilm", labels=("no", "yes"), init_seed=0)
        >>> second, _ = cache.model("minilm", labels=("no", "yes"), init_seed=0)
        >>> first.model is second.model
        False
        >>> bool((first.model.classifier.weight == second.model.classifier.weight).all())
        True
    """

    def __init__(self) -> None:
        self._model: tuple[Hashable, Pretrained] | None = None
        self._tasks: dict[Hashable, Task | Corpus] = {}
        self._tokens: dict[Hashable, list[Example]] = {}

    def task(self, settings: Settings) -> Task | Corpus:
        """The task of ``settings``, its training data cut to ``train_size``."""
        return data.subset(self._task(settings), settings)

    def model(
        self, model: str, *, labels: tuple[str, ...] | None, init_seed: int, task_type: str = TASK_TYPES[0]
    ) -> tuple[models.Loaded, Mapping[str, Tensor]]:
        """What :mod:`mixout.finetune.models` loads for a type of task, and the pretrained values of its parameters.

        The values are shared: they are there to be read. Parameters that are new have none.
        """
        key = (model, task_type, labels, _signature(model))
        if self._model is not None and self._model[0] == key:
            kept = self._model[1]
            loaded = make(kept, init_seed=init_seed)
        else:
            # Gone before the next one is read: both need not fit into memory.
            self._model = None
            self._tokens.clear()
            if task_type == CAUSAL:
                loaded = models.load_causal(model)
            else:
                loaded = models.load(model, labels=labels, init_seed=init_seed)
            kept = keep(loaded)
            self._model = key, kept
        names = (name for name, _ in loaded.model.named_parameters())
        return loaded, {name: kept.state[name] for name in names if name in kept.state}

    def tokens(self, split: Split | Documents, max_length: int) -> list[Example]:
        """A split in the tokens of the last model; shared, to be read."""
        if self._model is None:
            raise RuntimeError("expected a model before its tokens, got none; call model() first")
        key = (split.fingerprint(), max_length)
        if key not in self._tokens:
            # A copy: encoding leaves its marks on a tokenizer, which would be saved with the model.
            tokenizer = copy.deepcopy(self._model[1].rest["tokenizer"])
            encoded = causal.encode if isinstance(split, Documents) else encode
            self._tokens[key] = encoded(split, tokenizer, max_length)  # type: ignore[arg-type]
        return self._tokens[key]

    def _task(self, settings: Settings) -> Task | Corpus:
        if settings.data_dir is not None or is_path(settings.task):
            return data.load(settings)
        key = tuple(getattr(settings, name) for name in _OF_TASK)
        if key not in self._tasks:
            self._tasks[key] = data.load(settings)
        return self._tasks[key]


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model as it was loaded, to be made again."""

    kind: type[PreTrainedModel]
    config: PreTrainedConfig
    generation: GenerationConfig | None  # of a language model, which is saved with it
    state: dict[str, Tensor]  # parameters and buffers that the checkpoint holds, on the CPU
    rest: dict[str, Any]  # of Loaded


def keep(loaded: Loaded) -> Pretrained:
    """Copy what :func:`make` needs of a model that is not trained yet."""
    held = {name: value for name, value in loaded.model.state_dict().items() if name not in loaded.new}
    return Pretrained(
        kind=type(loaded.model),
        config=copy.deepcopy(loaded.model.config),
        generation=copy.deepcopy(getattr(loaded.model, "generation_config", None)),
        # In one go, so that tied weights are one copy.
        state=copy.deepcopy(held),
        rest=copy.deepcopy({name: value for name, value in vars(loaded).items() if name != "model"}),
    )


def make(kept: Pretrained, *, init_seed: int) -> Loaded:
    """The model once more, its new parameters from a seed; the global streams are left as they were.

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
    return Loaded(model=network, **copy.deepcopy(kept.rest))


def _signature(model: str) -> Hashable:
    """What changes when a file of a model's folder does; nothing for the embedded one and for names of the hub."""
    folder = Path(os.path.expanduser(model))
    if model == EMBEDDED or not folder.is_dir():
        return None
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in found)
