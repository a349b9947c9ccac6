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
OPTIMIZERS = ("adamw", "bertadam", "sgd")
BATCHINGS = ("random", "bucketed")
PRECISIONS = ("fp32", "bf16", "fp16")
EVALUATIONS = ("epoch", "end")
HEADS = ("plain", "mixout", "dropout")
PRESETS = ("body", "paper", "all")
_PATHS = ("model", "task", "data_dir", "original")
_SEEDS = ("seed", "init_seed", "data_seed", "mask_seed", "subset_seed")
_LEAST = {"batch_size": 1, "accumulation": 1, "max_length": 2, "train_size": 1, "reinit_layers": 0}
# Settings that came later. At their default they are no part of the digest, so runs of before keep theirs.
_LATER = ("head", "reinit_layers", "batching", "task_type", "original")


def _option(default: T, text: str, *, choices: tuple[str, ...] = (), kind: type = str) -> T:
    """A field with the help text, choices and type that the command line shows."""
    option: T = field(default=default, metadata={"help": text, "choices": choices, "kind": kind})
    return option


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
    method: str = _option("mixout(0.9)", "method, e.g. 'mixout(0.9)' or 'anchor_decay(radius=0.005)'")
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
        "optimizer; 'bertadam' has no bias correction, as in the paper; 'sgd' has no momentum",
        choices=OPTIMIZERS,
    )
    learning_rate: float = _option(2e-5, "highest learning rate, reached after the warm-up", kind=float)
    weight_decay: float = _option(0.0, "decay of the weights towards 0; not of biases and norms", kind=float)
    layer_decay: float = _option(1.0, "factor on the learning rate per layer, from the top down", kind=float)
    reinit_layers: int = _option(
        0, "blocks at the top, and what lies above them, that start anew without their pretrained weights", kind=int
    )
    warmup: float = _option(0.1, "share of the steps in which the learning rate rises", kind=float)
    epochs: float = _option(3.0, "passes over the training data", kind=float)
    batch_size: int = _option(32, "examples per batch", kind=int)
    batching: str = _option(
        "random",
        "what a batch is made of: any examples, as in the paper, or 'bucketed': examples of like length, which hold "
        "less padding",
        choices=BATCHINGS,
    )
    accumulation: int = _option(1, "batches per optimizer step", kind=int)
    max_grad_norm: float = _option(1.0, "clip the gradient to this norm; 0 turns clipping off", kind=float)
    precision: str = _option("fp32", "arithmetic of the forward and backward pass", choices=PRECISIONS)
    evaluate: str = _option("epoch", "evaluate after each epoch, or only at the end", choices=EVALUATIONS)
    save: str | int = _option("epoch", "checkpoints for --resume: 'epoch', 'no', or every so many steps")
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
        directory. ``report_to`` is left out: it changes what is watched, not the result. A setting that came later is
        left out at its default, so that it leaves the identity of earlier runs alone.
        """
        values = asdict(self.resolved())
        del values["report_to"]
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
    def check(name: str, kind: type, holds: bool, expected: str) -> None:
        value: Any = getattr(settings, name)
        if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
            raise InputError(f"expected {name} as a whole number, got {value!r}")
        if not holds:
            raise InputError(f"expected {name} {expected}, got {value!r}")

    for item in fields(settings):
        value = getattr(settings, item.name)
        if item.metadata["kind"] is float:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InputError(f"expected {item.name} as a finite number, got {value!r}")
            object.__setattr__(settings, item.name, float(value))
    for name in _SEEDS:
        seed = getattr(settings, name)
        if seed is not None or name == "seed":
            check(name, int, isinstance(seed, int) and 0 <= seed < 2**63, "in [0, 2**63)")
    for name, least in _LEAST.items():
        number = getattr(settings, name)
        if number is not None or name != "train_size":
            check(name, int, isinstance(number, int) and number >= least, f">= {least}")
    check("learning_rate", float, settings.learning_rate > 0, "> 0")
    check("weight_decay", float, settings.weight_decay >= 0, ">= 0")
    check("layer_decay", float, 0 < settings.layer_decay <= 1, "in (0, 1]")
    check("warmup", float, 0 <= settings.warmup < 1, "in [0, 1): it is a share of the steps")
    check("epochs", float, settings.epochs > 0, "> 0")
    check("max_grad_norm", float, settings.max_grad_norm >= 0, ">= 0")
