"""Methods as text: ``mixout(0.9)``, ``mixout(0.7, gradient=paper)+anchor_decay(radius=0.005)``, ``plain``.

For settings files and command lines. ``parse(spell(methods)) == methods``, except for tensors, and
for paths with a comma or brackets, which have no text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from numbers import Real
from typing import Any

from mixout._names import nearest
from mixout.methods.decay import AnchorDecay
from mixout.methods.mixing import Dropconnect, Dropout, GradientMask, Method, Mixconnect, Mixout, Plain
from mixout.methods.output import OutputAnchor

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (Mixout, Mixconnect, Dropconnect, Dropout, GradientMask, AnchorDecay, OutputAnchor, Plain)
}

# What the command line takes beside them.
_ELSEWHERE = {
    "auto": 'it is chosen by mixout finetune; in Python write "anchor_decay(radius=0.005)"',
    "lora": "add adapters with peft.get_peft_model, then call apply_",
    "interpolate": "call mixout.interpolate_(model, 0.5, start) after training",
}

_CALL = re.compile(r"\s*(?P<name>[^\s()]+)\s*(\((?P<arguments>[^()]*)\))?\s*")


def parse(text: str, known: Mapping[str, type[Method]] = METHODS) -> tuple[Method, ...]:
    """The methods that ``text`` names, joined by ``+``.

    Args:
        text: one method or several.
        known: methods by name.

    Raises:
        ValueError: if a name, an argument or a value is unknown; the message names the nearest valid one.

    Example:
        >>> parse("mixout(0.7)+anchor_decay(radius=0.005)")
        (Mixout(p=0.7), AnchorDecay(radius=0.005))
    """
    return tuple(_parse_one(part, known) for part in re.split(r"\+(?![^()]*\))", text))


def as_methods(method: Any) -> tuple[Method, ...]:  # noqa: ANN401  whatever a caller may write
    """One or several methods, which a caller may write as instances, as text, or as a sequence of these."""
    parts = [method] if isinstance(method, (Method, str)) else method
    if isinstance(parts, Sequence):
        methods = [item for part in parts for item in (parse(part) if isinstance(part, str) else (part,))]
        if methods and all(isinstance(item, Method) for item in methods):
            return tuple(methods)
    hint = ""
    if isinstance(method, type) and issubclass(method, Method):
        hint = f"; write {method.__name__}(...), with its arguments"
    raise TypeError(f'expected a method such as mixout.Mixout(0.9) or "mixout(0.9)", or several, got {method!r}{hint}')


def spell(methods: Method | Sequence[Method]) -> str:
    """The canonical text of ``methods``, without arguments that have their default.

    Example:
        >>> spell([Mixout(0.7, gradient="paper"), AnchorDecay(radius=0.005)])
        'mixout(0.7, gradient=paper)+anchor_decay(radius=0.005)'
    """
    if not isinstance(methods, Method):
        return "+".join(map(spell, methods))
    arguments = []
    for f, value in methods.given():
        if isinstance(value, bool):
            text = str(value).lower()
        else:  # a number in its field's type: 1 in a float field is 1.0, a count stays an integer
            text = repr(float(value)) if isinstance(value, Real) and "float" in str(f.type) else str(value)
        arguments.append(text if f is methods.arguments()[0] else f"{f.name}={text}")
    return f"{methods.name}({', '.join(arguments)})" if arguments else methods.name


def reaches(methods: Iterable[Method]) -> list[str]:
    """How far each decay of ``methods`` that bounds the distance lets a weight go, in words."""
    lines = []
    for method in methods:
        if isinstance(method, AnchorDecay) and method.shrinks and method.strength:
            reach = f"{1 / method.strength:.3g}" + " times its tensor's root mean square" * method.relative
            reach += " divided by its importance" * method.weighted
            lines.append(f"{spell(method)}: under Adam a weight goes about {reach} from its start at most")
            if method.rate is not None and method.rate <= 0.1 and not method.weighted:
                lines[-1] += f", farther than a run goes, so it does nothing; did you mean radius={method.rate:g}?"
    return lines


def _parse_one(part: str, methods: Mapping[str, type[Method]]) -> Method:
    match = _CALL.fullmatch(part)
    if match is None:
        raise ValueError(f'expected a method such as "mixout(0.9)", got {part!r}')
    by_class = {known.__name__: key for table in (METHODS, methods) for key, known in table.items()}  # Mixout: mixout
    name = by_class.get(match["name"], match["name"])
    if name not in methods:
        hint = f"; {_ELSEWHERE[name]}" if name in _ELSEWHERE else nearest(name, [*methods])
        raise ValueError(f"expected a method among {', '.join(methods)}, got {name!r}{hint}")
    method_class = methods[name]
    settable = method_class.arguments()
    names = [f.name for f in settable]
    values: dict[str, Any] = {}
    for position, argument in enumerate(filter(None, map(str.strip, (match["arguments"] or "").split(",")))):
        key, equals, value = (piece.strip() for piece in argument.partition("="))
        if not equals and (position > 0 or not names):
            raise ValueError(f"expected arguments of {name} after the first as name=value, got {argument!r}")
        key, value = (key, value) if equals else (names[0], key)
        if key in values:
            raise ValueError(f"expected each argument of {name} once, got {key} twice in {part.strip()!r}")
        if key not in names:
            raise ValueError(f"expected {name} to take {', '.join(names)}, got {key!r}{nearest(key, names)}")
        values[key] = _value(value)
    for f in settable:
        if f.default is MISSING and f.name not in values:
            example = 8 if f.type == "int" else 0.1
            raise ValueError(
                f'expected {name} with its {f.name}, for example "{name}({example})", got {part.strip()!r}'
            )
    try:
        return method_class(**values)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error


def _value(text: str) -> float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text
