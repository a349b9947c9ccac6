"""What share of each architecture of transformers mixout mixes by default.

    python benchmarks/architectures.py

Every small random model that ``tests/architectures.py`` builds (2 layers of width 32, without an output head where
there is a model without one), after ``apply_(model, Mixout(0.5))`` and before any pass. Writes
``benchmarks/results/architectures.csv``, a row an architecture. Shares of FLOPs are those of these small models: those
of a model of full size differ with its widths, its number of experts and its vocabulary. ``bypassed`` counts modules
whose weights mixout cannot reach (stacked experts, say), ``why`` names their kinds.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import mixout
from mixout import Mixout

HERE = Path(__file__).parent


def main() -> None:
    """Build, apply, look, write."""
    parser = argparse.ArgumentParser(description="The share of each architecture that mixout mixes by default.")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "architectures.csv")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    architectures = _builder()
    names = [name for name in architectures.names() if architectures.left_out(name) is None]
    rows = [_row(name, architectures) for name in names]
    with arguments.output.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print(f"{len(names)} architectures: {arguments.output}")


def _row(name: str, architectures: Any) -> dict[str, object]:  # noqa: ANN401
    model, where = architectures.build(name), architectures.WHERE.get(name)
    coverage = mixout.coverage(mixout.apply_(model, Mixout(0.5), where=where))
    kinds = {f"{layer.type}: {layer.reason}" for layer in coverage.layers if layer.kind == "bypassed"}
    return {
        "architecture": name,
        "model": type(model).__name__,
        "parameters": sum(layer.parameters for layer in coverage.layers),
        "mixed": len(coverage.mixed),
        "bypassed": len(coverage.bypassed),
        "parameters_mixed": f"{coverage.parameters_mixed:.3f}",
        "flops_mixed": f"{coverage.flops_mixed:.3f}",
        "where": where or "",
        "why": "; ".join(sorted(kinds)),
    }


def _builder() -> Any:  # noqa: ANN401
    """``tests/architectures.py``, which is no package's."""
    spec = importlib.util.spec_from_file_location("architectures", HERE.parent / "tests" / "architectures.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


if __name__ == "__main__":
    main()
