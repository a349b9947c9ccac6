"""The paper's theory, claim by claim: what is expected, what is found, whether it holds. See docs/theory.md.

    python benchmarks/verify.py                     # offline, scikit-learn's digits
    python benchmarks/verify.py --short             # small networks and few samples: seconds
    python benchmarks/verify.py --mnist mnist.npz   # the pull on MNIST, in a network of the paper's widths

Theorem 1, Corollary 1.1 and Supplement B by enumerating every mask, figure 5 against its closed form, and the pull
along a training run against the curvature. Exit status 1 if a claim does not hold. Tables are written as they are made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from mixout.errors import InputError
from table import Table
from theory import adaptivity, exact, figures, least_squares
from theory.claims import Claim


def main(argv: Sequence[str] | None = None) -> int:
    """Check every claim, write tables and figures, print the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="small networks and few samples")
    parser.add_argument("--mnist", type=Path, metavar="FILE", help=".npz with x_train (n, 28, 28), uint8, and y_train")
    parser.add_argument("--output", type=Path, default=Path("out/verify"), metavar="DIR", help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        images = adaptivity.digits(args.mnist)
        claims, lines, pull = (
            Table(args.output / f"verify_{name}.csv") for name in ("claims", "least_squares", "pull")
        )
    except InputError as error:
        parser.error(str(error))

    def claim(found: Sequence[Claim]) -> None:
        for one in found:
            claims.add(asdict(one) | {"holds": one.holds})

    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    report("every mask enumerated")
    claim(list(exact.claims()))
    report("least squares with a random target")
    fits = list(least_squares.fits(steps=800 if args.short else 3000, chains=48 if args.short else 128))
    for fit in fits:
        lines.add(asdict(fit))
    claim(list(least_squares.claims(fits)))
    report("pretraining")
    points = adaptivity.points(
        images,
        hidden=(24, 16) if args.short else (300, 100) if args.mnist else (100, 50),
        rate=5e-4,
        epochs=3 if args.mnist else 20,
        checkpoints=(60, 150) if args.short else (10, 30, 60, 120, 240, 360),
        number=80 if args.short else 200,
        report=report,
    )
    for point in points:
        pull.add(asdict(point))
    claim(list(adaptivity.claims(points)))
    figures.draw(fits, points, args.output)
    failed = sum(not row["holds"] for row in claims.rows)
    print(claims.text(["topic", "statement", "p", "relation", "expected", "found", "holds"]))
    verdict = f"{failed} do not hold" if failed else "all hold"
    print(f"\n{len(claims.rows)} claims, {verdict}; tables and figures in {args.output}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
