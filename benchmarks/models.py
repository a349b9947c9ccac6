"""Models by shape with random weights (nothing is downloaded), the methods they train with, and their training steps.

Batches are full: no padding, no attention mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import mixout
from authors import AuthorsLinear, apply_authors_
from mixout.layers import Mixed
from mixout.passes import Form
from mixout.selection import chosen, resolve
from pairs import Run

# FLOPs that the floor counts for an element of what is no matrix product, and for AdamW's step of a parameter.
ELEMENTWISE, ADAMW = 10, 13


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model's shape and a batch.

    ``bert`` is an encoder with a classifier, ``llama`` a decoder with tied embeddings. ``bf16`` is autocast over
    float32 weights. ``gpu`` says whether the case is meant for GPUs.
    """

    name: str
    family: Literal["bert", "llama"] = "bert"
    width: int
    intermediate: int
    heads: int
    key_heads: int
    layers: int
    vocabulary: int = 30_522
    batch: int = 32
    length: int = 128
    precision: Literal["fp32", "bf16"] = "fp32"
    gpu: bool = False

    @property
    def tokens(self) -> int:
        """Tokens in a step."""
        return self.batch * self.length


def _bert(name: str, width: int, heads: int, layers: int, **rest: Any) -> Case:  # noqa: ANN401  fields of Case
    return Case(
        name=name, width=width, intermediate=4 * width, heads=heads, key_heads=heads, layers=layers, **rest
    )  # fmt: skip


LLAMA_1B = Case(  # the shape of Llama 3.2 1B
    name="llama-1b", family="llama", width=2048, intermediate=8192, heads=32, key_heads=8, layers=16,
    vocabulary=128_256, batch=4, length=1024, precision="bf16", gpu=True,
)  # fmt: skip
# Its matrices cost nothing: all time goes to Python and to torch's dispatch.
COSTS_NOTHING = _bert("costs-nothing", 16, 2, 12, vocabulary=100, batch=2, length=8, precision="bf16")
CASES = {
    case.name: case
    for case in (
        _bert("minilm", 384, 12, 6, batch=16, length=32),
        _bert("bert-base-3", 768, 12, 3),
        _bert("bert-base-12", 768, 12, 12),
        _bert("bert-large", 1024, 16, 24, precision="bf16", gpu=True),
        LLAMA_1B,
    )
}


def build(case: Case, device: torch.device | str) -> nn.Module:
    """The model on ``device``: float32, in training mode, always with the same weights."""
    shape: dict[str, Any] = {
        "vocab_size": case.vocabulary, "hidden_size": case.width, "intermediate_size": case.intermediate,
        "num_attention_heads": case.heads, "num_hidden_layers": case.layers,
        "max_position_embeddings": max(512, case.length),
    }  # fmt: skip
    place = torch.device(device)
    # Only the generators that are drawn from: a fake model must not touch those of a GPU.
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), place:
        torch.manual_seed(0)
        model: Any
        if case.family == "bert":
            model = BertForSequenceClassification(BertConfig(**shape))
        else:
            shape |= {"num_key_value_heads": case.key_heads, "tie_word_embeddings": True, "use_cache": False}
            model = LlamaForCausalLM(LlamaConfig(**shape))
    model.train()
    built: nn.Module = model
    return built


def inputs(case: Case, device: torch.device | str) -> dict[str, Tensor]:
    """A batch of random tokens with labels, always the same."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(case.vocabulary, (case.batch, case.length), generator=generator).to(device)
    labels = torch.randint(2, (case.batch,), generator=generator).to(device)
    return {"input_ids": tokens, "labels": tokens if case.family == "llama" else labels}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A method as text (or ``authors(p)``), the options of ``apply_`` that change its cost, and the mode."""

    method: str
    form: Form = "auto"
    seed: int | None = None
    anchor: Literal["", "bf16", "host"] = ""
    evaluate: bool = False

    def __str__(self) -> str:
        parts = [self.form if self.form != "auto" else "", self.anchor and f"{self.anchor} anchor"]
        parts += ["eval"] if self.evaluate else []
        return ", ".join([self.method, *filter(None, parts)]) + ("" if self.seed is None else f", seed {self.seed}")

    def apply_(self, model: nn.Module) -> nn.Module:
        """Make ``model``, which is plain and on its device, train so."""
        if self.method.startswith("authors"):
            return apply_authors_(model, float(self.method[len("authors(") : -1]))
        options: dict[str, Any] = {"form": self.form, "seed": self.seed}
        if self.anchor == "bf16":  # as the weights of a checkpoint in bfloat16, which that dtype holds exactly
            return mixout.apply_(
                model.bfloat16().float(), self.method, anchor=mixout.Anchor(dtype=torch.bfloat16), **options
            )
        return mixout.apply_(
            model, self.method, anchor=mixout.Anchor(device="cpu") if self.anchor == "host" else None, **options
        )

    @property
    def spared(self) -> float:
        """The share of a mixed layer's weight gradient that need not be computed: p where whole columns are zero."""
        if self.evaluate or not self.method.startswith("mixout("):
            return 0.0
        return float(self.method[len("mixout(") : -1].partition(",")[0])


