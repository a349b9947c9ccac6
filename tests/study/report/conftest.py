"""Runs such as a study leaves, with failures, curves and predictions; their report; and the parts of a page."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mixout.study.analysis.runs import Run
from mixout.study.report import write_report

SCORES = Path(__file__).parents[4] / "shared" / "data" / "paper_scores.csv"
HOSTILE = "mixout(0.9)<script>alert('x')</script>&\"|$\\" + "m" * 50


@pytest.fixture(scope="session")
def study() -> Callable[..., list[Run]]:
    """Runs in which everything is known that a report can show; ``plain`` of them: scores alone."""

    def build(*, plain: bool = False, methods=("dropout(0.1)", "mixout(0.5)", "mixout(0.9)", HOSTILE)) -> list[Run]:
        draw = random.Random(0)
        runs = []
        for task, chance in (("RTE", 0.5), ("a task", 0.4)):
            for number, method in enumerate(methods):
                for restart in range(6):
                    score = 0.4 if draw.random() < 0.2 else 0.6 + 0.02 * number + draw.gauss(0, 0.02)
                    seen = {} if plain else _seen(score, draw)
                    runs.append(
                        Run(task=task, method=method, restart=restart, score=score, metric="F1", chance=chance, **seen)
                    )
        if not plain:
            error = "Traceback:\nRuntimeError: <script>alert('out of memory')</script>"
            runs.append(
                Run(task="RTE", method=methods[1], restart=6, score=math.nan, chance=0.5, status="failed", error=error)
            )
        return runs

    return build


def _seen(score: float, draw: random.Random) -> dict:
    return {
        "seconds": 10 + draw.random(),
        "peak_memory": 1_200_000_000,
        "distance": 3.0,
        "evaluations": tuple((10 * (step + 1), score - 0.1 / (step + 1)) for step in range(4)),
        "losses": tuple((10 * (step + 1), 1.0 / (step + 1)) for step in range(4)),
        "predictions": tuple(float(draw.randrange(2)) for _ in range(20)),
        "id": "abc",
    }


@pytest.fixture(scope="session")
def report(study, tmp_path_factory) -> Path:
    """Page of a report on ``study()``, for those who only read it."""
    return write_report(
        study(),
        tmp_path_factory.mktemp("report") / "new" / "report",
        title="<b>Title</b>",
        commands=["mixout study run a.toml", "echo '</pre><script>alert(1)</script>'", f"cd {'long/' * 60}"],
        environment={"torch": "2", "cpu": "<i>fast</i>"},
        settings={"epochs": 3, "names": ["a", "b"], "nothing": None},
    )


@pytest.fixture(scope="session")
def paper() -> list[Run]:
    """The scores of the paper's figures 3 and 6: ten methods on four tasks."""
    if not SCORES.is_file():
        pytest.skip("the paper's scores are not beside this checkout")
    chance = {"RTE": 52.71, "MRPC": 81.23, "CoLA": 0.0, "STS-B": 0.0}
    with SCORES.open(newline="") as handle:
        return [
            Run(
                task=row["task"],
                method=row["method"],
                restart=int(row["rank"]),
                score=float(row["score"]),
                chance=chance[row["task"]],
                paired=False,
            )
            for row in csv.DictReader(handle)
            if row["figure"] in ("3", "6")
        ]


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, *tags: str) -> list[Element]:
        """Descendants of these kinds, in order."""
        found = []
        for child in self.children:
            found += [child] if child.tag in tags or not tags else []
            found += child.all(*tags)
        return found

    def words(self) -> str:
        return " ".join(self._all_text().split())

    def _all_text(self) -> str:
        return self.text + "".join(child._all_text() for child in self.children)


class _Parser(HTMLParser):
    VOID = ("meta", "link", "wbr", "br", "img")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attributes):
        element = Element(tag, dict(attributes))
        self.open[-1].children.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.open[-1].children.append(Element(tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag  # every element is closed, in order

    def handle_data(self, data):
        # Text between children keeps its place.
        self.open[-1].children.append(Element("#text", {}, text=data))


@pytest.fixture(scope="session")
def parse() -> Callable[[str], Element]:
    def parse_text(text: str) -> Element:
        parser = _Parser()
        parser.feed(text)
        parser.close()
        assert parser.open == [parser.root]
        return parser.root

    return parse_text
