r"""The base of all methods; the two that act on no weight; and those that mix, with one description for all.

A method is a frozen description, on which :mod:`mixout.apply` acts. Those that mix replace a weight w by a random Phi
of mean w in each training pass.

``Phi = u + (M / (1-p)) (w - u)`` with the anchor u and the mask M, of mean 1-p. A method is a choice of these; see
:class:`MixingMethod`.

======================  ============================  ==========  =========  ========
method                  unit                          noise       anchor     gradient
======================  ============================  ==========  =========  ========
:class:`Mixout`         input, output, element, layer bernoulli   given      any
:class:`Mixconnect`     element                       either      given      any
:class:`Dropconnect`    element                       bernoulli   zero       any
:class:`GradientMask`   input, output, element, layer bernoulli   own        exact, paper
======================  ============================  ==========  =========  ========
"""

from __future__ import annotations

from dataclasses import KW_ONLY, Field, dataclass, field, fields
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias

from mixout.masks import NOISES, UNITS, Noise, Unit, check_p
from mixout.ops.reference import GRADIENTS, Gradient
from mixout.seeds import Every, check_every

AnchorKind: TypeAlias = Literal["given", "zero", "own"]


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
        """The arguments that differ from their default, and their values."""
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
        object.__setattr__(self, "p", check_p(self.p))  # a numpy number becomes Python's


@dataclass(frozen=True, repr=False)
class Plain(Method):
    """Change nothing: the null method, so that it can be compared. Without any dropout use ``Dropout(0)``.

    Example:
        >>> Plain()
        Plain()
    """

    name = "plain"


@dataclass(frozen=True, repr=False)
class MixingMethod(Method):
    """A method that replaces weights by Phi. Abstract.

    Args:
        p: probability that a unit is replaced by the anchor, in [0, 1]; in [0, 1) with Gaussian noise.
        unit, gradient, every, anchor_ema: see :class:`Mixout`.
        noise: the law of the mask: ``bernoulli``, or ``gaussian`` with the same mean 1-p and variance p(1-p).
        anchor: what a weight is mixed with: ``given``, the starting weights unless ``apply_`` is told others;
            ``zero``; or the weight's ``own`` value, so that Phi is w and only the gradient is masked.

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if an argument is out of its range.
    """

    p: float
    _: KW_ONLY
    unit: Unit = "input"
    noise: Noise = field(default="bernoulli", init=False)
    gradient: Gradient = "exact"
    every: Every = 1
    anchor_ema: float | None = field(default=None, init=False)
    anchor: AnchorKind = field(default="given", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", check_every(self.every))
        if self.anchor_ema is not None:
            object.__setattr__(self, "anchor_ema", self._checked_ema(self.anchor_ema))
        for name, allowed in (("unit", UNITS), ("noise", NOISES), ("gradient", GRADIENTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"expected {name} in {allowed}, got {getattr(self, name)!r}")
        if self.anchor == "own" and self.gradient == "dense":
            raise ValueError(f"expected gradient 'exact' or 'paper' for {self.name}, got 'dense': that masks nothing")
        if self.unit == "layer" and self.every == 1:
            raise ValueError("expected every= with unit='layer', for example every=20: how many steps a draw is kept")
        object.__setattr__(self, "p", check_p(self.p, self.noise))  # a numpy number becomes Python's

    def _checked_ema(self, b: float) -> float | None:
        if isinstance(b, bool) or not isinstance(b, Real):
            raise TypeError(f"expected anchor_ema to be a number in [0, 1], or None, got {b!r}")
        if not 0 <= b <= 1:
            raise ValueError(f"expected anchor_ema in [0, 1], the share of the anchor that stays, got {b}")
        if b < 1 and self.every in (1, "run"):
            raise ValueError(
                "expected every= as a number of optimizer steps above 1 with anchor_ema, for example every=16: the "
                f"anchor moves after each such period; got every={self.every!r}"
            )
        return float(b) if b < 1 else None


@dataclass(frozen=True, repr=False)
class Mixout(MixingMethod):
    """In each training pass a random share ``p`` of a layer's input columns is replaced by the anchor's.

    - Does: the mean loss over masks has a pull towards the anchor (Corollary 1.1: for a loss of strong convexity c,
      E L(Phi) >= L(w) + c p / (2 (1-p)) ||w - u||^2).
    - Costs: a copy of the mixed weights, with ``anchor_ema`` two; per training pass two element-wise passes over them
      (forward and backward), and 1-p of the weight-gradient GEMM instead of all of it.
    - Helps: where little data and an unstable optimizer make runs fail. See docs/choosing.md for when it does not.
    - Source: Lee, Cho, Kang, ICLR 2020, arXiv 1909.11299, section 3. ``anchor_ema``: GMixout, arXiv 2510.06982.

    Args:
        p: probability that a unit is replaced by the anchor, in [0, 1]. The paper uses 0.7 to 0.9.
        unit: the weights that share one entry of the mask: an ``input`` column (the paper), an ``output`` row, one
            ``element``, or a ``layer``, and within a block of the model (a member of an ``nn.ModuleList``) all its
            layers; this one takes a period.
        gradient: ``exact``, the derivative of the forward, M/(1-p); ``paper``, M, smaller by the factor 1-p, as in the
            authors' code; or ``dense``, 1, as if nothing were mixed: a control.
        every: 1 for a mask of its own in each training pass; k > 1 for one mask in k optimizer steps, which the
            micro-batches of a step share; ``"run"`` for one mask in the whole run.
        anchor_ema: b in [0, 1], with a period of several steps: after each the anchor A becomes b A + (1-b) w, from
            A = u on (GMixout). None, or 1, for an anchor that stays u.

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if an argument is out of its range.

    Example:
        >>> Mixout(0.9)
        Mixout(p=0.9)
        >>> Mixout(0.7, every=16, anchor_ema=0.99)
        Mixout(p=0.7, every=16, anchor_ema=0.99)
    """

    name = "mixout"
    anchor_ema: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True, repr=False)
class Mixconnect(MixingMethod):
    """Every weight has its own mask, of mean 1-p and variance p(1-p).

    With a mask of mean mu and variance sigma^2 (equation 4) Phi depends on the law of M / mu alone, of mean 1 and
    variance sigma^2 / mu^2 = p / (1-p), the same as mixout's: p = sigma^2 / (sigma^2 + mu^2).

    - Does: mixout without the correlation between a neuron's weights; Theorem 1 holds with m sigma^2 / (2 mu^2).
    - Costs: a mask as large as the weight and a full weight gradient.
    - Source: Lee, Cho, Kang, ICLR 2020, equation 4. One draw of it after training is DARE (Yu et al. 2024).

    Args:
        p: probability that a weight is replaced by the anchor's, in [0, 1]; in [0, 1) with Gaussian noise.
        noise: ``bernoulli``, or ``gaussian`` with the same mean and variance.
        gradient: ``exact``, ``paper`` or ``dense``; see :class:`Mixout`.
        every: optimizer steps for which a mask is kept; see :class:`Mixout`.
        anchor_ema: how slowly the anchor follows the weights; see :class:`Mixout`.

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if an argument is out of its range.

    Example:
        >>> Mixconnect(0.5, noise="gaussian")
        Mixconnect(p=0.5, noise='gaussian')
    """

    name = "mixconnect"
    unit: Unit = field(default="element", init=False)
    noise: Noise = "bernoulli"
    anchor_ema: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True, repr=False)
