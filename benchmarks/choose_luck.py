"""How often does ``mixout choose`` take another method than the default: if all are equal, and if one is better?

    python benchmarks/choose_luck.py

Nothing is trained. A score is 0.7, plus the luck of a part (sd 0.03), plus that of a run (0.05 where all are equal,
 0.03 where one method is better at each of its rates). Writes ``benchmarks/results/choose_luck.csv``: for a
budget in runs and a gap the share of searches in which another than the default is chosen, and the better one.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

from mixout.choose.search import JUDGED, Candidate, Search, Trained

RESULTS = Path(__file__).parent / "results" / "choose_luck.csv"
METHODS = ("dropout(0.0)", "mixout(0.5)", "mixout(0.7)", "anchor", "interpolate(0.5)", "lora(8)")
BETTER, DEFAULT = "mixout(0.7)", Candidate("anchor", 1e-4)
BUDGETS, GAPS, SEARCHES = (12.0, 16.5, 18.5, 26.5, 36.5, 1e4), (0.0, 0.05, 0.1), 400


def search(seed: int, budget: float, gap: float) -> tuple[Candidate, int, int]:
    """What is chosen, with how many runs, and how many of them judge each finalist."""
    draw = random.Random(seed)
    luck = [draw.gauss(0.0, 0.03) for _ in range(5)]

    def train(candidate: Candidate, part: int, _repeat: int) -> Trained:
        better = gap if candidate.method == BETTER else 0.0
        score = 0.7 + luck[part] + draw.gauss(0.0, 0.03 if gap else 0.05) + better
        return Trained(score=score, predictions=(), seconds=1.0)

    found = Search(train, budget, DEFAULT, lambda _: None)
    finalists = found.through(METHODS, lambda _: DEFAULT.rate)
    chosen, repeats = found.left_out(finalists), found.repeats(JUDGED, finalists)
    gains = [
        found.runs[without][part, repeat].score - found.runs[DEFAULT][part, repeat].score
        for part, without in chosen.items()
        for repeat in repeats
    ]
    # As choose does, which estimates the gain over rows.
    ahead = DEFAULT if gains and sum(gains) < 0 else finalists[0]
    return ahead, found.made, sum(part in JUDGED for part, _ in found.common(finalists))


def main() -> None:
    """Simulate, print and write."""
    rows = [("runs", "gap", "judged", "other", "better")]
    for budget in BUDGETS:
        for gap in GAPS:
            found = [search(seed, budget, gap) for seed in range(SEARCHES)]
            other = sum(chosen != DEFAULT for chosen, *_ in found) / SEARCHES
            better = sum(chosen.method == BETTER for chosen, *_ in found) / SEARCHES
            judged = sum(number for *_, number in found) / SEARCHES
            rows.append((str(found[0][1]), f"{gap:g}", f"{judged:.1f}", f"{other:.4f}", f"{better:.4f}"))
            print(*rows[-1], flush=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
