"""The score of a fine-tuned model while its task delta w - u is dropped (DARE) or scaled down (WiSE-FT).

    python benchmarks/dare.py out/plain --output out/dare.csv

The first argument is a folder that ``mixout finetune`` wrote. Its record knows the task, the base model, which is the
anchor, and which parameters were new and so have none: these keep their fine-tuned values. Scores are those of the
dev set in float32. ``element`` drops each number of w - u by itself and divides the rest by 1-p, ``input`` an input
neuron's column, as mixout does; ``interpolation`` is u + t (w - u) at 1 - t. The same command goes on where it was
interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

import mixout
from mixout.anchor import old_fingerprint
from mixout.delta import drop_
from mixout.errors import InputError, MixoutError
from mixout.finetune import models
from mixout.finetune.batches import DevSet, collator, encode
from mixout.finetune.environment import quiet
from mixout.finetune.record import RECORD_NAME, Record
from mixout.finetune.tasks import Columns, load_task
from mixout.integrations.huggingface import pretrained_only
from table import Table

CURVES = {
    "element": ("#009e73", "s", "DARE, each weight by itself"),
    "input": ("#0072b2", "o", "whole input neurons"),
    "interpolation": ("#d55e00", "^", "interpolation (WiSE-FT), t = 1 - p"),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is scored: the model between w and u, its dev set, and columns that tell it from another subject."""

    trained: dict[str, Tensor]
    anchors: dict[str, Tensor]
    dev: DevSet
    loaded: models.Loaded
    columns: dict[str, str]

    @torch.no_grad()
    def remove_(self, curve: str, removed: float, seed: int) -> None:
        """Take a share of w - u from the weights as they were trained; what has no anchor stays."""
        model = self.loaded.model
        for name, weight in model.named_parameters():
            weight.copy_(self.trained[name])
        where = pretrained_only(model, self.trained.keys() - self.anchors.keys(), mixout.ALL)
        if curve == "interpolation":
            mixout.interpolate_(model, 1 - removed, anchor=self.anchors, where=where)
        else:
            unit: Literal["element", "input"] = "input" if curve == "input" else "element"
            drop_(model, removed, self.anchors, unit=unit, seed=seed, where=where)

    @torch.no_grad()
    def score(self) -> float:
        """The dev set's score with the model's current weights."""
        collate, examples = collator(self.dev.task.kind, self.loaded.tokenizer), self.dev.sorted()
        outputs = []
        for start in range(0, len(examples), 32):
            batch = collate([dict(one) for one in examples[start : start + 32]])
            inputs = {name: value.to(self.loaded.model.device) for name, value in batch.items() if name != "labels"}
            outputs.append(self.loaded.model(**inputs).logits.float().cpu())
        return float(self.dev.score(torch.cat(outputs).numpy())[self.dev.task.metric])


def load(folder: Path, *, anchor: str | None, task: str | None, data_dir: str | None) -> Subject:
    """Load model, anchor and task, and check that they belong together.

    Raises:
        InputError: one of them is missing, they do not fit each other, or the base model is not the one that the run
            began with, unless another one is asked for.
    """
    if not (folder / RECORD_NAME).is_file():
        raise InputError(f"expected a folder that mixout finetune wrote, got {folder} without {RECORD_NAME}")
    record = Record.read(folder)
    settings = record.settings
    if settings.task_type == "causal-lm":
        raise InputError(f"expected a run whose model gives labels, got a language model in {folder}")
    columns = Columns(text=settings.text_column, pair=settings.pair_column, label=settings.label_column)
    if task is None:
        chosen = load_task(
            settings.task, data_dir=data_dir or settings.data_dir, columns=columns, metric=settings.metric
        )  # fmt: skip
    else:
        chosen = load_task(task, data_dir=data_dir)
    if chosen.labels != record.labels:
        raise InputError(f"expected a task with the model's labels {record.labels}, got {chosen.labels}")
    with quiet():
        loaded = models.load(str(folder), labels=record.labels, init_seed=0)
        base = models.load(anchor or settings.model, labels=record.labels, init_seed=0)
        examples = encode(chosen.dev, loaded.tokenizer, settings.max_length)
    anchors = _anchors(loaded, base, record, anchor or settings.model)
    found = old_fingerprint(anchors)
    if anchor is None and found != record.fingerprints["anchor"]:
        raise InputError(
            f"the weights of {settings.model!r} are not those that this run began with: fingerprint {found[:12]}, "
            f"recorded {str(record.fingerprints['anchor'])[:12]}; name the right base model with --anchor"
        )
    if torch.accelerator.is_available():
        loaded.model.to(torch.accelerator.current_accelerator())  # type: ignore[arg-type]
    loaded.model.train(False)
    return Subject(
        trained={name: weight.detach().clone() for name, weight in loaded.model.named_parameters()},
        anchors=anchors,
        dev=DevSet(chosen, examples),
        loaded=loaded,
        columns={
            "task": task or settings.task,
            "metric": chosen.metric,
            "method": settings.method,
            "weights": old_fingerprint(dict(loaded.model.named_parameters()))[:12],
            "anchor": found[:12],
            "dev": chosen.dev.fingerprint()[:12],
        },
    )


