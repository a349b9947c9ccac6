"""A study of five restarts against a plain loop over them: MiniLM on 500 examples of RTE with mixout(0.9).

    python benchmarks/study_throughput.py --data-dir glue

- ours: the study's runner with one local executor, batches of like length, weights and tokens read once;
- theirs: for each restart model, tokenizer and data are read anew, every text is padded to 128 tokens, the authors'
  formulation of mixout is applied, and the Trainer of transformers trains with its own defaults.

Both have the same examples, model, p, layers, epochs, batch size, AdamW, schedule and evaluations, and write no
checkpoint. Restart k of the one and of the other are a pair, timed in one process, in turn first and second; one short
run of each comes before, so that neither pays for imports. The first restart of ours pays for reading.
What a study does once before any run, reading the data and hashing the weights for its plan, is not timed.

Writes one row a pair to ``benchmarks/results/study_throughput.csv``. Other speeds of the machine change both members of
a pair; ratios are what counts.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from authors import apply_authors_
from mixout.finetune.environment import quiet
from mixout.finetune.models import load
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import few_sample, load_task
from mixout.study.executors import LocalExecutor
from mixout.study.grid import Axis, Study
from mixout.study.ledger import Ledger
from mixout.study.runner import run
from table import environment

P = 0.9
RESULTS = Path(__file__).parent / "results" / "study_throughput.csv"
Timed = dict[str, Any]


def main() -> None:
    """Time the pairs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder with the TSV files of GLUE")
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--train-size", type=int, default=500)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    settings = Settings(
        task="RTE",
        data_dir=args.data_dir,
        method=f"mixout({P}, gradient=paper)",
        train_size=args.train_size,
        epochs=args.epochs,
        learning_rate=5e-4,
        batching="bucketed",
        save="no",
    )
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder, quiet():
        place = Path(folder)
        model = _saved_model(place / "model")
        short = Settings(**{**vars(settings), "train_size": 32, "epochs": 1.0})
        for one in (_ours(short, 1, place / "warm-up"), lambda restart: _theirs(short, model, restart, place)):
            one(0)
        ours = _ours(settings, args.restarts, place / "ledger")
        rows = [
            _pair(restart, ours, lambda restart: _theirs(settings, model, restart, place))
            for restart in range(args.restarts)
        ]
    _write(rows, args.output)


def _ours(settings: Settings, restarts: int, place: Path) -> Callable[[int], Timed]:
    """A study, of which restart k is run when k is asked for."""
    own = {"task": settings.task}, {"method": settings.method}
    shared = {name: value for name, value in vars(settings).items() if name not in ("task", "method", "seed")}
    tasks, methods = ([Axis(label=next(iter(values.values())), settings=values)] for values in own)
    study = Study(name="throughput", restarts=restarts, tasks=tasks, methods=methods, settings=shared)
    planned, ledger, executor = study.runs(), Ledger(place), LocalExecutor()

    def one(restart: int) -> Timed:
        began = time.perf_counter()
        run(planned[: restart + 1], ledger, executor, report=lambda _: None)
        seconds = time.perf_counter() - began
        record = ledger.read().entries[planned[restart].id].record
        if record is None:
            raise SystemExit(f"restart {restart} of ours failed")
        return _timed("ours", seconds, record.seconds, record.evaluation_seconds, record.score)

    return one


def _theirs(settings: Settings, model: str, restart: int, place: Path) -> Timed:
    """One turn of the loop: everything from the start, as a script for one run does it."""
    began = time.perf_counter()
    set_seed(restart)
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(model)
    task = load_task(settings.task, data_dir=settings.data_dir)
    train = few_sample(task.train, settings.train_size or len(task.train), 0)
    encoded = []
    for split in (train, task.dev):
        rows = Dataset.from_dict({"first": split.text, "second": split.pair, "label": split.label})
        encoded.append(
            rows.map(
                lambda batch: tokenizer(
                    batch["first"], batch["second"], padding="max_length", truncation=True, max_length=128
                ),
                batched=True,
            )
        )
    apply_authors_(network, P)
    trainer = Trainer(
        model=network,
        args=TrainingArguments(
            output_dir=str(place / "theirs"),
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=max(32, settings.batch_size),
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
            seed=restart,
            use_cpu=not torch.accelerator.is_available(),
            dataloader_pin_memory=torch.accelerator.is_available(),
        ),
        train_dataset=encoded[0],
        eval_dataset=encoded[1],
        data_collator=default_data_collator,
        compute_metrics=lambda found: {
            "accuracy": float(np.mean(np.asarray(found.predictions).argmax(1) == found.label_ids))
        },
    )
    trainer.remove_callback(PrinterCallback)
    trained = trainer.train().metrics["train_runtime"]
    seconds = time.perf_counter() - began
    looks = [entry for entry in trainer.state.log_history if "eval_runtime" in entry]
    evaluated = sum(entry["eval_runtime"] for entry in looks)
    return _timed("theirs", seconds, trained - evaluated, evaluated, looks[-1]["eval_accuracy"])


def _timed(who: str, seconds: float, training: float, evaluation: float, score: float) -> Timed:
    values = {
        "seconds": seconds,
        "training": training,
        "evaluation": evaluation,
        "rest": seconds - training - evaluation,
        "score": score,
    }
    return {f"{who}_{name}": value for name, value in values.items()}


def _pair(restart: int, ours: Callable[[int], Timed], theirs: Callable[[int], Timed]) -> Timed:
    members = (ours, theirs) if restart % 2 == 0 else (theirs, ours)
    found: Timed = {}
    for member in members:
        found |= member(restart)
    row = {"pair": restart, "ratio": found["theirs_seconds"] / found["ours_seconds"], **found}
    print(
        f"pair {restart}: theirs {row['theirs_seconds']:.1f} s / ours {row['ours_seconds']:.1f} s = {row['ratio']:.2f}"
    )
    return row


def _saved_model(place: Path) -> str:
    """The embedded model as a folder without a head, which a script for one run can read."""
    loaded = load("minilm", labels=("no", "yes"), init_seed=0)
    loaded.model.base_model.save_pretrained(place)  # type: ignore[operator]
    loaded.tokenizer.save_pretrained(place)
    return str(place)


def _write(rows: list[Timed], path: Path) -> None:
    ratios = [row["ratio"] for row in rows]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    whole = sum(row["theirs_seconds"] for row in rows) / sum(row["ours_seconds"] for row in rows)
    for part in ("training", "evaluation", "rest"):
        sums = [sum(row[f"{who}_{part}"] for row in rows) for who in ("theirs", "ours")]
        print(f"{part}: theirs {sums[0]:.1f} s, ours {sums[1]:.1f} s")
    print(f"ratio of pairs: median {median:.2f} (quartiles {low:.2f} to {high:.2f}); of the sums {whole:.2f}")
    constants = {"median": median, "low": low, "high": high, "whole": whole, **environment()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *constants], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **constants} for row in rows)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
