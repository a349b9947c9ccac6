"""What a checkpoint must carry beside the weights, so that a run goes on as if it had not stopped.

Weights are saved by whoever saves them. This is the rest: which method, the anchor's fingerprint, p, and with a seed
and on several ranks the seed and the number of masks drawn so far.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mixout.convert import applied_to, fingerprint
from mixout.errors import AnchorMismatchError, MixoutError
from mixout.layers import Mixed
from mixout.masks import check_p
from mixout.methods import spell
from mixout.streams import Stream

STATE_VERSION = 2


def state_dict(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint must carry beside the weights, as JSON: method, anchor fingerprint, p, and masks drawn.

    Raises:
        NotAppliedError: if the model carries no method.
    """
    root, applied = applied_to(model)
    mixing = applied.mixing
    return {
        "version": STATE_VERSION,
        "methods": spell(applied.methods),
        "fingerprint": fingerprint(model) if applied.anchored else None,
        "p": None if mixing is None else float(mixing.p),
        "seed": applied.seed.given,
        "scope": applied.seed.scope,
        "agreed_seed": applied.seed.value,
        "draws": {name: stream.count for name, stream in _streams(root).items()},
    }


def load_state_dict_(model: nn.Module, state: dict[str, Any]) -> None:
    """Continue where :func:`state_dict` was taken; refuses if ``model`` is anchored elsewhere.

    The usual mistake that this finds: a fine-tuned checkpoint was loaded before :func:`apply_`, and became the anchor.

    Raises:
        NotAppliedError: if the model carries no method.
        AnchorMismatchError: if the anchor's fingerprint differs.
        MixoutError: if the state is of another version or method.
        TypeError, ValueError: if its p is no probability.
    """
    if state.get("version") != STATE_VERSION:
        raise MixoutError(f"expected state of version {STATE_VERSION}, got {state.get('version')!r}")
    root, applied = applied_to(model)
    own_method = spell(applied.methods), applied.seed.given, applied.seed.scope
    if (state["methods"], state["seed"], state["scope"]) != own_method:
        raise MixoutError(
            f"expected state of {own_method[0]} with seed={own_method[1]} and scope={own_method[2]!r}, got "
            f"{state['methods']} with seed={state['seed']} and scope={state['scope']!r}; apply the same method with "
            "the same seed and scope"
        )
    own = fingerprint(model) if applied.anchored else None
    if state["fingerprint"] != own:
        raise AnchorMismatchError(
            f"expected the anchor with fingerprint {state['fingerprint']}, got {own}; "
            "load the pretrained weights, call apply_, and only then load the checkpoint"
        )
    if applied.mixing is not None:
        applied.mixing.set_p(check_p(state["p"]))  # refused before anything is changed
        for name, stream in _streams(root).items():
            stream.restore(state["draws"].get(name, 0))
    applied.seed.value = state["agreed_seed"]


def _streams(root: nn.Module) -> dict[str, Stream]:
    return {
        name: module._mixed.stream
        for name, module in root.named_modules()
        if isinstance(module, Mixed) and module._mixed.stream.in_force
    }