def _anchors(loaded: models.Loaded, base: models.Loaded, record: Record, name: str) -> dict[str, Tensor]:
    """The base model's weights by the names of ``loaded``, without those that the run began anew."""
    known, new = dict(base.model.named_parameters()), base.new | set(record.new_parameters)
    wanted = {name: weight for name, weight in loaded.model.named_parameters() if name not in new}
    missing = [one for one, weight in wanted.items() if one not in known or known[one].shape != weight.shape]
    if missing or not wanted:
        raise InputError(
            f"expected an anchor that the model was fine-tuned from, got {name!r} without "
            f"{', '.join(missing[:3]) or 'any of its weights'}; name the base model with --anchor"
        )
    return {one: known[one].detach() for one in wanted}


def points(rates: Sequence[float], interpolate: Sequence[float], draws: int) -> list[tuple[str, float, int]]:
    """(curve, removed, seed) of every score; nothing is random at 0 and 1, nor in an interpolation.

    Example:
        >>> points([0.5], [1.0], 1)
        [('element', 0.5, 0), ('input', 0.5, 0), ('interpolation', 0.0, 0)]
    """
    if not all(0 <= value <= 1 for value in (*rates, *interpolate)):
        raise InputError(f"expected --rates and --interpolate in [0, 1], got {[*rates, *interpolate]}")
    found = [
        (unit, rate, seed)
        for unit in ("element", "input")
        for rate in rates
        for seed in range(draws if 0 < rate < 1 else 1)
    ]
    # Rounded: 1 - 0.9 is one of the rates, and belongs under it.
    return found + [("interpolation", round(1 - t, 12), 0) for t in interpolate]


def draw(summary: pd.DataFrame, chance: float, metric: str, path: Path) -> None:
    """Mean and standard deviation over the share that is removed."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(chance, color="0.6", linestyle="--", label="a constant answer")
    for curve, (color, mark, label) in CURVES.items():
        rows = summary[summary["curve"] == curve]
        axes.errorbar(rows["removed"], rows["mean"], yerr=rows["std"].fillna(0), color=color, marker=mark, label=label)
    axes.set(xlabel="share p of w - u that is removed", ylabel=metric)
    axes.legend(frameon=False)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Score every point, write what is known after each, draw, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder that mixout finetune wrote")
    parser.add_argument("--anchor", metavar="BASE", help="the base model; default: the one that MODEL began with")
    parser.add_argument("--task", help="score on another task of the same labels; default: the one trained on")
    parser.add_argument("--data-dir", metavar="DIR", help="where GLUE's files are; default: as in training")
    parser.add_argument("--rates", nargs="*", type=float, default=[0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95], metavar="P")
    parser.add_argument("--interpolate", nargs="*", type=float, default=[0.0, 0.3, 0.5, 0.7, 1.0], metavar="T")
    parser.add_argument("--draws", type=int, default=5, metavar="N", help="at each rate; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("out/dare.csv"), help="table; the figure lies beside it")
    args = parser.parse_args(argv)
    try:
        wanted = points(args.rates, args.interpolate, args.draws)
        subject = load(args.model, anchor=args.anchor, task=args.task, data_dir=args.data_dir)
        table = Table(args.output, keep=True)
        for name, value in subject.columns.items():
            if others := {row[name] for row in table.rows} - {value}:
                raise InputError(
                    f"{args.output} has scores of {name} {min(others)!r}, not {value!r}; name another file"
                )
    except MixoutError as error:
        parser.error(str(error))
    done = {(row["curve"], float(row["removed"]), int(row["seed"])) for row in table.rows}
    for curve, removed, seed in wanted:
        if (curve, removed, seed) in done:
            continue
        subject.remove_(curve, removed, seed)
        table.add({"curve": curve, "removed": removed, "seed": seed, "score": subject.score(), **subject.columns})
        print(*list(table.rows[-1].values())[:4], file=sys.stderr, flush=True)
    scores = pd.DataFrame(table.rows).astype({"removed": float, "score": float})
    summary = scores.groupby(["curve", "removed"])["score"].agg(["count", "mean", "std", "min", "max"]).reset_index()
    draw(summary, subject.dev.chance(), subject.dev.task.metric, args.output.with_suffix(".png"))
    print(summary.round(4).to_string(index=False, na_rep=""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
