"""``mixout verify``: the paper's theory, claim by claim: what is expected, what is found, whether it holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixout.verify.suite import Findings


def add(commands: Any) -> None:  # noqa: ANN401  argparse hides the class
    """Add the command to the parser's ``commands``."""
    parser = commands.add_parser(
        "verify",
        help="put the paper's theory to the test: a table of claims, with figures",
        description=(
            "Check Theorem 1, Corollary 1.1 and Supplement B by enumerating every mask, figure 5 against its closed "
            "form, the pull along a training run against the curvature, and section 4 with the controls that separate "
            "a pull from a smaller step. Exit status 1 if a claim does not hold. Offline: without an MNIST file the "
            "images are scikit-learn's digits. See docs/theory.md."
        ),
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--short", action="store_true", help="small networks and few restarts: seconds")
    size.add_argument("--full", action="store_true", help="the paper's restarts, images and epochs: hours")
    parser.add_argument(
        "--mnist", metavar="FILE", help="a .npz file with x_train, y_train, x_test and y_test, (n, 28, 28), uint8"
    )
    parser.add_argument(
        "--emnist", metavar="FILE", help="the same for EMNIST Digits, the source; without it: MNIST's half, transposed"
    )
    parser.add_argument(
        "--p", nargs="+", type=float, default=[], metavar="P", help="only these probabilities in section 4, beside 0"
    )
    parser.add_argument("--output-dir", default="out/verify", metavar="DIR", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Check, write tables and figures, print the claims."""
    from mixout.cli.lines import Lines
    from mixout.verify import figures  # first of all: without matplotlib the end would be missing
    from mixout.verify.claim import table
    from mixout.verify.digits import domains
    from mixout.verify.plans import plan
    from mixout.verify.suite import verify
    from mixout.verify.transfer import table as transfer_table

    mnist, emnist = (None if given is None else Path(given) for given in (args.mnist, args.emnist))
    data = domains(mnist, emnist)
    size = plan("short" if args.short else "full" if args.full else "minutes", mnist=mnist is not None, ps=args.p)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with Lines() as lines:
        found = verify(data, size, lines)
    _write(found, folder)
    figures.draw(found, folder)
    failed = sum(not claim.holds for claim in found.claims)
    print(table(found.claims))
    print(f"\nSection 4, {found.data}\n{transfer_table(found.cells)}")
    verdict = "all hold" if not failed else f"{failed} do not hold"
    print(f"\n{len(found.claims)} claims, {verdict}; tables and figures in {folder}")
    return 1 if failed else 0


def _write(found: Findings, folder: Path) -> None:
    from mixout.bench.table import environment
    from mixout.finetune.record import write_atomically
    from mixout.verify.claim import claims_csv, rows_csv

    constants = {"data": found.data, **environment()}
    for name, text in (
        ("claims", claims_csv(found.claims, constants)),
        ("least_squares", rows_csv(found.fits, constants)),
        ("pull", rows_csv(found.points, constants)),
        ("section4", rows_csv(found.cells, constants)),
    ):
        write_atomically(folder / f"verify_{name}.csv", text)
