"""What mixout adds to a checkpoint of a 100M model: its state, with the anchor's fingerprint, and ||w - u||.

    python benchmarks/state.py

BERT-base by shape, 109 M parameters, float32, random weights, mixout(0.9). Between two repetitions every weight
changes, as it does between two checkpoints. Process and wall time in seconds, medians; ``apply_`` is the price that is
paid once, in which the anchor is copied and hashed. Writes ``benchmarks/results/state.csv``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rows import Row, show, with_machine, write

import mixout
from mixout.bench.cases import build, find

RESULTS = Path(__file__).parent / "results" / "state.csv"
COLUMNS = ("what", "parameters", "mixed", "process_s", "wall_s", "repetitions", "threads", "load")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--case", default="bert-base-12", help="a case of mixout bench; default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="table to write; default: %(default)s")
    args = parser.parse_args(argv)
    model = build(find(args.case), "cpu")
    parts: dict[str, Callable[[], object]] = {
        "state_dict": lambda: mixout.save_state(model),
        "distance": lambda: mixout.distance(model),
    }
    seconds: dict[str, list[tuple[float, float]]] = {"apply_": [timed(lambda: mixout.apply_(model, "mixout(0.9)"))]}
    for _ in range(args.repetitions):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-3 * torch.randn(()))
        for name, part in parts.items():
            seconds.setdefault(name, []).append(timed(part))
    pairs = zip(seconds["state_dict"], seconds["distance"], strict=True)
    seconds["state_dict + distance"] = [(one[0] + other[0], one[1] + other[1]) for one, other in pairs]
    total = sum(parameter.numel() for parameter in model.parameters())
    mixed = sum(model.get_submodule(name).weight.numel() for name in mixout.coverage(model).mixed)
    rows: list[Row] = []
    for name, times in seconds.items():
        process, wall = (statistics.median(column) for column in zip(*times, strict=True))
        row = {"what": name, "parameters": total, "mixed": mixed, "repetitions": len(times)}
        rows.append(with_machine(row | {"process_s": f"{process:.4f}", "wall_s": f"{wall:.4f}"}))
    write(args.output, rows)
    print(show(rows, COLUMNS))


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Process and wall time of a run, in seconds."""
    process, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - process, time.perf_counter() - wall


if __name__ == "__main__":
    main()
