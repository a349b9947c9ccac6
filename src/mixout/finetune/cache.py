"""What the runs of one process share: pretrained weights, tokenizer, tokens, data of the hub; nothing trained.

A run from the cache equals one from the files, bit for bit: it gets copies, and its new output head is drawn by the
same code. Nothing goes stale while a process lives: texts are known by their content, and a model's folder is read
again when a file in it has changed. What comes from the hub is asked for once.

One model is kept, the last: a study that goes task by task reads it once a task. Not for several threads.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixout.finetune import causal, data, models
from mixout.finetune.batches import DevSet, Example, Tokenizer, cut_texts, encode, scored
from mixout.finetune.causal import DevTexts
from mixout.finetune.environment import own_streams
from mixout.finetune.models import Loaded
from mixout.finetune.settings import CAUSAL, EMBEDDED, Settings
from mixout.finetune.tasks import Split, Task, is_path


class Cache:
    """Provides what a run needs, and keeps what the next run may share."""

    def __init__(self) -> None:
        self._model: tuple[Hashable, Loaded] | None = None
        self._tasks: dict[Hashable, Task] = {}
        self._tokens: dict[Hashable, list[Example]] = {}

    def task(self, settings: Settings) -> Task:
        """The task of ``settings``, its training data cut to ``train_size``; files are read anew."""
        if settings.data_dir is not None or is_path(settings.task):
            return data.subset(data.load(settings), settings)
        key = *(getattr(settings, name) for name in data.READ), settings.assistant_only_loss  # which may be refused
        if key not in self._tasks:
            self._tasks[key] = data.load(settings)
        return data.subset(self._tasks[key], settings)

    def model(self, settings: Settings, task: Task) -> tuple[Loaded, Mapping[str, Tensor]]:
        """The model that a run with these settings on this task begins with, and the pretrained values of its weights.

        The values are shared: do not change them. Parameters that are new have none.
        """
        model, init_seed = settings.model, settings.stream_seed("init")
        several = task.kind == "labels"
        options: dict[str, Any] = {"labels": task.labels, "task_type": settings.task_type, "several": several}
        key = (model, *options.items(), _signature(model))
        if self._model is not None and self._model[0] == key:
            loaded = again(self._model[1], init_seed=init_seed)
        else:
            # Freed before the next one is read: memory may not hold both.
            self._model = None
            self._tokens.clear()
            loaded = models.load(model, init_seed=init_seed, **options)
            self._model = key, copy.deepcopy(loaded)
        cached = self._model[1]
        return loaded, {name: p.detach() for name, p in cached.model.named_parameters() if name not in cached.new}

    def tokens(self, split: Split, settings: Settings) -> list[Example]:
        """The tokens of a split, by the last model's tokenizer; shared, so do not change them."""
        key = (split.fingerprint(), settings.max_length, settings.assistant_only_loss)
        if key not in self._tokens:
            encode_text = partial(causal.encode, assistant_only=settings.assistant_only_loss)
            encoder = encode_text if settings.task_type == CAUSAL else encode
            self._tokens[key] = encoder(split, self._tokenizer(), settings.max_length)
        return self._tokens[key]

    def dev(self, task: Task, settings: Settings) -> DevSet | DevTexts:
        """The dev set in tokens, with the text of the original domain where a language model has some."""
        examples, smoothing = self.tokens(task.dev, settings), settings.label_smoothing
        if task.kind != "text":
            task = scored(task, self.tokens(task.train, settings), examples)
            return DevSet(task, examples, smoothing, balanced=settings.class_weights == "balanced")
        return DevTexts(task, examples, self.tokens(task.original, settings) if task.original else [], smoothing)

    def cut(self, task: Task, settings: Settings) -> tuple[int, int]:
        """How many training and dev texts lose their end; 0 for a language model, whose texts become windows."""
        if task.kind == "text":
            return 0, 0
        parts, tokenizer = (task.train, task.dev), self._tokenizer()
        train, dev = (cut_texts(part, self.tokens(part, settings), tokenizer, settings.max_length) for part in parts)
        return train, dev

    def _tokenizer(self) -> Tokenizer:
        """A copy: encoding changes a tokenizer, and the change would be saved with the model."""
        return copy.deepcopy(self._model[1].tokenizer)  # type: ignore[index]  # a model is loaded before its tokens


def again(loaded: Loaded, *, init_seed: int) -> Loaded:
    """A copy of an untrained model, its new parameters drawn from a seed; the global streams are left as they were."""
    model = loaded.model
    pretrained = {name: value for name, value in model.state_dict().items() if name not in loaded.new}
    with own_streams():
        torch.manual_seed(init_seed)
        # A copy, since the loader keeps the tensors that it gets: one copy of all, so that tied weights stay tied.
        network = type(model).from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            generation_config=copy.deepcopy(getattr(model, "generation_config", None)),
            state_dict=copy.deepcopy(pretrained),
            dtype=torch.float32,
        )
    return replace(loaded, model=network, tokenizer=copy.deepcopy(loaded.tokenizer))


def _signature(model: str) -> Hashable:
    """A value that changes with the files of a model's folder; None for the embedded model and names of the hub."""
    folder = Path(os.path.expanduser(model))
    if model == EMBEDDED or not folder.is_dir():
        return None
    files = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in files)
