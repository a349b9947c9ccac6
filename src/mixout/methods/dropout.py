"""dropout(p): the model's own dropouts, all set to p.

Dropout on a layer's input is mixout with anchor 0 (one coin per input neuron), except that dropout tosses its coins
anew for every token and example, mixout once per training pass.

- Does: pulls towards zero. dropout(0) is fine-tuning with every dropout off, the usual baseline of mixout.
- Sets every dropout, also those that the configuration had at 0; stochastic depth is another method and left as it is.
- Source: Srivastava et al., JMLR 2014; as mixout(0, p), Lee, Cho, Kang, ICLR 2020, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mixout import dropouts
from mixout.errors import NothingMixedError
from mixout.masks import check_p
from mixout.methods.method import Method, Site


@dataclass(frozen=True)
class Dropout(Method):
    """The model's own dropouts at ``p``.

    Args:
        p: probability that an activation is dropped, in [0, 1].

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if ``p`` is out of its range.

    Example:
        >>> Dropout(0.1)
        Dropout(p=0.1)
    """

    p: float
    name: ClassVar[str] = "dropout"

    def __post_init__(self) -> None:
        check_p(self.p)

    def install_(self, site: Site) -> None:
        """Set every dropout of the model to p."""
        if not dropouts.set_(site.model, self.p) and self.p > 0:
            raise NothingMixedError(f"expected a model with dropouts to set to {self.p}, got none in it")
