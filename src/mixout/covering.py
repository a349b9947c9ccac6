"""What is mixed, what is not and why, and what still drops: the answer to "does it do anything here?"."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import nn

from mixout import dropouts
from mixout._names import count
from mixout.anchor import AnchorStore, OwnWeight
from mixout.apply import ByLayer, check_applicable, rules_of
from mixout.dropouts import DropoutSite
from mixout.errors import MixoutError, NothingMixedError
from mixout.install import install_, region_of, undo_
from mixout.measure import radius_used
from mixout.methods import Method, output, spell
from mixout.methods.optimizer_hooks import targets
from mixout.parts import in_parts
from mixout.reach import Kind
from mixout.reach import LayerCoverage as LayerCoverage
from mixout.reach import rows as layer_rows
from mixout.record import applications
from mixout.selection import BODY, PARTS, WhereLike, names_its_body, resolve
from mixout.sources import unwrapped

# The labels of the kinds, in the order of the table.
_TOLD = {"mixed": "mixed", "decayed": "decays", "bypassed": "out of reach", "plain": "not mixed"}
SortBy = Literal["kind", "name", "type", "parameters", "flops"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Coverage:
    """What a method reaches in a model; prints itself as a table, in a notebook as HTML.

    Args:
        methods: the methods, spelled.
        layers: every module that holds parameters of its own.
        dropouts: the model's own dropouts that are still on.
        held: what methods do that mix nothing, in words: how many weights decay, and how far they have gone; and that
            a new head may be among the layers, where the model does not tell.
    """

    methods: str
    layers: tuple[LayerCoverage, ...]
    dropouts: tuple[DropoutSite, ...]
    held: tuple[str, ...] = ()

    def _of(self, kind: Kind) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers if layer.kind == kind)

    @property
    def mixed(self) -> tuple[str, ...]:
        """Names of the mixed layers."""
        return self._of("mixed")

    @property
    def decayed(self) -> tuple[str, ...]:
        """Names of the layers that are not mixed, but decay."""
        return self._of("decayed")

    @property
    def plain(self) -> tuple[str, ...]:
        """Names of the layers that no method reaches or is meant to."""
        return self._of("plain")

    @property
    def bypassed(self) -> tuple[str, ...]:
        """Names of the modules whose weights a method cannot reach."""
        return self._of("bypassed")

    @property
    def parameters_mixed(self) -> float:
        """Share of the model's parameters that are mixed, in [0, 1]; tied parameters count once."""
        total = sum(layer.parameters for layer in self.layers)
        return sum(layer.mixed_parameters for layer in self.layers) / total if total else 0.0

    @property
    def flops_mixed(self) -> float:
        """Share of the multiply-adds with weights, per position, that are done with mixed weights, in [0, 1]."""
        total = sum(layer.flops for layer in self.layers)
        return sum(layer.flops for layer in self.layers if layer.kind == "mixed") / total if total else 0.0

    def sorted(self, by: SortBy = "flops") -> Coverage:
        """The same report in another order: numbers from the largest down.

        Raises:
            ValueError: if ``by`` is no column.
        """
        if by not in ("kind", "name", "type", "parameters", "flops"):
            raise ValueError(f"expected a column among kind, name, type, parameters, flops, got {by!r}")
        numeric = by in ("parameters", "flops")
        return replace(self, layers=tuple(sorted(self.layers, key=lambda row: getattr(row, by), reverse=numeric)))

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each layer, as ``pandas.DataFrame`` takes them."""
        return [asdict(layer) for layer in self.layers]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "methods": self.methods,
            "parameters_mixed": self.parameters_mixed,
            "flops_mixed": self.flops_mixed,
            "layers": self.rows(),
            "dropouts": [asdict(site) for site in self.dropouts],
            "held": list(self.held),
        }

    def _head(self) -> list[str]:
        if not self.mixed and self.held:
            return [f"{self.methods}: {self.held[0]}", *self.held[1:]]
        share = f"{self.parameters_mixed:.1%} of the parameters, {self.flops_mixed:.1%} of the weights' FLOPs"
        return [f"{self.methods}: {count(len(self.mixed), 'layer')} mixed, {share}", *self.held]

    def _table(self) -> Iterator[tuple[str, int, str, int, str, str]]:
        """Of layers that are alike what they are, how many, type, parameters, names, and why; the mixed ones first."""
        groups: dict[tuple[str, str, str], list[LayerCoverage]] = {}
        for layer in self.layers:
            groups.setdefault((layer.kind, layer.type, layer.reason), []).append(layer)
        for (kind, type_name, reason), members in sorted(groups.items(), key=lambda group: [*_TOLD].index(group[0][0])):
            first, last = members[0].name or "the model", members[-1].name
            names = first if len(members) == 1 else f"{first} ... {last}"
            yield _TOLD[kind], len(members), type_name, sum(member.parameters for member in members), names, reason

    def __repr__(self) -> str:
        lines = self._head()
        width = max((len(layer.type) for layer in self.layers), default=0)
        for label, number, type_name, parameters, names, reason in self._table():
            lines.append(f"{label:<12}{number:>4} x {type_name:<{width}}{parameters:>13,}  {names}")
            if reason:
                lines.append(f"{'':>19}{reason}")
        return "\n  ".join([*lines, *self._still_on()])

    def _still_on(self) -> list[str]:
        """One line on the model's own dropouts, where any is on."""
        sites = [str(site) for site in self.dropouts]
        if len(sites) < 2:
            return [f"dropout still on: {site}" for site in sites]
        return [f"{len(sites)} dropouts still on: {sites[0]} ... {sites[-1]}"]

    def _repr_html_(self) -> str:
        """The same table for a notebook."""
        cells = [
            (label, f"{number} x {type_name}", f"{parameters:,}", names, reason)
            for label, number, type_name, parameters, names, reason in self._table()
        ]
        head = "".join(f"<th>{name}</th>" for name in ("", "layers", "parameters", "names", "why"))
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
        still_on = "".join(f"<p>{html.escape(line)}</p>" for line in self._still_on())
        summary = "".join(f"<p>{html.escape(line)}</p>" for line in self._head())
        return f"{summary}<table><tr>{head}</tr>{body}</table>{still_on}"


