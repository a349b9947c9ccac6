"""What a training step of every method of a study costs, in interleaved pairs with plain fine-tuning.

    python benchmarks/cost.py benchmarks/evidence/stay-close.toml
    python benchmarks/cost.py benchmarks/evidence/tables.toml --data-dir glue

Model, data, batches, optimizer and clipping are those of the study's first restart, in float32; one thread, as a run of
a study that shares its machine has. Both members of a pair take the same batch. One row a task and method, added to
``benchmarks/results/cost.csv``; one that is there already is not measured again. The first study takes 4 minutes.

A method that trains the head first is left out: what it costs is that of plain fine-tuning, and less at first.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from mixout.errors import InputError
from mixout.finetune.batches import DevSet
from mixout.finetune.cache import Cache
from mixout.finetune.environment import quiet
from mixout.finetune.levels import apply_methods, reinitialise_
from mixout.finetune.settings import Settings
from mixout.finetune.trainer import TextTrainer
from mixout.study.declaration import read
from pairs import Run, clock_of, interleave, release
from table import Row, Table

RESULTS = Path(__file__).parent / "results" / "cost.csv"
WARMUP = 3


def main() -> None:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="+", help="study files")
    parser.add_argument("--data-dir", help="folder with the TSV files of GLUE")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(args.output, keep=True)
    done = {(row["task"], row["method"]) for row in table.rows}
    cache = Cache()
    for file in args.study:
        study = read(file).with_settings({"data_dir": args.data_dir, "precision": "fp32", "original": None})
        for run in replace(study, restarts=1).runs():
            if (run.task, run.method) in done or run.settings.head_first:
                continue
            done.add((run.task, run.method))
            plain = replace(run.settings, method="dropout(0.0)", head="plain", reinit_layers=0, layer_decay=1.0)
            plain = replace(plain, optimizer="adamw" if run.settings.optimizer == "mofo" else run.settings.optimizer)
            pair = [step(settings, cache) for settings in (replace(plain, weight_decay=0.0), run.settings)]
            found = interleave(
                pair[0][0], pair[1][0], pairs=args.pairs, warmup=WARMUP, clock=clock_of(torch.device("cpu"))
            )
            row: Row = {"task": run.task, "method": run.method, "tokens": round(pair[0][1])}
            row |= {"ratio": found.ratio, "low": found.low, "high": found.high, "pairs": found.pairs}
            table.add(row | {"plain_seconds": found.base, "seconds": found.variant})
            print(f"{run.task}, {run.method}: {found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}]", flush=True)
            del pair
            release()


def step(settings: Settings, cache: Cache) -> tuple[Run, float]:
    """A training step as a run of ``settings`` takes it, each on its next batch; and the mean tokens of a batch."""
    settings = settings.resolved()
    task = cache.task(settings)
    if task.kind == "text":
        raise InputError(f"expected a study of classifiers, got the text of {settings.task!r}; name another study")
    with quiet(), tempfile.TemporaryDirectory() as place:
        loaded, _ = cache.model(settings, task)
        loaded = reinitialise_(loaded, settings.reinit_layers, settings.stream_seed("init"))
        train, dev = cache.tokens(task.train, settings), cache.tokens(task.dev, settings)
        # For a decay by importance, of which a few examples are as good as many here.
        apply_methods(loaded, settings, [{"input_ids": torch.tensor([one["input_ids"]])} for one in train[:4]])
        built = TextTrainer(
            settings, Path(place), loaded, task, train, DevSet(task, dev), report=lambda _line: None, bars=False
        )
        batches = list(built.get_train_dataloader())
    model = loaded.model.train()
    optimizer = built.create_optimizer()
    turn = itertools.cycle(batches)

    def run() -> None:
        batch = next(turn)
        built.compute_loss(model, dict(batch), num_items_in_batch=len(batch["labels"])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run, sum(batch["input_ids"].numel() for batch in batches) / len(batches)


if __name__ == "__main__":
    main()
