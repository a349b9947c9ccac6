"""What a method is: a frozen description, on which :mod:`mixout.apply` acts. And the two that act on no weight."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar

from mixout.masks import check_p


class Method:
    """One way to fine-tune. Abstract; subclasses are frozen dataclasses.

    ``name`` is how :func:`mixout.methods.parse` and :func:`mixout.methods.spell` write it.
    """

    name: ClassVar[str]

    @classmethod
    def arguments(cls) -> list[Field[Any]]:
        """What the method is made with."""
        return [f for f in fields(cls) if f.init]  # type: ignore[arg-type]  # every method is a dataclass

    def given(self) -> list[tuple[Field[Any], Any]]:
        """The arguments that have not their default, and their values."""
        return [(f, value) for f in self.arguments() if (value := getattr(self, f.name)) != f.default]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{f.name}={value!r}' for f, value in self.given())})"


@dataclass(frozen=True, repr=False)
class Dropout(Method):
    """All of the model's own dropouts at ``p``.

    Dropout on a layer's input is mixout with anchor 0 (one mask entry per input neuron), except that dropout draws
    anew for every token and example, mixout once per training pass.

    - Does: pulls towards zero. ``Dropout(0)`` is fine-tuning with every dropout off, the usual baseline of mixout.
    - Sets every dropout, also those that the configuration had at 0; stochastic depth is another method and stays.
    - Source: Srivastava et al., JMLR 2014; as mixout(0, p), Lee, Cho, Kang, ICLR 2020, section 3.

    Args:
        p: probability that an activation is dropped, in [0, 1].

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if ``p`` is out of its range.

    Example:
        >>> Dropout(0.1)
        Dropout(p=0.1)
    """

    name = "dropout"
    p: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", check_p(self.p))  # numpy's become Python's


@dataclass(frozen=True, repr=False)
class Plain(Method):
    """Change nothing: the null method, so that it can be compared. Without any dropout use ``Dropout(0)``.

    Example:
        >>> Plain()
        Plain()
    """

    name = "plain"
