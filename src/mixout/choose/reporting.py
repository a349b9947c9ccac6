"""A choice in words, ``report.md``; every run, ``choose.csv``; and a figure of score over learning rate."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from mixout.choose.search import PLAIN, USEFUL, Search
from mixout.choose.verdict import FEW, Choice, Row
from mixout.finetune.defaults import in_short
from mixout.finetune.extras import needs
from mixout.finetune.record import write_atomically
from mixout.study.progress import in_words
from mixout.study.report.theme import looks, style

with needs("demo", "figures"):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

_HEAD = ("method", "learning rate", "runs", "time", "mean", "points from the chosen one", "")


def result(choice: Choice) -> str:
    """The sentence, and the scores that are worth something: for report and model card."""
    parts = [choice.sentence]
    if choice.expected is not None:
        parts.append(
            f"The expected score is from {choice.judged_rows} training rows in parts. Each part was answered by the "
            f"candidate that is chosen without it, trained on the other rows. The default has "
            f"{choice.metric} {choice.default:.3f} on the same rows. The model itself is trained on all rows."
        )
    if choice.dev:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in choice.dev.items())
        parts.append(f"On the dev rows, which were not used before: {scores}.")
    return "\n\n".join(parts)


def text(choice: Choice) -> str:
    """The report, Markdown."""
    few = sum(row.verdict == FEW for row in choice.table)
    alike = ", ".join(choice.alike) or "nothing that was compared in three runs or more"
    return "\n\n".join(
        [
            "# What was chosen",
            result(choice),
            f"Cannot be told apart from it: {alike}.",
            "# What was tried",
            f"{choice.runs} runs, {in_words(choice.seconds)}; about {USEFUL} try everything. {few} of "
            f"{len(choice.table)} candidates have too few runs in common with the chosen one: dropped early, or the "
            "time was over.",
            _table(choice),
            "The means of the best are too good: the best of several has been lucky too. A difference is of the runs "
            "that both have, with its 95 % interval. Every run is in `choose.csv`, in `choose.png` the means over the "
            "learning rate.",
        ]
    )


def write(choice: Choice, search: Search, place: Path) -> None:
    """Write the report, the table of runs, and the figure."""
    write_atomically(place / "report.md", text(choice) + "\n")
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["method", "learning_rate", "part", "repeat", choice.metric, "seconds"])
    for one, splits in search.runs.items():
        for (part, repeat), trained in splits.items():
            rows.writerow([one.method, one.rate, part, repeat, trained.score, round(trained.seconds, 2)])
    write_atomically(place / "choose.csv", table.getvalue())
    _figure(choice, place / "choose.png")


def _table(choice: Choice) -> str:
    lines = [_HEAD, ("---",) * len(_HEAD), *map(_cells, choice.table)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: Row) -> tuple[str, ...]:
    difference = "" if row.difference is None else f"{100 * row.difference.value:+.1f}"
    if row.difference is not None:
        difference += f" ({100 * row.difference.low:+.1f} to {100 * row.difference.high:+.1f})"
    one = row.candidate
    numbers = (in_short(one.rate), str(row.runs), in_words(row.seconds), f"{row.mean:.3f}")
    return (f"`{one.method}`", *numbers, difference, row.verdict)


def _figure(choice: Choice, path: Path) -> None:
    """A line a method: mean score over learning rate; a point is as large as it has runs."""
    with style():
        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for method, own in looks([row.candidate.method for row in choice.table], PLAIN).items():
            rows = sorted(
                (row for row in choice.table if row.candidate.method == method), key=lambda row: row.candidate.rate
            )
            rates, means = [row.candidate.rate for row in rows], [row.mean for row in rows]
            axes.plot(rates, means, color=own.color, linestyle=own.line, marker=own.mark, label=method)
            axes.scatter(rates, means, [20.0 * row.runs for row in rows], color=own.color, marker=own.mark)
        axes.set(xscale="log", xlabel="learning rate", ylabel=f"mean {choice.metric} (larger points: more runs)")
        ticks = sorted({row.candidate.rate for row in choice.table if row.candidate.method == PLAIN})
        axes.set_xticks(ticks, [in_short(rate) for rate in ticks])
        axes.minorticks_off()
        axes.legend()
        figure.savefig(path, dpi=150, metadata={"Software": None})
