"""What a small language model learns of one library's prose, and forgets of another's: methods against training less.

    python benchmarks/causal_forgetting.py

The model, the text and the fine-tuning are those of ``examples/causal_lm.py``, with more text: a Llama of 0.13 million
parameters reads 800 docstrings of scipy four times, and is then fine-tuned on 40 of networkx. Restart k has seed k in
every variant: the same order of the examples, and masks of its own; the pretrained model is one. Plain fine-tuning with
a lower rate or fewer epochs stands beside the methods, since training less forgets less, too.

Writes one row a run to ``benchmarks/results/causal_forgetting.csv``: both held-out losses in nats per token, before and
after. The docstrings are those of the installed versions. Runs that the file holds already are not run again; where
another machine or version would pretrain another model, the file has to go first.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from table import environment

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from causal_lm import adapt, pretrain, write_text

RESULTS = Path(__file__).parent / "results" / "causal_forgetting.csv"
LIBRARIES = {"original": "scipy", "new": "networkx"}
RATE, EPOCHS = 2e-3, 5.0
# Method as records spell it, learning rate, epochs.
VARIANTS = (
    ("plain", RATE, EPOCHS),
    ("plain", RATE / 2, EPOCHS),
    ("plain", RATE / 4, EPOCHS),
    ("plain", RATE, 2.0),
    ("mixout(0.5)", RATE, EPOCHS),
    ("mixout(0.7)", RATE, EPOCHS),
    ("mixout(0.9)", RATE, EPOCHS),
    ("mixout(0.7)", RATE / 2, EPOCHS),
    ("mixout(0.9)", RATE / 2, EPOCHS),
    ("anchor_decay(10.0)", RATE, EPOCHS),
    ("anchor_decay(40.0)", RATE, EPOCHS),
)


def main() -> None:
    """Pretrain once, fine-tune every variant with every seed, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = _read(args.output)
    there = {_key(row) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_text(LIBRARIES["original"], place / "original", train=800, dev=60)
        write_text(LIBRARIES["new"], place / "new", train=40, dev=60)
        base = pretrain(place, epochs=4)
        # Restart by restart, so that an interrupted table is a fair one.
        for seed in range(args.restarts):
            for method, rate, epochs in VARIANTS:
                if (method, str(rate), str(epochs), str(seed)) in there:
                    continue
                row = measured(place, base, method=method, seed=seed, learning_rate=rate, epochs=epochs)
                if rows and str(row["original_before"]) != str(rows[0]["original_before"]):
                    raise SystemExit(f"another model was pretrained here than for {args.output}; remove it first")
                rows.append({**row, **context()})
                print(*row.values(), sep="  ", flush=True)
                _write(args.output, rows)


def measured(place: Path, base: Path, *, method: str, seed: int, learning_rate: float, epochs: float) -> dict[str, Any]:
    """One run: losses of both domains before and after, the distance from the pretrained weights."""
    record = adapt(place, base, method=method, seed=seed, learning_rate=learning_rate, epochs=epochs)
    first, last = record.evaluations[0].scores, record.evaluations[-1].scores
    losses = {
        f"{domain}_{when}": round(-scores[f"{prefix}log_likelihood"], 4)
        for domain, prefix in (("new", ""), ("original", "original_"))
        for when, scores in (("before", first), ("after", last))
    }
    return {
        "method": record.settings.method,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "restart": seed,
        **losses,
        "distance": round(record.distance, 3),
        "steps": record.steps,
        "status": record.status,
    }


def context() -> dict[str, Any]:
    """Machine, versions, and those of the libraries whose docstrings were read."""
    texts = {f"{name}_version": version(name) for name in LIBRARIES.values()}
    return {**environment(), **texts}


def _key(row: dict[str, Any]) -> tuple[str, str, str, str]:
    return row["method"], row["learning_rate"], row["epochs"], row["restart"]


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