def coverage(
    model: nn.Module, method: Method | str | Sequence[Method | str] | ByLayer | None = None, *, where: WhereLike = None
) -> Coverage:
    """Tell what the method on ``model`` reaches, or what ``method`` would reach if it were applied.

    Args:
        model: a model, or any part of one; without a method everything in it is plain.
        method: for a dry run on a plain model, as :func:`mixout.apply_` takes it. Nothing is copied, and ``model``
            stays plain. A method that finds no layer gives a report of what is not mixed, and why.
        where: for a dry run: which layers.

    Raises:
        AlreadyAppliedError: for a dry run on a model that carries a method.
        MixoutError, TypeError, ValueError: as :func:`mixout.apply_` does, for what is no method and no ``where``.

    Example:
        >>> import mixout
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Dropout(0.1))
        >>> print(coverage(model, mixout.Mixout(0.9)))
        mixout(0.9): 1 layer mixed, 57.1% of the parameters, 100.0% of the weights' FLOPs
          Sequential does not say which layers are new: leave a new head out with where=
          mixed          1 x Linear              15  0
          not mixed      1 x LayerNorm            6  1
                             LayerNorm is not a layer that mixout can mix
    """
    model = unwrapped(model)
    if method is None:
        records = applications(model)
        return _report(model, ", ".join(map(str, records)) or "no method", records[0].where if records else "")
    rules, selection = rules_of(method), resolve(where, model)
    check_applicable(model)
    try:
        try:
            install_(model, rules, selection, AnchorStore(model, own=True))
        except NothingMixedError:
            undo_(model)
        return _report(model, ", ".join(map(spell, rules.values())), region_of(rules, selection))
    finally:
        undo_(model)


def _report(model: nn.Module, methods: str, text: str) -> Coverage:
    layers, held = layer_rows(model, text), [*_held(model)]
    reached = any(row.kind in ("mixed", "decayed") for row in layers)
    if reached and text.partition(f", {PARTS}")[0] == f"where={BODY!r}" and not names_its_body(model):
        held.append(f"{type(model).__name__} does not say which layers are new: leave a new head out with where=")
    return Coverage(methods=methods, layers=layers, dropouts=tuple(dropouts.active(model)), held=tuple(held))


def _held(model: nn.Module) -> Iterator[str]:
    decay_targets = targets(model).values()
    held = {id(p): p for target in decay_targets if (p := target.parameter()) is not None}
    decaying = {key: p for key, p in held.items() if p.requires_grad}
    if held:
        decay = "decays" if len(decaying) == 1 else "decay"
        line = f"{count(len(decaying), 'weight')} {decay} ({sum(p.numel() for p in decaying.values()):,} numbers)"
        dry_run = any(isinstance(target.anchor, OwnWeight) for target in decay_targets)
        # For weights in parts every rank would have to ask.
        if decaying and not dry_run and not any(in_parts(p) or p.is_meta for p in decaying.values()):
            with suppress(MixoutError):
                used = radius_used(model)
                farthest = max(used, key=lambda name: used[name], default="")
                line += f"; the farthest is at {used[farthest]:.2f} of its radius: {farthest}" if used else ""
        yield line
    if output_anchors := output.held(model):
        anchored = sum(len(entry.anchors) for _, entry in output_anchors.values())
        yield f"answers are held by {count(anchored, 'anchored parameter')}"