class Dropconnect(MixingMethod):
    """Every weight is dropped on its own, the rest is rescaled: ``Phi = (M / (1-p)) w``. Mixconnect with anchor 0.

    - Does: pulls towards zero, not towards the pretrained weights. The anchor needs no memory.
    - Source: Wan et al., ICML 2013; as a special case of mixconnect, Lee, Cho, Kang, ICLR 2020, section 3.

    Args:
        p: probability that a weight is dropped, in [0, 1].
        gradient: ``exact``, ``paper`` or ``dense``; see :class:`Mixout`.
        every: optimizer steps for which a mask is kept; see :class:`Mixout`.

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if an argument is out of its range.

    Example:
        >>> Dropconnect(0.1)
        Dropconnect(p=0.1)
    """

    name = "dropconnect"
    unit: Unit = field(default="element", init=False)
    anchor: AnchorKind = field(default="zero", init=False)


@dataclass(frozen=True, repr=False)
class GradientMask(MixingMethod):
    """Plain weights forward, mixout's sparse gradient backward: ``Phi = w``, ``dL/dw = g M / (1-p)``. A control.

    - Does: no pull towards anything. Under Adam a gradient that is mostly zero already keeps w closer to the start, by
      about sqrt(1-p): what mixout does beyond that is its pull.
    - Costs: no anchor; 1-p of the weight-gradient GEMM.
    - With ``unit="layer", every=20`` close to LISA: of the model's blocks each trains with probability 1-p for 20
      steps, the rest of the model always. Under Adam the momentum moves a masked block for some more steps.
    - Source: as Child-Tuning_F, with a mask entry per weight, Xu et al., EMNLP 2021, arXiv 2109.05687; LISA: Pan et
      al., NeurIPS 2024, arXiv 2403.17919.

    Args:
        p: probability that a unit's gradient is 0, in [0, 1].
        unit: the weights that share one entry of the mask: those of an ``input`` neuron, of an ``output`` neuron, one
            ``element``, or a ``layer``; see :class:`Mixout`.
        gradient: ``exact``, g M/(1-p); or ``paper``, g M.
        every: optimizer steps for which a mask is kept; see :class:`Mixout`.

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if an argument is out of its range.

    Example:
        >>> GradientMask(0.9)
        GradientMask(p=0.9)
    """

    name = "gradient_mask"
    anchor: AnchorKind = field(default="own", init=False)
