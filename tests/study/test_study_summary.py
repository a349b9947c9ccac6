"""Numbers of restarts, against numbers worked out by hand and by the standard library's csv."""

import csv
import io
from dataclasses import replace

import pytest

from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.study.figures import strip_plot
from mixout.study.summary import summarise, table, to_csv


def record(method: str, seed: int, score: float) -> Record:
    return Record(
        status="finished",
        settings=Settings(method=method, seed=seed).resolved(),
        digest="d",
        metric="accuracy",
        score=score,
        scores={"accuracy": score},
        chance=0.5,
        evaluations=(),
        training=(),
        predictions=(),
        labels=("a", "b"),
        train_size=10,
        dev_size=20,
        steps=1,
        parameters=1,
        new_parameters=(),
        distance=2.0 + seed,
        distance_by_layer={},
        coverage={},
        gradient=None,
        seconds=10.0,
        evaluation_seconds=1.0,
        peak_memory={},
        source={},
        fingerprints={},
        versions={},
        hardware={},
        finished_at="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture
def records() -> list[Record]:
    return [
        record(method, seed, score)
        for seed, scores in enumerate([(0.5, 0.7), (0.4, 0.7), (0.9, 0.7)])
        for method, score in zip(("dropout(0.1)", "mixout(0.9)"), scores, strict=True)
    ]


def test_a_row_holds_mean_spread_and_failures(records: list[Record]) -> None:
    first, second = summarise(records)
    assert (first.method, second.method) == ("dropout(0.1)", "mixout(0.9)")
    assert first.restarts == 3
    assert first.mean == pytest.approx(0.6)
    assert first.sd == pytest.approx(((0.01 + 0.04 + 0.09) / 2) ** 0.5)  # sample standard deviation
    assert (first.min, first.max) == (0.4, 0.9)
    assert first.failed == 2  # at chance counts as failed
    assert first.distance == pytest.approx(3.0)
    assert (second.sd, second.failed) == (pytest.approx(0.0), 0)


def test_a_single_restart_has_no_spread(records: list[Record]) -> None:
    assert [row.sd for row in summarise(records[:2])] == [0.0, 0.0]


def test_the_table_shows_every_method_aligned(records: list[Record]) -> None:
    lines = table(summarise(records)).splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[:5] == ["dropout(0.1)", "3", "0.600", "0.265", "0.400"]


def test_csv_reads_back(records: list[Record]) -> None:
    rows = summarise(records)
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [row["method"] for row in read] == [row.method for row in rows]
    assert float(read[0]["mean"]) == rows[0].mean


def test_the_figure_shows_every_restart(records: list[Record], tmp_path, monkeypatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[float] = []
    scatter = Axes.scatter
    monkeypatch.setattr(Axes, "scatter", lambda self, x, y, **k: (drawn.extend(y), scatter(self, x, y, **k))[1])
    strip_plot(records, tmp_path / "figure.png")
    assert sorted(drawn) == sorted(r.score for r in records)
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_no_run_is_averaged_into_another_method(records: list[Record]) -> None:
    other = replace(records[0], settings=Settings(method="plain").resolved())
    assert len(summarise([*records, other])) == 3
