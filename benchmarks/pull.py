"""How large mixout's pull is in a pretrained transformer, measured and predicted from the curvature.

    python benchmarks/pull.py

MiniLM is fine-tuned plainly on 200 docstrings, 10 epochs of AdamW at 3e-4, as ``mixout finetune`` does it. Then
``E L(Phi) - L(w)`` is measured over random masks of the weights that mixout would mix, on 24 texts that were trained on
and on 24 that were not, and compared with ``p/(2(1-p)) S``: see :mod:`theory.adaptivity`. Writes
``benchmarks/results/pull.csv``; six minutes on one core.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import DataCollatorWithPadding

import mixout
from mixout.finetune import data
from mixout.finetune.batches import encode
from mixout.finetune.models import load, load_trained
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune
from table import Table
from theory.adaptivity import PS, Weights, block_curvature, sampled_pulls, spread

RESULTS = Path(__file__).parent / "results" / "pull.csv"
COLUMNS = ("texts", "p", "loss", "squared_distance", "measured", "measured_error", "predicted", "predicted_error")
TEXTS = 24


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=40, help="random masks, and signs; default: %(default)s")
    parser.add_argument("--epochs", type=float, default=10.0, help="default: %(default)s")
    parser.add_argument("--model", default="minilm", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="table to write; default: %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = Settings(
        model=args.model, task="docstrings", method="dropout(0.0)", train_size=200, epochs=args.epochs,
        learning_rate=3e-4, batch_size=16, max_length=32, evaluate="end", save="no",
    )  # fmt: skip
    table = Table(args.output)
    with tempfile.TemporaryDirectory() as folder:
        finetune(settings, Path(folder) / "run", keep_model=True)
        for row in rows(settings, Path(folder) / "run", args.masks):
            table.add(row)
    print(table.text(COLUMNS))


def rows(settings: Settings, run: Path, number: int) -> Iterator[dict[str, Any]]:
    """The table's rows, from a run's model and the pretrained one."""
    task = data.subset(data.load(settings), settings)
    trained = load_trained(str(run), settings.task_type)
    pretrained = load(settings.model, labels=task.labels, init_seed=0)
    model = trained.model
    model.eval()  # type: ignore[no-untyped-call]
    model.set_attn_implementation("eager")  # fused attention has no second derivative
    starts = dict(pretrained.model.named_parameters())
    names = [f"{name}.weight" for name in mixout.coverage(model, "mixout(0.5)").mixed]
    weights: Weights = {name: dict(model.named_parameters())[name] for name in names}
    start: Weights = {name: starts[name].detach() for name in names}
    deltas = {name: weight.detach() - start[name] for name, weight in weights.items()}
    for texts, part in (("trained on", task.train), ("not trained on", task.dev)):
        examples = encode(part, trained.tokenizer, settings.max_length)[:TEXTS]
        batch = dict(DataCollatorWithPadding(trained.tokenizer)(examples))

        def loss_of(given: Weights, batch: dict[str, Tensor] = batch) -> Tensor:
            loss: Tensor = functional_call(model, given, kwargs=batch).loss
            return loss

        curvature, curvature_error = spread(block_curvature(loss_of, weights, deltas, number))
        for p in PS:
            loss, pulls = sampled_pulls(loss_of, weights, start, p, number, at_once=4)
            measured, measured_error = spread(pulls)
            odds = p / (2 * (1 - p))
            yield {
                "texts": texts, "p": p, "loss": loss, "measured": measured, "measured_error": measured_error,
                "squared_distance": float(sum(delta.square().sum() for delta in deltas.values())),
                "predicted": odds * curvature, "predicted_error": odds * curvature_error,
            }  # fmt: skip


if __name__ == "__main__":
    main()
