"""One fine-tuning run as a value: which model, task, method and optimizer, and every seed.

Frozen, checked when built, JSON both ways, and with a digest that is the run's identity. The command line takes its
options, defaults and help texts from the fields below, so that each is written once.

It opens no file and reads no data: whether a model or a task exists is found out by who loads it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from mixout.errors import InputError
from mixout.finetune.tasks import is_path
from mixout.methods import MixingMethod, parse, spell
from mixout.methods.text import nearest

T = TypeVar("T")

EMBEDDED = "minilm"
CAUSAL = "causal-lm"
TASK_TYPES = ("classification", CAUSAL)
OPTIMIZERS = ("adamw", "bertadam", "mofo", "sgd")
BATCHINGS = ("random", "bucketed")
PRECISIONS = ("fp32", "bf16", "fp16")
# Of the learning rate after the warm-up, by their names in transformers.
SCHEDULES = ("linear", "cosine", "constant_with_warmup", "inverse_sqrt")
EVALUATIONS = ("epoch", "end")
HEADS = ("plain", "mixout", "dropout")
PRESETS = ("body", "paper", "all")
_PATHS = ("model", "task", "data_dir", "original")
_COUNTS = ("batch_size", "accumulation", "train_size", "max_steps", "patience", "logging_steps")
_SEEDS = ("seed", "init_seed", "data_seed", "mask_seed", "subset_seed")
# Without influence on the result.
UNSEEN = ("report_to", "logging_steps")
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(_SEEDS, (lambda value: 0 <= value < 2**63, "in [0, 2**63)")),
    **dict.fromkeys(("learning_rate", "epochs"), (lambda value: value > 0, "> 0")),
    **dict.fromkeys(("weight_decay", "max_grad_norm", "reinit_layers"), (lambda value: value >= 0, ">= 0")),
    **dict.fromkeys(_COUNTS, (lambda value: value >= 1, ">= 1")),
    "max_length": (lambda value: value >= 2, ">= 2"),
    "layer_decay": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "warmup": (lambda value: 0 <= value < 1, "in [0, 1): it is a share of the steps"),
    "label_smoothing": (lambda value: 0 <= value < 1, "in [0, 1): it is a share of each label"),
}
# Settings that came later. At their default they are no part of the digest, so runs of before keep theirs.
_LATER = {"head", "reinit_layers", "batching", "task_type", "original", "max_steps", "schedule", "label_smoothing"}
_LATER |= {"gradient_checkpointing", "patience", "keep_best"}
# What a setting was before it followed from model and data: at this value a study's runs of before keep their identity.
FORMER = {"learning_rate": 2e-5, "epochs": 3.0, "batch_size": 32}


def _option(default: T, text: str, *, choices: tuple[str, ...] = (), kind: type = str) -> T:
    """A field with the help text, choices and type that the command line shows."""
    option: T = field(default=default, metadata={"help": text, "choices": choices, "kind": kind})
    return option


def _open(text: str, *, kind: type) -> Any:  # noqa: ANN401  a number in every run, None in settings that leave it open
    """A field whose value follows from model, data and method where it is not named: see :mod:`.defaults`."""
    return field(default=None, metadata={"help": text, "choices": (), "kind": kind})


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
    task: str = _option("docstrings", "GLUE name, 'docstrings' (embedded, offline), or a folder or file of your own")
    task_type: str = _option(
        "classification",
        "what is learned: labels, which are classes or values as the data say, or with 'causal-lm' the text itself, "
        "of files of your own",
        choices=TASK_TYPES,
    )
    original: str | None = _option(
        None,
        "file with text of the domain that the model knew before: what is forgotten shows in a causal language model's "
        "loss on it, or in how far an encoder's mean hidden states turn",
    )
    data_dir: str | None = _option(None, "folder with the TSV files of GLUE; without it the hub is asked")
    text_column: str = _option("text", "column with the text, in files of your own")
    pair_column: str | None = _option(
        None, "column with the second text; without it 'text_pair' is used where there is one"
    )
    label_column: str = _option("label", "column with the label, in files of your own")
    metric: str | None = _option(None, "the score that counts; without it the task's own")
    method: str = _option(
        "anchor_decay(radius=0.005)",
        "what keeps the model near its pretrained weights, e.g. 'mixout(0.7)', 'dropout(0.1)' or 'plain'; several are "
        "joined by a plus",
    )
    where: str = _option(
        "body", "layers the method acts on: 'body', 'paper', 'all', or a regular expression on their names"
    )
    head: str = _option(
        "plain",
        "what acts on the new output head, beside a mixing method and with its p: nothing, 'mixout' towards its first "
        "weights, or 'dropout'",
        choices=HEADS,
    )
    train_size: int | None = _option(None, "train on a random subset of this size", kind=int)
    max_length: int = _option(
        128, "longest input, in tokens; longer ones are cut, a causal language model's into pieces", kind=int
    )
    seed: int = _option(0, "the seed that the other seeds follow unless they are given", kind=int)
    init_seed: int | None = _option(None, "seed of the new output head", kind=int)
    data_seed: int | None = _option(None, "seed of the order of the training examples", kind=int)
    mask_seed: int | None = _option(None, "seed of the masks and of dropout", kind=int)
    subset_seed: int | None = _option(
        None, "seed of --train-size; 0 unless given, whatever --seed is, so restarts share the subset", kind=int
    )
    optimizer: str = _option(
        "adamw",
        "optimizer; 'bertadam' has no bias correction, as in the paper; 'mofo' moves a tenth of each matrix; 'sgd' has "
        "no momentum",
        choices=OPTIMIZERS,
    )
    learning_rate: float = _open("highest learning rate, reached after the warm-up", kind=float)
    weight_decay: float = _option(0.0, "decay of the weights towards 0; not of biases and norms", kind=float)
    layer_decay: float = _option(1.0, "factor on the learning rate per layer, from the top down", kind=float)
    reinit_layers: int = _option(
        0, "blocks at the top, and what lies above them, that start anew without their pretrained weights", kind=int
    )
    warmup: float = _option(0.1, "share of the steps in which the learning rate rises", kind=float)
    schedule: str = _option(
        "linear", "how the learning rate goes on after the warm-up; the first two end at 0", choices=SCHEDULES
    )
    epochs: float = _open("passes over the training data", kind=float)
    max_steps: int | None = _option(None, "end after so many steps, whatever --epochs says", kind=int)
    patience: int | None = _option(
        None, "end after so many evaluations in a row without a better score on the dev set", kind=int
    )
    keep_best: bool = _option(
        False, "the model of the evaluation with the highest dev score instead of the last one", kind=bool
    )
    batch_size: int = _open("examples per batch", kind=int)
    batching: str = _option(
        "random",
        "what a batch is made of: any examples, as in the paper, or 'bucketed': examples of like length, which hold "
        "less padding",
        choices=BATCHINGS,
    )
    accumulation: int = _option(1, "batches per optimizer step", kind=int)
    label_smoothing: float = _option(
        0.0, "share of each label that is spread over all classes, in the training loss", kind=float
    )
    gradient_checkpointing: bool = _option(
        False, "compute activations again in the backward pass: less memory, about a third slower", kind=bool
    )
    max_grad_norm: float = _option(1.0, "clip the gradient to this norm; 0 turns clipping off", kind=float)
    precision: str = _option("fp32", "arithmetic of the forward and backward pass", choices=PRECISIONS)
    evaluate: str = _option("epoch", "evaluate after each epoch, or only at the end", choices=EVALUATIONS)
    save: str | int = _option("epoch", "checkpoints for --resume: 'epoch', 'no', or every so many steps")
    logging_steps: int | None = _option(
        None, "steps between two points of the training loss, for loggers and console; without it 50 a run", kind=int
    )
    report_to: tuple[str, ...] = _option((), "loggers, by their names in transformers, e.g. tensorboard wandb")

    def __post_init__(self) -> None:
        """Check every field, and bring the method into its canonical spelling."""
        # JSON knows lists only, and paths may come as os.PathLike.
        if isinstance(self.report_to, list):
            object.__setattr__(self, "report_to", tuple(self.report_to))
        for name in _PATHS:
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        _check_names(self)
        _check_numbers(self)
        try:
            object.__setattr__(self, "method", spell(parse(self.method)))
        except (TypeError, ValueError) as error:
            raise InputError(f"method: {error}") from error
        mixed = any(isinstance(method, MixingMethod) and method.anchor == "given" for method in parse(self.method))
        if self.head != "plain" and not mixed:
            raise InputError(
                f"expected head={self.head!r} only beside a method that mixes with pretrained weights, whose p it "
                f"takes, got {self.method!r}; use head='plain'"
            )

    def resolved(self) -> Settings:
        """The same run with every seed written out."""
        return replace(
            self,
            init_seed=self.seed if self.init_seed is None else self.init_seed,
            data_seed=self.seed if self.data_seed is None else self.data_seed,
            mask_seed=self.seed if self.mask_seed is None else self.mask_seed,
            subset_seed=0 if self.subset_seed is None else self.subset_seed,
        )

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
        """Settings from what :meth:`to_json` wrote; absent keys take their defaults.

        Raises:
            InputError: not a JSON object, or it has a key that is no setting.
        """
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
        """The run's identity: sha256 of the resolved settings.

        Equal for two spellings of one path; a name that is no path stays itself, whatever lies in the working
        directory. What changes only what is watched, not the result, is left out. A setting that came later is
        left out at its default, so that it leaves the identity of earlier runs alone.
        """
        values = asdict(self.resolved())
        for name in UNSEEN:
            del values[name]
        for item in fields(self):
            if item.name in _LATER and values[item.name] == item.default:
                del values[item.name]
        for name, used in _used_paths(self).items():
            if os.path.exists(used):
                values[name] = os.path.realpath(used)
        return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _used_paths(settings: Settings) -> dict[str, str]:
    """The settings that are read as paths: those that whoever loads them does not take for a name."""
    found = {}
    model = os.path.expanduser(settings.model)
    if settings.model != EMBEDDED and os.path.isdir(model):
        found["model"] = model
    if is_path(settings.task):
        found["task"] = settings.task
    for name in ("data_dir", "original"):
        if (path := getattr(settings, name)) is not None:
            found[name] = path
    return found


def _check_names(settings: Settings) -> None:
    for item in fields(settings):
        value = getattr(settings, item.name)
        if item.metadata["kind"] is str and item.name not in ("save", "report_to"):
            optional = item.default is None and value is None
            if not optional and (not isinstance(value, str) or not value.strip()):
                raise InputError(f"expected {item.name} as text that is not empty, got {value!r}")
        if item.metadata["kind"] is bool and not isinstance(value, bool):
            raise InputError(f"expected {item.name} as true or false, got {value!r}")
        choices = item.metadata["choices"]
        if choices and value not in choices:
            raise InputError(f"expected {item.name} in {choices}, got {value!r}{nearest(str(value), choices)}")
    if settings.where not in PRESETS:
        try:
            re.compile(settings.where)
        except re.error as error:
            raise InputError(
                f"expected where as one of {PRESETS} or a regular expression, got {settings.where!r}: {error}"
            ) from error
    save = settings.save
    if save not in ("epoch", "no") and (isinstance(save, (str, bool)) or save < 1):
        raise InputError(f"expected save as 'epoch', 'no' or a number of steps >= 1, got {save!r}")
    loggers: object = settings.report_to
    # A text is a sequence of texts too: its letters.
    if not isinstance(loggers, tuple) or not all(isinstance(name, str) for name in loggers):
        raise InputError(f'expected report_to as names of loggers, such as ("tensorboard",), got {loggers!r}')


def _check_numbers(settings: Settings) -> None:
    for item in fields(settings):
        name, kind, value = item.name, item.metadata["kind"], getattr(settings, item.name)
        if kind not in (int, float) or (value is None and item.default is None):
            continue
        if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
            raise InputError(f"expected {name} as a whole number, got {value!r}")
        if kind is float:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InputError(f"expected {name} as a finite number, got {value!r}")
            object.__setattr__(settings, name, float(value))
        holds, expected = _RANGES[name]
        if not holds(value):
            raise InputError(f"expected {name} {expected}, got {value!r}")
    if settings.evaluate != "epoch" and (settings.patience is not None or settings.keep_best):
        raise InputError(
            "expected evaluate='epoch' with patience or keep_best, which compare evaluations, got 'end'; use "
            "evaluate='epoch', or leave them out"
        )
