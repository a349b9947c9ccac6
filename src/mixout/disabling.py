"""Plain passes of a model that carries a mixing method: asked for, and while it generates text."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from mixout.errors import GenerationWarning, MixoutError
from mixout.layers import Mixing
from mixout.record import Applied, applications, applied_to

_GENERATE = "generate"
# The tags that TRL's trainers of policy gradients give their model, from which they sample and which they then train.
_POLICY_GRADIENT = frozenset({"grpo", "rloo", "a2po", "async-grpo", "gmpo", "sdpo"})


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Let training passes of ``model`` read the fine-tuned weights, unmixed, within a ``with`` block.

    Dropouts stay as :func:`mixout.apply_` has set them, and :class:`mixout.AnchorDecay` decays as before. A compiled
    model is compiled once more, for plain passes.

    Args:
        model: a model that carries a method, or a part of one; all layers of one :func:`mixout.apply_` are switched.

    Raises:
        NotAppliedError: if the model carries no method.

    Example:
        >>> import torch, mixout
        >>> model = mixout.apply_(nn.Linear(2, 1, bias=False), mixout.Mixout(1.0), anchor=0)
        >>> x = torch.ones(1, 2)
        >>> with disabled(model):
        ...     plain = model(x)
        >>> bool((plain == x @ model.weight.T).all()), model(x).item()
        (True, 0.0)
    """
    switched = _mixing(applied_to(model))
    for mixing in switched:
        mixing.switch(off=True)
    try:
        yield model
    finally:
        for mixing in switched:
            mixing.switch(off=False)


def check_policy(model: Any) -> None:  # noqa: ANN401  any module
    """Refuse to mix the policy of a policy-gradient trainer of TRL, if ``model`` is one."""
    tags = _POLICY_GRADIENT.intersection(getattr(model, "model_tags", None) or ())
    if tags and _mixing(applications(model)):
        raise MixoutError(
            f"expected a method that does not mix for TRL's {min(tags)!r} trainer, got {applications(model)[0]}: it "
            "samples from the unmixed model and would train the mixed one, another policy, so that its gradient would "
            "be no policy gradient; use mixout.AnchorDecay there, and mixing with SFTTrainer or DPOTrainer"
        )


def _mixing(applied: Iterable[Applied]) -> list[Mixing]:
    """Of those that mix and are not switched off."""
    return [one.mixing for one in applied if one.mixing is not None and not one.mixing.off]


class PlainGenerate:
    """``model.generate`` of the instance, in place of its class's: unmixed in training mode too."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401  a module with a method generate
        self.model = model
        self.warned = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """As the method of the class."""
        generate = functools.partial(type(self.model).generate, self.model)
        if not self.model.training or not _mixing(applications(self.model)):
            return generate(*args, **kwargs)
        check_policy(self.model)
        if not self.warned:
            self.warned = True
            warnings.warn(
                "generate was called in training mode: it reads the fine-tuned weights, unmixed. To do so "
                "without this warning call it in `with mixout.disabled(model):`, or call model.eval() first",
                GenerationWarning,
                stacklevel=2,
            )
        with disabled(self.model):
            return generate(*args, **kwargs)


def guard_(model: nn.Module) -> None:
    """Let every part of ``model`` that generates do so unmixed, unless another tool has changed how it does."""
    for module in model.modules():
        if callable(getattr(type(module), _GENERATE, None)) and _GENERATE not in vars(module):
            vars(module)[_GENERATE] = PlainGenerate(module)


def unguard_(module: nn.Module) -> None:
    """Undo :func:`guard_` on ``module`` itself."""
    if isinstance(vars(module).get(_GENERATE), PlainGenerate):
        del vars(module)[_GENERATE]
