"""What a model carries, to be asked, and what a checkpoint must carry beside the weights.

Weights are saved by whoever saves them. The rest is which method, the anchor's fingerprint, p, and with a seed and on
several ranks the seed and the number of masks drawn so far; for masks that are kept for several steps, the step; and
anchors that move.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from mixout.anchor import MovingAnchor
from mixout.anchor import fingerprint as fingerprint_of
from mixout.errors import AnchorMismatchError, MixoutError
from mixout.layers import Mixed, Share, lora, parameter
from mixout.masks import check_p
from mixout.measure import adapted_layers, anchored_weights, check_anchored, held_adapters
from mixout.methods import Method
from mixout.methods.optimizer_hooks import targets
from mixout.parts import whole
from mixout.record import Applied, applied_here, applied_to
from mixout.sources import unwrapped

STATE_VERSION = 3


class State:
    """What :func:`mixout.apply_` has left on a model, read at each access; see :func:`state`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = unwrapped(model)
        applied_to(self._model)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that were applied, those of parts one after the other."""
        return tuple(method for applied in applied_to(self._model) for method in applied.methods)

    @property
    def p(self) -> float | None:
        """The current p, the largest where layers have ps of their own; None if no method mixes."""
        return max(self.by_layer.values(), default=None)

    @property
    def by_layer(self) -> dict[str, float]:
        """The p of each mixed layer, by its name."""
        modules = self._model.named_modules()
        return {name: float(m._mixed.mixing.p) for name, m in modules if isinstance(m, Mixed)}

    @property
    def seed(self) -> int | None:
        """The seed that ``apply_`` was given, of the first part if there are several."""
        return applied_to(self._model)[0].seed.given

    def anchor(self, name: str) -> Tensor:
        """The starting weight of the layer or parameter called ``name``; do not change it in place.

        Raises:
            KeyError: if nothing of that name is anchored.
        """
        adapted, anchored = adapted_layers(self._model), anchored_weights(self._model, own=True)
        for key in (name, f"{name}.weight".lstrip(".")):
            if key in adapted:
                return lora.base_weight(adapted[key])
            module, path, anchor = anchored.get(key, (self._model, "", None))
            if anchor is not None and (weight := parameter(module, path)) is not None:
                start = anchor.beside(weight)
                return torch.zeros_like(weight) if start is None else start
        examples = ", ".join([*anchored, *adapted][:5])
        raise KeyError(f"expected the name of an anchored layer or parameter ({examples}, ...), got {name!r}")

    def __repr__(self) -> str:
        return f"State(methods={self.methods}, p={self.p}, seed={self.seed})"


def state(model: nn.Module) -> State:
    """What ``model`` carries: methods, p, seed and anchors.

    Raises:
        NotAppliedError: if the model carries no method.

    Example:
        >>> import mixout
        >>> found = state(mixout.apply_(nn.Sequential(nn.Linear(4, 3)), mixout.Mixout(0.9)))
        >>> found.p, found.methods, found.seed, found.anchor("0").shape
        (0.9, (Mixout(p=0.9),), None, torch.Size([3, 4]))
    """
    return State(model)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the anchors that lie on the model's layers, as they were captured; of LoRA layers, of their bases.

    It follows from the anchors and their order alone: casts, moves, copies, sharding and wrappers do not change it.
    Nothing is read: each anchor was hashed once, by :func:`mixout.apply_`.

    Raises:
        NotAppliedError: if the model holds no anchor.
    """
    if not (digests := _digests(model)):
        check_anchored(model)
    return fingerprint_of(digests)


def save_state(model: nn.Module, *, tensors: bool = True) -> dict[str, Any]:
    """What a checkpoint must carry beside the weights, as JSON: method, anchor fingerprint, p, and masks drawn.

    Where parts of the model were given methods of their own, the entries are those of the first, and ``also`` lists
    those of the others.

    With ``anchor_ema`` there is also ``anchors``: the anchors that have moved, by name, whole and on the host. These
    are tensors, and no JSON. Where weights lie in parts on several ranks, every rank must call this then.

    Args:
        model: what carries a method.
        tensors: leave ``anchors`` out if False; :func:`mixout.load_state_` then needs them from elsewhere.

    Raises:
        NotAppliedError: if the model carries no method.

    Example:
        >>> import mixout
        >>> save_state(mixout.apply_(nn.Sequential(nn.Linear(4, 3)), mixout.Mixout(0.9)))["p"]
        0.9
    """
    first_state, *other_states = [_state(model, applied, tensors=tensors) for applied in applied_to(model)]
    return {"version": STATE_VERSION, **first_state, "also": other_states}


def load_state_(model: nn.Module, state: dict[str, Any]) -> None:
    """Continue where :func:`save_state` was called; refuses if ``model`` is anchored elsewhere.

    The usual mistake that this finds: a fine-tuned checkpoint was loaded before :func:`apply_`, and became the anchor.

    Raises:
        NotAppliedError: if the model carries no method.
        AnchorMismatchError: if the anchor's fingerprint differs.
        MixoutError: if the state is of another version or method.
        TypeError, ValueError: if its p is no probability.
    """
    version = state.get("version")
    if version != STATE_VERSION:
        hint = "; finish a run of mixout 0.1 with that version" if version == 2 else ""
        raise MixoutError(f"expected state of version {STATE_VERSION}, got {version!r}{hint}")
    applications, states = applied_to(model), [state, *state.get("also", [])]
    if len(applications) != len(states):
        raise MixoutError(
            f"the state is of {len(states)} calls of apply_, the model carries {len(applications)}; apply the same "
            "methods to the same parts"
        )
    for applied, part_state in zip(applications, states, strict=True):  # refused before anything is changed
        _check(model, applied, part_state)
    for applied, part_state in zip(applications, states, strict=True):
        applied.seed.restore(part_state["agreed_seed"])  # with which masks follow from counts
        if applied.mixing is not None:
            applied.mixing.set_p(part_state["p"])
            if applied.mixing.period is not None:
                applied.mixing.period.restore(part_state["steps"])
                for name, anchor in _moving(model, applied).items():
                    anchor.restore_(part_state["anchors"][name], applied.mixing.period.index)
            for name, share in _shares(model, applied).items():
                if share.stream.in_force:
                    share.stream.restore(part_state["draws"].get(name, 0))


