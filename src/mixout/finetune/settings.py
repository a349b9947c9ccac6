"""One fine-tuning run as a value: which model, task, method and optimizer, and every seed.

Frozen, checked when built, JSON both ways. The command line takes its options, defaults and help texts from the fields
below, so that each is written once.

It opens no file and reads no data: whether a model or a task exists is checked when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from mixout._names import nearest
from mixout.errors import InputError
from mixout.finetune.checks import PRESETS as PRESETS
from mixout.finetune.checks import check
from mixout.finetune.checks import kind_of as kind_of

if TYPE_CHECKING:
    from mixout.methods import Method

EMBEDDED = "minilm"
CAUSAL = "causal-lm"
TAGS = "token-classification"
SCHEDULES = "linear cosine constant_with_warmup inverse_sqrt"
TASK_TYPES = ("classification", TAGS, CAUSAL)
_PATHS = ("model", "task", "data_dir", "original")
# Settings without influence on the result.
UNSEEN = ("report_to", "logging_steps", "interpolate")
# What Lee, Cho and Kang 2020 (https://arxiv.org/abs/1909.11299) trained BERT-large with.
PAPER: Mapping[str, Any] = {
    "method": "mixout(0.9, gradient=paper)",
    "where": "paper",
    "optimizer": "bertadam",
    "learning_rate": 2e-5,
    "warmup": 0.1,
    "epochs": 3.0,
    "batch_size": 32,
    "max_length": 128,
}
# The method of a run that names none: chosen by the data, see mixout.finetune.defaults.
AUTO = "auto"
# What anchor_decay without arguments means. A language model learned little within 0.005 (docs/causal-lm.md).
DECAY = {task: f"anchor_decay(radius={0.025 if task == CAUSAL else 0.005})" for task in TASK_TYPES}
BARE = re.compile(r"(?:^|(?<=\+))\s*(\w+)\s*(?=\+|$)")  # a method without arguments, alone or in a sum
RECIPES: Mapping[str, Mapping[str, Any]] = {"auto": {}, "paper": PAPER}
# Former defaults of settings that follow from model and data now: with them a study's earlier runs keep their identity.
FORMER = {"learning_rate": 2e-5, "epochs": 3.0, "batch_size": 32}


def _option(default: Any, text: str, choices: str = "") -> Any:  # noqa: ANN401
    """A field with the help text and choices, separated by blanks, that the command line shows."""
    return field(default=default, metadata={"help": text, "choices": tuple(choices.split())})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the outcome of one run.

    Raises:
        InputError: a value is out of range, or a name is unknown; the message says what was expected.

    Example:
        >>> settings = Settings(method="mixout(0.7)+anchor_decay(radius=0.005)", seed=3)
        >>> settings.resolved().mask_seed
        3
        >>> Settings.from_json(settings.to_json()) == settings
        True
    """

    model: str = _option(EMBEDDED, "hub name or folder of a pretrained model, or 'minilm' (embedded, offline)")
    task: str = _option(
        "docstrings",
        "file or folder of your own, data set of the hub ('imdb', 'org/name:split'), GLUE name, or 'docstrings' "
        "(embedded, offline)",
    )
    task_type: str = _option(
        "classification",
        "classification (regression where a label has a fraction), token-classification (a tag for each word), or "
        "causal-lm (a language model learns the text)",
        " ".join(TASK_TYPES),
    )
    original: str | None = _option(
        None,
        "file with text that the model knew before, to measure what it forgets: a language model's loss on it, or the "
        "similarity of an encoder's hidden states before and after",
    )
    data_dir: str | None = _option(None, "folder with the TSV files of GLUE; without it they come from the hub")
    text_column: str = _option(
        "text", "column with the text; for causal-lm it may hold conversations, such as messages"
    )
    pair_column: str | None = _option(
        None, "column with the second text of a pair; default: text_pair, if there is one"
    )
    label_column: str = _option("label", "column with the label")
    multi_label: bool = _option(
        False, "a cell of the label column may hold several labels, such as 'joy, fear'; lists need no option"
    )
    assistant_only_loss: bool = _option(
        False, "learn only what the assistant says in conversations, not the whole text"
    )
    metric: str | None = _option(None, "score by which runs are compared; default: accuracy, or that of the task")
    method: str = _option(
        AUTO,
        "what keeps the model near its pretrained weights, e.g. 'mixout(0.7)', 'lora(8)', 'dropout(0.1)' or 'plain'; "
        "several are joined by a plus; 'auto' is anchor_decay(radius=0.005), from 400 rows on "
        "anchor_decay(radius=0.01)+dropout(0.0), for more than 7 classes and for tags "
        "anchor_decay(radius=0.04)+dropout(0.0), for causal-lm anchor_decay(radius=0.025)",
    )
    where: str = _option(
        "body", "layers the method acts on: 'body', 'paper', 'all', or a regular expression on their names"
    )
    head: str = _option(
        "plain",
        "what a method that mixes does to the new output head, with the same p: nothing, mixout towards its first "
        "weights, or dropout",
        "plain mixout dropout",
    )
    train_size: int | None = _option(None, "train on a random subset of this size")
    max_length: int = _option(128, "longest input in tokens; longer texts are cut, those of causal-lm into pieces")
    seed: int = _option(0, "seed of everything that is random and has no seed of its own below")
    init_seed: int | None = _option(None, "seed of the new output head")
    data_seed: int | None = _option(None, "seed of the order of the training examples")
    mask_seed: int | None = _option(None, "seed of the masks and of dropout")
    subset_seed: int | None = _option(None, "seed of --train-size; default: 0, so that restarts share the subset")
    optimizer: str = _option(
        "adamw",
        "bertadam is Adam without bias correction, as in the paper; mofo moves a tenth of each matrix; sgd has no "
        "momentum",
        "adamw bertadam mofo sgd",
    )
    # Learning rate, epochs and batch size follow from model, data and method unless they are named: see defaults.py.
    learning_rate: float = _option(None, "highest learning rate, reached after the warm-up")
    weight_decay: float = _option(0.0, "decay of the weights towards 0, without biases and norms")
    layer_decay: float = _option(1.0, "factor between the learning rate of a layer and that of the layer above it")
    reinit_layers: int = _option(0, "give the top N blocks, and what lies above them, new random weights")
    warmup: float = _option(0.1, "share of the steps in which the learning rate rises")
    schedule: str = _option(
        "linear", "how the learning rate changes after the warm-up; linear and cosine end at 0", SCHEDULES
    )
    epochs: float = _option(None, "passes over the training data")
    max_steps: int | None = _option(None, "stop after N steps, whatever --epochs says")
    patience: int | None = _option(None, "stop after N evaluations in a row without a better dev score")
    keep_best: bool = _option(False, "keep the model with the highest dev score, not the last one")
    head_first: float = _option(0.0, "train the new head alone for the first epochs, then everything (LP-FT)")
    batch_size: int = _option(None, "examples per batch")
    batching: str = _option(
        "random",
        "random, as in the paper, or bucketed: examples of similar length together, which saves padding",
        "random bucketed",
    )
    accumulation: int = _option(1, "batches per optimizer step")
    label_smoothing: float = _option(0.0, "share of each label that is spread over all classes in the training loss")
    class_weights: str = _option(
        "none",
        "balanced: rows of rare classes count more in the training loss, so that all classes count the same",
        "none balanced",
    )
    gradient_checkpointing: bool = _option(
        False, "compute activations again in the backward pass: less memory, about a third slower"
    )
    max_grad_norm: float = _option(1.0, "clip the gradient to this norm; 0 turns clipping off")
    precision: str = _option("fp32", "arithmetic of the forward and backward pass", "fp32 bf16 fp16")
    evaluate: str = _option("epoch", "evaluate after each epoch, or only at the end", "epoch end")
    interpolate: tuple[float, ...] = _option(
        (),
        "also score the models between the pretrained weights, T = 0, and the trained ones, T = 1 (WiSE-FT); the "
        "trained model is kept",
    )
    save: str | int = _option("epoch", "checkpoints for --resume: each epoch, none, or every N steps")
    logging_steps: int | None = _option(
        None, "show the training loss every N steps; default: 50 times a run for loggers, 10 times on the console"
    )
    report_to: tuple[str, ...] = _option((), "loggers by their names in transformers, such as tensorboard wandb")

    def __post_init__(self) -> None:
        """Check every field, and bring the method into its canonical spelling."""
        # JSON has no tuples, only lists; and paths may come as os.PathLike.
        for name, value in vars(self).copy().items():
            if isinstance(value, list) or (name in _PATHS and isinstance(value, os.PathLike)):
                object.__setattr__(self, name, tuple(value) if isinstance(value, list) else os.fspath(value))
        if self.report_to == ("none",):  # as transformers spells it
            object.__setattr__(self, "report_to", ())
        if self.method is None:
            object.__setattr__(self, "method", AUTO)
        check(self)
        decay = DECAY[self.task_type]
        object.__setattr__(self, "method", BARE.sub(lambda m: decay if m[1] == "anchor_decay" else m[0], self.method))
        # Imported late: the help of the command line need not wait for torch.
        from mixout.methods import MixingMethod, spell

        try:
            object.__setattr__(self, "method", AUTO if self.method.strip() == AUTO else spell(self.methods))
        except (TypeError, ValueError) as error:
            raise InputError(f"method: {error}") from error
        mixed = any(isinstance(method, MixingMethod) and method.anchor == "given" for method in self.methods)
        if self.head != "plain" and not mixed:
            raise InputError(
                f"expected head={self.head!r} only beside a method that mixes with pretrained weights, whose p it "
                f"takes, got {self.method!r}; use head='plain'"
            )

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that ``method`` names; for 'auto' the default of the task type, until one is chosen."""
        from mixout.finetune.run_methods import parse

        return parse(DECAY[self.task_type] if self.method == AUTO else self.method)

    def resolved(self) -> Settings:
        """The same run with every seed written out."""
        names = ("init_seed", "data_seed", "mask_seed")
        seeds: dict[str, Any] = {name: self.seed for name in names if getattr(self, name) is None}
        return replace(self, subset_seed=self.subset_seed or 0, **seeds)

    def stream_seed(self, purpose: Literal["init", "data", "mask"]) -> int:
        """The number that seeds the random stream of one purpose, in [0, 2**31).

        The seeds of a run are small and usually equal. Used as they are, head and masks would be drawn from one and
        the same stream, and the shuffle of epoch 1 under seed 0 would be that of epoch 0 under seed 1, since the
        sampler adds the epoch to its seed.
        """
        seed = getattr(self.resolved(), f"{purpose}_seed")
        return int.from_bytes(hashlib.sha256(f"mixout {purpose} {seed}".encode()).digest()[:4], "big") >> 1

    def to_json(self) -> str:
        """One JSON object, keys in the order of the fields."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Settings from what :meth:`to_json` wrote; absent keys take their defaults, unknown ones are an InputError."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"expected settings as a JSON object, got text that is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"expected settings as a JSON object, got {type(values).__name__}")
        names = [item.name for item in fields(cls)]
        for name in values:
            if name not in names:
                raise InputError(f"expected a setting, got {name!r}{nearest(name, names)}")
        return cls(**values)

    def digest(self) -> str:
        """The name of the run's default folder: sha256 of the settings that decide the result.

        A study identifies runs also by the content of data and model: see :mod:`mixout.study.identity`.
        """
        values = {name: value for name, value in asdict(self.resolved()).items() if name not in UNSEEN}
        return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()
