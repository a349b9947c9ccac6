"""Which classes of layers can be mixed: what each calls its weights, and which dimension of them is the input.

A class is registered as itself or by its dotted name, so that nothing has to be imported for it. A subclass that leaves
the forward as it is counts as its base. A subclass with a forward of its own may do anything with its weight: it is
left alone until somebody registers it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

_FORWARDS = ("forward", "_conv_forward", "__call__")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a weight is stored.

    Args:
        input_dim: the dimension of the input neurons: 1 for (out, in, *kernel), 0 for (in, out, *kernel), -1 for
            (*stack, out, in), -2 for (*stack, in, out).
        blocks: how many matrices lie one below the other along the first dimension, each with inputs of its own.
        flat: all dimensions but the first are input neurons: (out, heads, in a head).
    """

    input_dim: int = 1
    blocks: int = 1
    flat: bool = False

    @property
    def transposed(self) -> bool:
        """Whether the input comes before the output."""
        return self.input_dim in (0, -2)

    def view(self, weight: Tensor) -> tuple[Tensor, int]:
        """``weight`` as matrices one below the other, and how many these are: one for each expert, say."""
        if self.input_dim >= 0:
            return weight.flatten(1) if self.flat else weight, self.blocks
        return weight.reshape(-1, weight.shape[-1]), self.blocks * weight.shape[:-2].numel()


Weight: TypeAlias = str | Sequence[str] | Callable[[Any], dict[str, Layout]]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of a class of layers."""

    weights: Callable[[Any], dict[str, Layout]]  # of a layer: the dotted names of its weights, and how each is stored
    linear: bool = True  # mixed by default; else where types= asks for it
    forward: Callable[..., Any] | None = None  # given the layer, its weights and its inputs; None for its own


_ENTRIES: dict[type[nn.Module] | str, Entry] = {}


def register(
    kind: type[nn.Module] | str | None = None,
    /,
    *,
    weight: Weight = "weight",
    input_dim: int = 1,
    blocks: int = 1,
    forward: Callable[..., Any] | None = None,
    linear: bool = True,
) -> Any:  # noqa: ANN401  ``kind`` itself; type checkers ask no more of a class decorator
    """Tell mixout how a class of layers stores its weights, so that it can be mixed; a decorator too.

    While the layer's forward runs in training, its attribute ``weight`` is Phi, drawn once for that call. So any
    forward that reads the attribute is mixed exactly, however often it reads it. Activation checkpointing belongs
    around the layer: a function that is checkpointed within its forward is computed again after it, when the attribute
    is w again. The layers that mixout knows by itself are registered in the same way.

    Args:
        kind: a class of modules, or its dotted name, for which nothing is imported; left out where this is used as a
            decorator with arguments.
        weight: name of the attribute that holds the weight, or of each of several. A dotted name is one of a child. Or
            a function of the layer that gives a :class:`mixout.layers.Layout` for each name, where they differ.
        input_dim: the dimension of the input neurons: 1 for (out, in) and (out, in, *kernel), 0 for (in, out) and
            (in, out, *kernel); counted from the back where matrices are stacked: -1 for (*stack, out, in), -2 for
            (*stack, in, out).
        blocks: how many matrices lie one below the other along the first dimension, each with inputs of its own: 3
            where query, key and value are packed.
        forward: where the layer's own forward does not read the attribute: ``forward(layer, weight, *inputs)``, given
            Phi for each name of ``weight``. Called in training only.
        linear: whether the layer is mixed by default, as linear layers are; else ``where=mixout.Where(types=...)``.

    Returns:
        ``kind``, or a decorator.

    Raises:
        TypeError: if ``kind`` is no class of modules or ``weight`` no name.
        ValueError: if ``input_dim`` or ``blocks`` is out of its range.

    Example:
        >>> import mixout, torch
        >>> @mixout.register(weight="table", input_dim=0)
        ... class Project(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.table = nn.Parameter(torch.zeros(4, 3))
        ...     def forward(self, x):
        ...         return x @ self.table
        >>> mixout.coverage(mixout.apply_(nn.Sequential(Project()), mixout.Mixout(0.9))).mixed
        ('0',)
    """
    layouts = weight if callable(weight) else _alike(weight, input_dim, blocks)

    def add(kind: Any) -> Any:  # noqa: ANN401
        if not isinstance(kind, str) and not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"expected a class of modules to register, got {kind!r}")
        _ENTRIES[kind] = Entry(weights=layouts, linear=linear, forward=forward)
        return kind

    return add if kind is None else add(kind)


def _alike(weight: str | Sequence[str], input_dim: int, blocks: int) -> Callable[[Any], dict[str, Layout]]:
    names = tuple(weight) if isinstance(weight, (list, tuple)) else (weight,)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"expected weight as the name of an attribute, or several names, got {weight!r}")
    if input_dim not in (-2, -1, 0, 1):
        raise ValueError(f"expected input_dim in (-2, -1, 0, 1), got {input_dim!r}")
    if not (isinstance(blocks, int) and blocks >= 1):
        raise ValueError(f"expected blocks as an integer, at least 1, got {blocks!r}")
    layouts = dict.fromkeys(names, Layout(input_dim=input_dim, blocks=blocks))
    return lambda _: layouts


def find(module: nn.Module, kind: type[nn.Module] | None = None) -> tuple[type[nn.Module], Entry] | None:
    """The nearest registered class of ``module``, whatever its forward; ``kind`` is its plain class, where mixed."""
    kind = kind or type(module)
    if _is_router(module, kind):
        return kind, _ENTRIES[nn.Linear]
    for base in kind.__mro__:
        entry = _ENTRIES.get(base) or _ENTRIES.get(dotted(base))
        if entry is not None:
            return base, entry
    # An experts class that transformers gives its grouped matmuls (``use_experts_implementation``).
    stacked = {"is_transposed", "num_experts"} <= vars(module).keys() and _experts(module)
    return (kind, Entry(weights=_experts)) if stacked else None


def dotted(kind: type) -> str:
    """The dotted name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def keeps_forward(kind: type[nn.Module], base: type[nn.Module]) -> bool:
    """Whether ``kind`` leaves the forward of ``base`` as it is."""
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in _FORWARDS)