def _state(model: nn.Module, applied: Applied, *, tensors: bool) -> dict[str, Any]:
    moving = _moving(model, applied) if tensors else {}
    shares = _shares(model, applied)
    anchors = {name: whole(anchor.tensor).detach().to("cpu", copy=True) for name, anchor in moving.items()}
    digests = _digests(model, applied)
    decayed = [t for t in targets(model).values() if t.module is not None and applied_here(t.module) is applied]
    importances = [target.importance.digest for target in decayed if target.importance is not None]
    return ({"anchors": anchors} if anchors else {}) | {
        "methods": str(applied),
        "fingerprint": fingerprint_of(digests) if digests else None,
        "importance": fingerprint_of(importances) if importances else None,  # of the weights of AnchorDecay
        "p": None if applied.mixing is None else float(applied.mixing.p),
        "seed": applied.seed.given,
        "scope": applied.seed.scope,
        "agreed_seed": applied.seed.value,
        "steps": None if applied.mixing is None or applied.mixing.period is None else applied.mixing.period.steps,
        "draws": {name: share.stream.count for name, share in shares.items() if share.stream.in_force},
    }


def _digests(model: nn.Module, applied: Applied | None = None) -> list[str]:
    """The digests of the anchors of ``model``, or of those on modules that ``applied`` has changed."""
    digests = [(module, anchor.digest) for module, _, anchor in anchored_weights(model).values()]
    for layer in lora.sites(model).values():  # of DoRA too, whose distance is not known
        for factor, anchor in list(held_adapters(layer).values())[:1]:  # each has the digest of its base
            digests.append((factor, anchor.digest))
    return [digest for module, digest in digests if applied is None or applied_here(module) is applied]


# Where AnchorDecay's importance weights came from; they are compared by their digest instead.
_WEIGHTS = re.compile(r", weights=.*?(?=, \w+=|\)(\+|$))")


def _check(model: nn.Module, applied: Applied, state: dict[str, Any]) -> None:
    current = _state(model, applied, tensors=False)
    same_methods = _WEIGHTS.sub("", state["methods"]) == _WEIGHTS.sub("", current["methods"])
    if not same_methods or any(state[key] != current[key] for key in ("seed", "scope")):
        raise MixoutError(
            f"expected state of {applied} with seed={current['seed']} and scope={current['scope']!r}, got "
            f"{state['methods']} with seed={state['seed']} and scope={state['scope']!r}; apply the same method with "
            "the same seed and scope"
        )
    if state["fingerprint"] != current["fingerprint"]:
        raise AnchorMismatchError(
            f"expected the anchor with fingerprint {state['fingerprint']}, got {current['fingerprint']}; "
            "load the pretrained weights, call apply_, and only then load the checkpoint"
        )
    if unknown := sorted(state["draws"].keys() - _shares(model, applied).keys()):
        raise MixoutError(
            f"expected the names that layers had when apply_ was called, got masks of {unknown[0]!r} in the state, "
            "which no layer had; call apply_ on the same module, before it becomes a part of another"
        )
    shapes = {name: tuple(anchor.tensor.shape) for name, anchor in _moving(model, applied).items()}
    saved = {name: tuple(tensor.shape) for name, tensor in state.get("anchors", {}).items()}
    if saved != shapes:
        raise MixoutError(
            f"expected the {len(shapes)} anchors that anchor_ema has moved in the state's 'anchors', got {len(saved)} "
            "or others; save them with mixout.save_state, and with torch.save"
        )
    if state.get("importance") != current["importance"]:
        raise AnchorMismatchError(
            f"expected the weights of anchor_decay with fingerprint {state.get('importance')}, got "
            f"{current['importance']}; apply it with the same file of weights"
        )
    if applied.mixing is not None:
        check_p(state["p"], applied.mixing.noise)


def _shares(model: nn.Module, applied: Applied) -> dict[str, Share]:
    """Shares by the names that the layers had when ``apply_`` was called, whatever wraps the model now."""
    mixed = [m for m in model.modules() if isinstance(m, Mixed) and applied_here(m) is applied]
    return {m._mixed.stream.key: m._mixed for m in mixed}


def moves_anchors(model: nn.Module) -> bool:
    """Whether an anchor of ``model`` moves, so that :func:`save_state` holds tensors."""
    return any(_moving(model, applied) for applied in applied_to(model))


def _moving(model: nn.Module, applied: Applied) -> dict[str, MovingAnchor]:
    return {
        f"{name}.{path}".lstrip("."): anchor
        for name, share in _shares(model, applied).items()
        for path, anchor in share.anchors.items()
        if isinstance(anchor, MovingAnchor)
    }
