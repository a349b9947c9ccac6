"""What share of each architecture of transformers mixout mixes by default, as a table.

    python benchmarks/architectures.py            # all of them, some minutes
    python benchmarks/architectures.py bert vit   # these, in place of their old rows

Every small random model that ``tests/architectures.py`` builds (2 layers of width 32, without an output head where
there is a model without one), after ``apply_(model, Mixout(0.5))`` and before any pass. Prints and writes
``benchmarks/results/architectures.csv``, a row an architecture. Shares of FLOPs are those of these small models: those
of a model of full size differ with its widths, its number of experts and its vocabulary. ``said`` is what ``apply_``
says of a share below one half: a warning, an error, or nothing where the rest are output layers, which are left out on
purpose. ``bypassed`` counts modules whose weights mixout cannot reach, ``why`` names their kinds.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import warnings
from pathlib import Path
from typing import Any

from torch import nn

import mixout
from mixout import Mixout
from mixout.reach import ENOUGH
from mixout.selection import body

HERE = Path(__file__).parent
COLUMNS = (
    *("architecture", "model", "parameters", "mixed", "bypassed"),
    *("parameters_mixed", "flops_mixed", "said", "where", "why"),
)


def main() -> None:
    """Build, apply, look, write."""
    parser = argparse.ArgumentParser(description="The share of each architecture that mixout mixes by default.")
    parser.add_argument("names", nargs="*", help="architectures; none for all")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "architectures.csv")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    built = architectures()
    known = {name for name in built.names() if built.left_out(name) is None}
    rows = {row["architecture"]: row for row in read(arguments.output) if row["architecture"] in known}
    for name in arguments.names or sorted(known):
        rows[name] = row(name, built)
        print(f"{name:36}{rows[name]['flops_mixed']:>7}  {rows[name]['said']:10}{rows[name]['why'][:120]}", flush=True)
    with arguments.output.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows[name] for name in sorted(rows))


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def row(name: str, built: Any) -> dict[str, str]:  # noqa: ANN401
    """What is mixed of one architecture, and what is said of it."""
    model, where, said = built.build(name), built.WHERE.get(name), ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", mixout.LowCoverageWarning)
        try:
            mixout.apply_(model, Mixout(0.5), where=where)
        except mixout.NothingMixedError:
            said = "error"
    if any(warning.category is mixout.LowCoverageWarning for warning in caught):
        said = "warning"
    coverage = mixout.coverage(model)
    mixed = coverage.flops_mixed
    if mixed < ENOUGH <= mixed + left_out_on_purpose(model, coverage) and not said:
        said = "heads"
    kinds = {f"{layer.type}: {layer.reason}" for layer in coverage.layers if layer.kind == "bypassed"}
    found = {
        "architecture": name,
        "model": type(model).__name__,
        "parameters": sum(layer.parameters for layer in coverage.layers),
        "mixed": len(coverage.mixed),
        "bypassed": len(coverage.bypassed),
        "parameters_mixed": f"{coverage.parameters_mixed:.3f}",
        "flops_mixed": f"{coverage.flops_mixed:.3f}",
        "said": said,
        "where": where or "",
        "why": "; ".join(sorted(kinds)),
    }
    return {key: str(value) for key, value in found.items()}


def left_out_on_purpose(model: nn.Module, coverage: mixout.Coverage) -> float:
    """The share of the FLOPs that output layers and new heads have."""
    inside = body(model)
    heads = [layer.flops for layer in coverage.layers if not inside(layer.name, model.get_submodule(layer.name))]
    return sum(heads) / sum(layer.flops for layer in coverage.layers)


def architectures() -> Any:  # noqa: ANN401
    """``tests/architectures.py``, which is no package's."""
    spec = importlib.util.spec_from_file_location("architectures", HERE.parent / "tests" / "architectures.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


if __name__ == "__main__":
    main()