def entry_of(module: nn.Module) -> Entry | None:
    """How ``module`` is mixed; None where that is unknown, as of a subclass with a forward of its own."""
    registered = find(module)
    return registered[1] if registered is not None and keeps_forward(type(module), registered[0]) else None


def parameter(module: nn.Module, path: str) -> Tensor | None:
    """The parameter of that dotted name, or None: not there, or computed by another tool."""
    holder, field = holder_of(module, path)
    return holder._parameters.get(field)


def holder_of(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the parameter of that dotted name, and its name there."""
    parent, _, field = path.rpartition(".")
    return (module.get_submodule(parent) if parent else module), field


def _is_router(module: nn.Module, plain: type[nn.Module]) -> bool:
    """A router of experts of transformers: a linear layer (experts, in) with a choice behind it."""
    weight = module._parameters.get("weight")
    named_so = plain.__module__.startswith(f"{_MODELS}.") and plain.__name__.endswith(("Router", "Gate"))
    return named_so and weight is not None and weight.dim() == 2


def _stack(module: nn.Module, input_dim: int) -> dict[str, Layout]:
    params = module._parameters.items()
    names = [name for name, weight in params if name.endswith("proj") and weight is not None and weight.dim() == 3]
    return dict.fromkeys(names, Layout(input_dim=input_dim))


def _experts(module: Any) -> dict[str, Layout]:  # noqa: ANN401
    return _stack(module, -2 if getattr(module, "is_transposed", False) else -1)


def _rows_of_experts(module: Any) -> dict[str, Layout]:  # noqa: ANN401
    """DBRX: w1 and v1 are (experts ffn, hidden), read as x @ w.T; w2 has the same shape and is read as x @ w."""
    down, up = Layout(input_dim=0, blocks=module.num_experts), Layout(blocks=module.num_experts)
    return {"mlp.w1": up, "mlp.v1": up, "mlp.w2": down}


def _attention(module: Any) -> dict[str, Layout]:  # noqa: ANN401
    if module.in_proj_weight is not None:
        packed = {"in_proj_weight": Layout(blocks=3)}
    else:
        packed = {f"{name}_proj_weight": Layout() for name in ("q", "k", "v")}
    return {**packed, "out_proj.weight": Layout()}


CONV1D = "transformers.pytorch_utils.Conv1D"
ADAPTED_PARAMETER = "peft.tuners.lora.layer.ParamWrapper"
_MODELS = "transformers.models"

register(nn.Linear)
register(CONV1D, input_dim=0)
register(nn.Embedding, input_dim=0, linear=False)
_kind: type[nn.Module]
for _kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register(_kind, weight=lambda layer: {"weight": Layout(blocks=layer.groups)}, linear=False)
for _kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    register(_kind, weight=lambda layer: {"weight": Layout(input_dim=0, blocks=layer.groups)}, linear=False)
register(nn.MultiheadAttention, weight=_attention)
for _kind in (nn.RNN, nn.LSTM, nn.GRU):
    register(_kind, weight=lambda rnn: {key: Layout() for key in rnn._flat_weights_names if key.startswith("weight")})
register(f"{_MODELS}.falcon.modeling_falcon.FalconLinear")
register(f"{_MODELS}.ibert.quant_modules.QuantLinear")
register(f"{_MODELS}.llama4.modeling_llama4.Llama4TextExperts", weight=lambda experts: _stack(experts, -2))
register(f"{_MODELS}.step3p7.modeling_step3p7.Step3p7Experts", weight=_experts)
register(f"{_MODELS}.longcat_flash.modeling_longcat_flash.LongcatFlashExperts", weight=_experts)
register(f"{_MODELS}.jetmoe.modeling_jetmoe.JetMoeParallelExperts", input_dim=-1)
register(f"{_MODELS}.dbrx.modeling_dbrx.DbrxExperts", weight=_rows_of_experts)
register(
    f"{_MODELS}.xlnet.modeling_xlnet.XLNetRelativeAttention",
    weight=lambda _: {**dict.fromkeys("qkvr", Layout(input_dim=0)), "o": Layout(flat=True)},
)
# An adapter of a parameter has an A for each expert, one below the other.
register(
    ADAPTED_PARAMETER,
    weight=lambda layer: {f"lora_A.{name}.weight": Layout(blocks=layer.num_experts) for name in layer.lora_A},
)
