"""A planned run, and what makes two runs the same, wherever their files lie: a hash of settings, data and weights.

Settings that are paths stand for content: the sha256 of the data takes the place of ``task``, ``data_dir``,
``original`` and the columns, that of the weights the place of ``model``. So two machines with the files in different
folders agree, and a changed file makes another run. Settings at their default are left out, so that a setting that is
added later does not change the identity of earlier runs; a changed default is a new major version, which is part of
the identity. Settings that are only watched are not: the metric, evaluations, checkpoints, loggers, device, workers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import mixout
from mixout import dropouts
from mixout.finetune import data as inputs
from mixout.finetune import metrics
from mixout.finetune.defaults import complete
from mixout.finetune.levels import check_limits
from mixout.finetune.models import outline, revision
from mixout.finetune.settings import AUTO, FORMER, UNSEEN, Settings
from mixout.finetune.tasks import Task
from mixout.finetune.values import far
from mixout.methods import Dropout, MixingMethod, Plain
from mixout.study.analysis.runs import Restart

COLUMNS = ("text_column", "pair_column", "label_column")
PLACES = ("model", "task", "data_dir", "original")  # where things lie: represented by their content
_WATCHED = {"metric": None, "evaluate": "epoch", "save": "epoch"}  # with the defaults of 0.1
WATCHED = (*UNSEEN, *_WATCHED)  # without influence on the result
_LEFT_OUT = (*PLACES, *COLUMNS, "seed", *WATCHED)  # the four resolved seeds represent ``seed``


@dataclass(frozen=True, kw_only=True)
class Planned(Restart):
    """One run of a study, not yet run."""

    id: str  # its identity
    former: tuple[str, ...] = ()  # identities that 0.1 gave to the same run
    settings: Settings  # everything that the run needs
    metric: str  # the score that counts
    chance: float | None  # what a constant answer scores; None where that is not known before the run
    looks: int = 1  # how often the study is to be looked at before restarts are added


class Inputs:
    """The data and weights that runs ask for, each read once.

    Example:
        >>> inputs = Inputs()
        >>> settings = Settings(train_size=16)
        >>> inputs.identity(settings) == inputs.identity(Settings(train_size=16, report_to=("wandb",)))
        True
    """

    def __init__(self) -> None:
        self._tasks: dict[Hashable, tuple[Task, str, float | None]] = {}
        self._subsets: set[tuple[str, int, int]] = set()
        self._revision, self._outline = cache(revision), cache(outline)

    def planned(self, place: Restart, settings: Settings, *, check: bool) -> Planned:
        """The run with these settings in its place; ``check``: see :meth:`check`; raises as :meth:`identity`."""
        settings = self.complete(settings)
        if check:
            self.check(settings)
        metric, chance = self.goal(settings)
        values = self._values(settings)
        return Planned(
            **vars(place),
            id=_hash(values),
            former=self._former(settings, values),
            settings=settings,
            metric=metric,
            chance=chance,
        )

    def identity(self, settings: Settings) -> str:
        """The run's identity, 64 hexadecimal digits.

        Raises:
            InputError: data or model are missing, or the data have fewer examples than the settings ask for.
            MissingExtraError: the embedded model or task is not installed.
        """
        return _hash(self._values(settings))

    def _former(self, settings: Settings, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The identities that 0.1 gave to the same run, by the score that counted, evaluations and checkpoints."""
        task = self._data(settings)[0]
        if task.kind == "values" and far(task.train.label):  # 0.1 learned them in their own units
            return ()
        values = {**values, "mixout": "0.1"}
        scores, saves = dict.fromkeys([task.metric, *task.metrics]), dict.fromkeys(["epoch", "no", settings.save])
        cases = (dict(zip(_WATCHED, row, strict=True)) for row in itertools.product(scores, ("epoch", "end"), saves))
        return tuple(
            _hash(values | {name: value for name, value in case.items() if value != _WATCHED[name]}) for case in cases
        )

    def _values(self, settings: Settings) -> dict[str, Any]:
        settings = self.complete(settings)
        task, data, _ = self._data(settings)
        resolved = settings.resolved()
        defaults = {item.name: FORMER.get(item.name, item.default) for item in fields(resolved)}
        chosen = {
            name: value for name, value in vars(resolved).items() if name not in _LEFT_OUT and value != defaults[name]
        }
        if settings.patience is not None or settings.keep_best:  # the score decides when or with what a run ends
            chosen["metric"] = task.metric
        mixing = (method.gradient for method in settings.methods if isinstance(method, MixingMethod))
        return chosen | {
            "method": settings.method,
            "gradient": next(mixing, None),
            "data": data,
            "weights": self._revision(settings.model),
            "mixout": compatible(mixout.__version__),
        }

    def complete(self, settings: Settings) -> Settings:
        """The settings, with open ones filled in as for a single run; raises as :meth:`identity`."""
        if settings.method != AUTO and all(getattr(settings, name) is not None for name in FORMER):
            return settings
        task = inputs.subset(self._data(settings)[0], settings)
        return complete(settings, self._outline(settings.model, settings.task_type).model, task)[0]

    def check(self, settings: Settings) -> None:
        """Check the settings against labels and the model's shape, without its weights; raises as :meth:`identity`."""
        inputs.check_kind(settings, self._data(settings)[0])
        check_limits(settings, self._outline(settings.model, settings.task_type))

    def is_plain(self, settings: Settings) -> bool:
        """Whether the method does nothing, or no more than to set the model's own dropouts to what they are."""
        if all(isinstance(method, Plain) for method in settings.methods):
            return True
        sites = dropouts.find(self._outline(settings.model, settings.task_type).model)
        ps = {method.p for method in settings.methods if isinstance(method, Dropout)}
        only_dropout = len(ps) == len(settings.methods) == 1
        return only_dropout and {site.p for site in sites if site.kind != "left"} <= ps

    def goal(self, settings: Settings) -> tuple[str, float | None]:
        """The metric that counts, and what a constant answer scores on the dev set; None for a language model."""
        task, _, constant = self._data(settings)
        return task.metric, constant

    def _data(self, settings: Settings) -> tuple[Task, str, float | None]:
        """Task, fingerprint, and what a constant answer scores."""
        key = tuple(getattr(settings, name) for name in inputs.READ)
        if key not in self._tasks:
            task = inputs.load(settings)
            constant = None  # for a language model a distribution over tokens, which only a run computes
            if task.kind != "text":
                constant = metrics.chance(task.metric, list(task.dev.label), classes=task.classes, tags=task.tags)
            self._tasks[key] = (task, task.fingerprint(), constant)
        task, data, _ = self._tasks[key]
        if settings.train_size is not None:
            subset = (data, settings.train_size, settings.resolved().subset_seed or 0)
            if subset not in self._subsets:
                inputs.subset(task, settings)
                self._subsets.add(subset)
        return self._tasks[key]


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


def compatible(version: str) -> str:
    """The part of a version within which results stay what they are: the major one, and before 1.0 the minor too.

    Example:
        >>> compatible("2.4.1"), compatible("0.1.0")
        ('2', '0.1')
    """
    major, minor = version.split(".")[:2]
    return f"{major}.{minor}" if major == "0" else major
