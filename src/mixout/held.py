"""Which anchors lie on the layers of a model, and their fingerprint."""

from __future__ import annotations

from torch import Tensor, nn

from mixout import anchor as anchors
from mixout.anchor import Anchor, OwnWeight
from mixout.errors import AnchorMismatchError, MixoutError, NotAppliedError
from mixout.layers import Mixed, lora, parameter
from mixout.layers.mixed import REPLACED
from mixout.methods import output
from mixout.methods.targets import targets
from mixout.record import Applied, applied_here, applied_to


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the anchors that lie on the model's layers, as they were captured; of LoRA layers, of their bases.

    It follows from the anchors and their order alone: casts, moves, copies, sharding and wrappers do not change it.
    Nothing is read: each anchor was hashed once, by :func:`mixout.apply_`.

    Raises:
        NotAppliedError: if the model holds no anchor.
    """
    check_anchored(model)
    return _fingerprint(model, None)


def fingerprint_of(model: nn.Module, applied: Applied) -> str | None:
    """:func:`fingerprint` of the layers that one application has changed; None if they hold no anchor."""
    return _fingerprint(model, applied) if has_anchors(model, applied) else None


def importance_fingerprint(model: nn.Module, applied: Applied) -> str | None:
    """Of the weights that one application's AnchorDecay was given; None without."""
    held = [t for t in targets(model).values() if t.module is not None and applied_here(t.module) is applied]
    digests = [target.importance.digest for target in held if target.importance is not None]
    return anchors.fingerprint(digests) if digests else None


def starting_weight(model: nn.Module, name: str) -> Tensor:
    """The anchor of the parameter called ``name``, or of the layer that holds it; zeros where it is 0.

    Raises:
        KeyError: if nothing of that name is anchored.
    """
    bases = {key: lora.base_weight(layer) for key, layer in adapted_layers(model).items()}
    found = {
        key: weight.detach() * 0 if one.tensor is None and not isinstance(one, OwnWeight) else one.beside(weight)
        for key, (module, path, one) in anchored_weights(model, own=True).items()
        if key in (name, f"{name}.weight".lstrip(".")) and (weight := parameter(module, path)) is not None
    }
    tensors = [one for key, one in (bases | found).items() if key in (name, f"{name}.weight".lstrip("."))]
    if not tensors or tensors[0] is None:
        known = ", ".join([*anchored_weights(model, own=True), *bases][:5])
        raise KeyError(f"expected the name of an anchored layer or parameter ({known}, ...), got {name!r}")
    return tensors[0]


def has_anchors(model: nn.Module, applied: Applied | None = None) -> bool:
    """Whether there is an anchor on the modules of ``model``, or on those that one application has changed."""
    return bool(anchored_weights(model, applied) or adapted_layers(model, applied))


def check_anchored(model: nn.Module) -> None:
    """Refuse a model that holds no anchor.

    Raises:
        NotAppliedError: if it does not.
    """
    if not has_anchors(model):
        methods = ", ".join(map(str, applied_to(model)))
        raise NotAppliedError(f"{methods} holds no anchor; pass anchor= to measure against one")


def _fingerprint(model: nn.Module, applied: Applied | None) -> str:
    digests = [one.digest for _, _, one in anchored_weights(model, applied).values()]
    digests += [lora.base_digest(layer) for layer in adapted_layers(model, applied).values()]
    return anchors.fingerprint(digests)


def anchored_weights(
    model: nn.Module, applied: Applied | None = None, *, own: bool = False
) -> dict[str, tuple[nn.Module, str, Anchor]]:
    """Module, field and anchor of each weight that is decayed or mixed, by its dotted name; also of ``own`` anchors."""
    sites = lora.sites(model)
    found = {
        key: (target.module, target.field, target.anchor)
        for key, target in targets(model).items()
        if target.module is not None and not lora.is_factor(sites, key.rpartition(".")[0])
    }
    for name, (module, held) in output.held(model).items():
        if not lora.is_factor(sites, name):
            found |= {f"{name}.{field}".lstrip("."): (module, field, one) for field, one in held.anchors.items()}
    for name, module in model.named_modules():
        if isinstance(module, Mixed) and name not in sites and not lora.is_factor(sites, name):
            for path, one in module._mixed.anchors.items():
                found[f"{name}.{path}".lstrip(".")] = (module, path, one.start)
    return {
        key: (module, field, one)
        for key, (module, field, one) in found.items()
        if (own or not isinstance(one, OwnWeight)) and (applied is None or applied_here(module) is applied)
    }


def adapted_layers(model: nn.Module, applied: Applied | None = None) -> dict[str, nn.Module]:
    """The LoRA layers of which a factor is mixed, by the name of their anchor, which is their frozen base."""
    found = {name: (layer, lora.mixed_factors(layer)) for name, layer in lora.sites(model).items()}
    return {
        lora.base_name(name, layer): layer
        for name, (layer, mixed) in found.items()
        if mixed and (applied is None or applied_here(mixed[0]) is applied)
    }


def weight_and_start(name: str, module: nn.Module, field: str, anchor: Anchor) -> tuple[Tensor, Tensor | None]:
    """A weight as it is, and its anchor beside it; None where that is 0.

    Raises:
        AnchorMismatchError, MixoutError: the weight was resized, or is computed by another tool, since ``apply_``.
    """
    weight = parameter(module, field)
    if weight is None:
        raise MixoutError(f"{name!r} {REPLACED}")
    if anchor.tensor is not None and anchor.tensor.shape != weight.shape:
        raise AnchorMismatchError(
            f"{name!r} has shape {tuple(weight.shape)}, its anchor {tuple(anchor.tensor.shape)}: it was resized since "
            "apply_; call remove_, resize, then apply_"
        )
    return weight, anchor.beside(weight)