# Plain fine-tuning is without any dropout: the least work of all that people run.
PLAIN = Setting(method="dropout(0.0)")


def anchors(model: nn.Module) -> Iterator[Tensor]:
    """The anchors that the layers of ``model`` hold; a shared one once."""
    seen: set[int] = set()
    for module in model.modules():
        anchor = module._mixed.anchor.tensor if isinstance(module, Mixed) else None
        if isinstance(module, AuthorsLinear):
            anchor = module.anchor
        if anchor is not None and id(anchor) not in seen:
            seen.add(id(anchor))
            yield anchor


def autocast(case: Case, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if case.precision == "bf16" else nullcontext()


def step(model: Any, case: Case, device: torch.device, *, train: bool = True) -> Run:  # noqa: ANN401  may be compiled
    """A training step (forward, loss, backward, fused AdamW, gradients dropped), or a forward pass in eval mode."""
    batch = inputs(case, device)
    model.train(train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)

    def run() -> None:
        with torch.set_grad_enabled(train), autocast(case, device):
            loss: Tensor = model(**batch).loss
        if train:
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of a plain training step: matrix products of mixed and other linears and of attention, and the rest."""

    mixed: float
    unmixed: float = 0.0
    attention: float = 0.0
    other: float = 0.0

    def floor(self, p: float) -> float:
        """The share that is left with mixout at ``p``, which leaves out p of the mixed linears' weight gradient.

        ``(mixed (2 + 1-p) / 3 + rest) / all``: a bound, not a forecast. It supposes that all FLOPs take the same time,
        that making Phi costs nothing, and that exactly 1-p of the columns are kept.

        Example:
            >>> round(Work(mixed=3.0).floor(0.9), 3), round(Work(mixed=3.0, unmixed=2.0).floor(1.0), 3)
            (0.7, 0.8)
        """
        rest = self.unmixed + self.attention + self.other
        return (self.mixed * (3 - p) / 3 + rest) / (self.mixed + rest)


def count(case: Case) -> Work:
    """The work of ``case``, from one forward pass on fake tensors: shapes, and nothing is computed.

    Attention of width d: six products of 2 B L^2 d, half of that where it is causal. The rest is an estimate.
    """
    plain = build(case, "meta")
    mixed = chosen(plain, resolve(None, plain))[0].keys()
    flops: dict[str, int] = {}
    elements = 0

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        nonlocal elements
        if isinstance(module, nn.Linear):
            # Three products (y, grad_x, grad_w), a multiply-add counted as 2.
            flops[name] = flops.get(name, 0) + 3 * 2 * args[0].numel() * module.out_features
        elif isinstance(output, Tensor):
            elements += output.numel()

    # Fake, not meta: transformers looks into positions unless it knows that there is nothing to see.
    with FakeTensorMode():
        model = build(case, "cpu")
        for name, module in model.named_modules():
            # Dropouts are off in what the floor is compared with.
            if not any(module.children()) and not isinstance(module, nn.Dropout):
                module.register_forward_hook(lambda *seen, name=name: hook(name, *seen))
        model(**inputs(case, "cpu"))
    scores = case.batch * case.length**2 / (2 if case.family == "llama" else 1)
    parameters = sum(parameter.numel() for parameter in plain.parameters())
    return Work(
        mixed=sum(value for name, value in flops.items() if name in mixed),
        unmixed=sum(value for name, value in flops.items() if name not in mixed),
        attention=case.layers * 6 * 2 * scores * case.width,
        other=3 * ELEMENTWISE * (elements + case.layers * case.heads * scores) + ADAMW * parameters,
    )
