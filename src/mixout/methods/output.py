r"""output_anchor: the answers stay close to those of the starting weights, whatever the weights do.

To the loss of each batch it adds, with the logits' law :math:`\pi` of the model and :math:`\pi_0` of its anchor,

.. math:: \beta \, \mathrm{KL}(\pi_0 \,\|\, \pi) \quad \text{(forward)} \qquad
          \beta \, \mathrm{KL}(\pi \,\|\, \pi_0) \quad \text{(reverse)}

as a mean over predictions: examples, or the tokens that have a label. ``on="hidden"`` compares last hidden states
instead: :math:`\beta` times the mean of :math:`(h - h_0)^2` over attended tokens and features.

There is no second model: the same modules compute the start's answers with the anchors in place of every trained
weight. docs/methods/output-anchor.md says what it costs, and where it is refused.

Source: the forward direction is ASFT's, arXiv 2509.23753, ICLR 2026, without its token weights; hidden states: DELTA,
Li et al., ICLR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import kl_div

from mixout.anchor import AnchorTensor
from mixout.errors import MissingPenaltyWarning, MixoutError, NotAppliedError
from mixout.layers import lora
from mixout.layers.mixed import REPLACED
from mixout.methods.likelihood import IGNORED, Batch, as_call, evaluated, predictions, predicts_next
from mixout.methods.mixing import Method
from mixout.parts import local, reshard_
from mixout.sources import unwrapped
from mixout.watch import STEPS, Watch

Direction = Literal["forward", "reverse"]
On = Literal["logits", "hidden"]

FIELD = "_mixout_output"  # the attribute of a module that holds its anchors


@dataclass(frozen=True, repr=False)
class OutputAnchor(Method):
    """A penalty on the distance of the model's answers from those of its starting weights.

    Args:
        beta: strength, at least 0; 0.1 is what ASFT uses.
        direction: ``forward``, KL(start || model), or ``reverse``, KL(model || start).
        on: ``logits``, or ``hidden`` for models whose head is new.

    Raises:
        TypeError: if ``beta`` is not a number.
        ValueError: if an argument is out of its range.

    Example:
        >>> OutputAnchor(0.1)
        OutputAnchor(beta=0.1)
    """

    beta: float
    _: KW_ONLY
    direction: Direction = "forward"
    on: On = "logits"
    name: ClassVar[str] = "output_anchor"

    def __post_init__(self) -> None:
        if isinstance(self.beta, bool) or not isinstance(self.beta, Real):
            raise TypeError(f"expected beta to be a number, at least 0, got {self.beta!r}")
        if not (self.beta >= 0 and math.isfinite(self.beta)):
            raise ValueError(f"expected a finite beta, at least 0, got {self.beta}")
        for name, allowed in (("direction", ("forward", "reverse")), ("on", ("logits", "hidden"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"expected {name} in {allowed}, got {getattr(self, name)!r}")


def watch_(modules: Iterable[nn.Module]) -> Watch:
    """Warn once if steps are taken and nobody has asked for the penalty."""
    return Watch(
        modules,
        lambda module: FIELD in vars(module),
        MissingPenaltyWarning(
            f"OutputAnchor does nothing: in {STEPS} steps nobody has called mixout.output_penalty; write loss = "
            "loss + mixout.output_penalty(model, batch, outputs), in a Trainer in its compute_loss"
        ),
    )


@dataclass(frozen=True)
class Held:
    """What a module holds: the method, its anchors by field, the fields that were frozen at ``apply_``, the watch."""

    method: OutputAnchor
    anchors: dict[str, AnchorTensor]
    frozen: tuple[str, ...]
    watch: Watch  # shared by all modules


def held(model: nn.Module) -> dict[str, tuple[nn.Module, Held]]:
    """The modules of ``model`` that hold anchors for this method, by name."""
    modules = ((name, module, vars(module).get(FIELD)) for name, module in model.named_modules())
    return {name: (module, state) for name, module, state in modules if isinstance(state, Held)}


def output_penalty(
    model: nn.Module,
    batch: Batch,
    outputs: Any,  # noqa: ANN401
    *,
    count: int | Tensor | None = None,
) -> Tensor:
    """What :class:`OutputAnchor` adds to the loss of one batch.

    ::

        outputs = model(**batch)
        loss = outputs.loss + mixout.output_penalty(model, batch, outputs)

    Args:
        model: the model that made ``outputs``; DDP and ``torch.compile`` around it do no harm.
        batch: what the model was given: a mapping that it takes by keyword, a pair of inputs and labels, or inputs
            alone.
        outputs: a tensor of logits, or what has ``logits``; with ``on="hidden"`` what has ``hidden_states``, which
            models of transformers return with ``output_hidden_states=True``, or ``last_hidden_state``.
        count: divide the sum over predictions by this, not by their number in this batch: the number in all batches
            that are accumulated, where the loss is divided by it too. With several processes, whose gradients are
            averaged, it is the number in all of them divided by how many they are.

    Returns:
        A number with a gradient.

    Raises:
        MixoutError: if the model is in training mode and the outputs have no gradient.
        NotAppliedError: if the model carries no OutputAnchor.
        TypeError: if the outputs lack what is compared.

    Example:
        >>> import mixout
        >>> model = mixout.apply_(nn.Linear(2, 3), OutputAnchor(1.0))
        >>> x = torch.ones(4, 2)
        >>> output_penalty(model, x, model(x)).item()
        0.0
    """
    inner = unwrapped(model)
    reshard_(inner)  # FSDP2 shows the parts of all weights then; backward passes gather again
    method, anchors = _anchored(inner)
    args, options = as_call(batch)
    if predicts_next(inner):
        options.pop("labels", None)  # a loss over the whole vocabulary, which nobody reads
    if method.on == "hidden" and isinstance(batch, Mapping):
        options["output_hidden_states"] = True
    with evaluated(inner):
        base = called_with(inner, anchors, args, options)
    if method.on == "hidden":
        squares = (_hidden(outputs).float() - _hidden(base).float()).square().mean(-1)
        terms = squares[_attended(batch, outputs, squares)]
    else:
        logits, start = (predictions(inner, batch, answers).logits.float() for answers in (outputs, base))
        terms = _divergence(logits, start) if method.direction == "forward" else _divergence(start, logits)
    if inner.training and torch.is_grad_enabled() and not terms.requires_grad:
        raise MixoutError(
            "expected outputs with a gradient in training, got some without, on which the penalty has no effect: "
            "they were detached, or computed under no_grad (as TRL's SFTTrainer does where it is asked for outputs)"
        )
    return method.beta * terms.sum() / (max(terms.numel(), 1) if count is None else count)


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || logits) of each row of logits; of one class (regression) that of normal laws of variance 1."""
    if logits.shape[-1] == 1:
        return (logits - target).square().sum(-1) / 2
    return kl_div(logits.log_softmax(-1), target.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def _anchored(model: nn.Module) -> tuple[OutputAnchor, dict[str, Tensor]]:
    modules = held(model)
    if not modules:
        raise NotAppliedError("expected a model with OutputAnchor; call mixout.apply_(model, mixout.OutputAnchor(1.0))")
    _check_adapters(model)
    for _, state in modules.values():
        state.watch.end()
    tensors, seen = {}, set[int]()  # a tied weight by its first name, as functional_call wants it
    for name, (module, state) in modules.items():
        for field, anchor in state.anchors.items():
            path, weight = f"{name}.{field}".lstrip("."), module._parameters.get(field)
            if weight is None:
                raise MixoutError(f"{path!r} {REPLACED}")
            if id(weight) not in seen:
                start = anchor.cast(weight)
                tensors[path] = torch.zeros_like(weight) if start is None else start
                seen.add(id(weight))
        for field in state.frozen:
            if (weight := module._parameters.get(field)) is not None and weight.requires_grad:
                raise MixoutError(
                    f"{f'{name}.{field}'.lstrip('.')!r} was frozen at apply_ and is trained now, so that its start is "
                    "not known; call apply_ while all that will be trained requires a gradient, and freeze then"
                )
    return next(iter(modules.values()))[1].method, tensors


def _check_adapters(model: nn.Module) -> None:
    """Refuse an adapter that came after the method: the start's answers would be those with it."""
    known, trained = set[str](), set[str]()
    for site in lora.sites(model).values():
        for path, module in site.named_modules():
            for field, parameter in module._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    adapter = field if isinstance(module, nn.ParameterDict) else path.rpartition(".")[2]
                    (known if FIELD in vars(module) else trained).add(adapter)
    if late := sorted(trained - known):
        raise MixoutError(
            f"expected adapters that were there at apply_, got {late[0]!r}, which came later, so that output_anchor "
            "does nothing; call remove_, add adapters, then apply_"
        )


@torch.no_grad()
def called_with(model: nn.Module, tensors: dict[str, Tensor], args: tuple[Any, ...], options: dict[str, Any]) -> Any:  # noqa: ANN401
    """What ``model`` answers with ``tensors``, by name, in place of its weights; without a gradient."""
    if any(hasattr(tensor, "placements") for tensor in tensors.values()):
        with _lent(model, tensors):
            return model(*args, **options)
    return functional_call(model, tensors, args, options)


@contextmanager
def _lent(model: nn.Module, anchors: dict[str, Tensor]) -> Iterator[None]:
    """Let this rank's parts of the weights be those of the anchors: FSDP2 gathers its own parameters, no others."""
    reshard_(model)
    pairs = [(local(model.get_parameter(name)), local(anchor)) for name, anchor in anchors.items()]
    saved = [weight.clone() for weight, _ in pairs]
    try:
        for weight, anchor in pairs:
            weight.copy_(anchor)
        yield
    finally:
        reshard_(model)  # a weight that is still gathered is the anchor's
        for (weight, _), value in zip(pairs, saved, strict=True):
            weight.copy_(value)


def _hidden(outputs: Any) -> Tensor:  # noqa: ANN401
    states = getattr(outputs, "hidden_states", None) or getattr(outputs, "decoder_hidden_states", None)
    last = states[-1] if states else getattr(outputs, "last_hidden_state", None)
    if last is None:
        raise TypeError(
            f"expected outputs with hidden states, got {type(outputs).__name__} without; call the model with "
            "output_hidden_states=True"
        )
    return last  # type: ignore[no-any-return]


def _attended(batch: Batch, outputs: Any, like: Tensor) -> Tensor:  # noqa: ANN401
    """Which tokens of ``like``, (rows, tokens), count: those that the batch attends to, or all if it does not say."""
    attended = None
    if isinstance(batch, Mapping):
        decodes = hasattr(outputs, "encoder_last_hidden_state")
        attended = batch.get("decoder_attention_mask" if decodes else "attention_mask")
        if decodes and attended is None and isinstance(labels := batch.get("labels"), Tensor):
            attended = labels != IGNORED
    if isinstance(attended, Tensor):
        attended = attended.reshape(-1, attended.shape[-1])  # of several choices each is a row
        if attended.shape == like.shape:
            return attended != 0
    return torch.ones_like(like, dtype=torch.bool)
