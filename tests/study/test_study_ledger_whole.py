"""All of a ledger, whatever studies it holds: which runs make a cell, and what is compared."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from mixout.finetune import defaults
from mixout.finetune.settings import Settings
from mixout.study.analysis.compare import compare
from mixout.study.analysis.runs import by_cell
from mixout.study.entry import told_apart
from mixout.study.grid import Axis
from mixout.study.ledger import Ledger
from mixout.study.reporting import report_on


def test_two_studies_of_one_ledger_are_told_apart(declare, tmp_path, finish):
    for rate in (0.01, 0.02):
        for one in declare(restarts=2, settings={"learning_rate": rate}).runs():
            finish(Ledger(tmp_path), one)
    found = Ledger(tmp_path).runs()
    assert {run.factors["learning_rate"] for run in found} == {"0.01", "0.02"}
    assert [len(cell) for cell in by_cell(found).values()] == [2] * 4


CHANGES = {
    "method": lambda declare: declare(methods=[labelled("mixout(0.7)"), labelled("dropout(0.0)", "b")]),
    "init_seed": lambda declare: declare(settings={"train_size": 16, "init_seed": 7}),
    "own subsets": lambda declare: declare(settings={"train_size": 16}, own_subsets=True),
}


def labelled(method: str, label: str = "ours") -> Axis:
    return Axis(label=label, settings={"method": method})


@pytest.mark.parametrize("change", CHANGES)
def test_a_whole_ledger_is_reported_whatever_its_studies_differ_in(change, declare, tmp_path, finish):
    methods = [labelled("mixout(0.5)"), labelled("dropout(0.0)", "b")] if change == "method" else None
    first = declare(settings={"train_size": 16}, **({"methods": methods} if methods else {}))
    ledger, planned = Ledger(tmp_path / "ledger"), {one.id: one for one in first.runs()}
    planned |= {one.id: one for one in CHANGES[change](declare).runs()}
    for one in planned.values():
        # The training rows follow from the subset.
        finish(ledger, one, fingerprints={"train": f"{one.settings.resolved().subset_seed}" * 8, "dev": "d" * 8})
    contents = ledger.read()
    assert {len(cell) for cell in by_cell(contents.runs()).values()} <= {1, 2}
    assert len(by_cell(contents.runs())) <= 4
    report_on(None, contents, tmp_path / "report", title="t", commands=[])


def test_other_data_are_another_cell(declare, tmp_path, finish):
    first, second = declare().runs(), declare(settings={"learning_rate": 0.02}).runs()
    for part in ("train", "dev"):
        ledger = Ledger(tmp_path / part)
        for data, several in (("a" * 8, first), ("b" * 8, second)):
            for one in several:
                size = {"predictions": (0, 1) if data[0] == "a" else (0, 1, 1)} if part == "dev" else {}
                same = replace(one, settings=replace(one.settings, learning_rate=0.01))
                finish(ledger, same, fingerprints={part: data}, **size)
        contents = ledger.read()
        assert {run.factors[f"{part}_data"] for run in contents.runs()} == {"a" * 8, "b" * 8}
        report_on(None, contents, tmp_path / f"report-{part}", title="t", commands=[])


def test_runs_under_several_scores_are_shown_under_one(runs, tmp_path, finish):
    ledger = Ledger(tmp_path / "ledger")
    for one in runs[:3]:
        finish(ledger, one)
    finish(ledger, runs[3], metric="f1", chance=0.0)
    found = ledger.runs()
    assert {(run.metric, run.score, run.chance) for run in found} == {("accuracy", 0.75, 0.5)}
    report_on(None, ledger.read(), tmp_path / "report", title="t", commands=[])


def with_size(size: int, **more):
    return lambda declare: declare(restarts=3, settings={"train_size": size, **more})


def own_subsets(size: int):
    return lambda declare: declare(restarts=3, settings={"train_size": size}, own_subsets=True)


def ours(method: str):
    return lambda declare: declare(restarts=3, methods=[labelled("dropout(0.0)", "plain"), labelled(method)])


STUDIES = {
    "sizes": (with_size(16), with_size(20)),
    "epochs": (with_size(16), with_size(16, epochs=2)),
    "a fixed subset": (with_size(16, subset_seed=1), with_size(20, subset_seed=1)),
    "fixed subsets": (with_size(16, subset_seed=1), with_size(16, subset_seed=2)),
    "every fixed subset": tuple(with_size(16, subset_seed=seed) for seed in range(3)),
    "own subsets": (own_subsets(16), own_subsets(20)),
    "own and fixed": (own_subsets(16), with_size(16, subset_seed=1)),
    "own and fixed of other sizes": (own_subsets(16), with_size(20, subset_seed=1)),
    "a label": (ours("mixout(0.5)"), ours("mixout(0.9)")),
}


@pytest.mark.parametrize("lost", ["none", "one", "a cell", "elsewhere"])
@pytest.mark.parametrize("name", STUDIES)
def test_the_cells_of_a_ledger_are_those_of_its_studies(name, lost, declare, tmp_path, finish):
    studies = [study(declare).runs() for study in STUDIES[name]]
    cells = {}  # id -> the cells of which the run is one
    for number, runs in enumerate(studies):
        for one in runs:
            # Runs that are the same in both studies are there once, and so are cells of such runs.
            cells.setdefault(one.id, set()).add((one.method, number))
    expected = {frozenset(id for id in cells if cell in cells[id]) for cell in set().union(*cells.values())}
    failing = [one for one in studies[-1] if one.method != studies[-1][0].method]
    failing = {one.id for one in failing[: {"none": 0, "one": 1}.get(lost, 3)]}
    ledger = Ledger(tmp_path)
    for one in {one.id: one for runs in studies for one in runs}.values():
        settings = one.settings.resolved()
        rows = f"{settings.train_size} {settings.subset_seed:06}".rjust(8, "0")[-8:]
        if one.id in failing:
            # Elsewhere the same data and weights lie in other places.
            other = {"model": "m", "task": "t", "metric": "f1"} if lost == "elsewhere" else {}
            ledger.fail(replace(one, settings=replace(one.settings, **other)), 1, "E: no")
        else:
            finish(ledger, one, 0.6 + 0.01 * one.restart, fingerprints={"train": rows, "dev": "d" * 8, "weights": "w"})
    found = [{run.id for run in cell} for cell in by_cell(ledger.runs()).values()]
    assert len(found) == len(expected)
    assert all(any(cell <= truth for truth in expected) for cell in found)
    # Each is compared with the first method, over all restarts that have a counterpart.
    compared = compare(ledger.runs(), studies[0][0].method)
    first = {one.method for one in studies[0]} - {studies[0][0].method}
    assert len(compared) == (2 if name == "a label" else len(studies)) * len(first)


def test_runs_that_nothing_tells_apart_but_their_identity_can_be_reported(runs, tmp_path, finish):
    """The data were repaired after the first attempts; a record does not know what a failed run was given."""
    ledger, again = Ledger(tmp_path / "ledger"), [replace(one, id="f" * 63 + f"{at}") for at, one in enumerate(runs)]
    for failed in (runs, again[:2]):
        for one in failed:
            ledger.fail(one, 1, "E: no")
    for one in again[2:]:
        finish(ledger, one)
    cells = by_cell(ledger.runs()).values()
    assert sorted(run.id for cell in cells for run in cell) == sorted(one.id for one in [*runs, *again])
    ended = [cell for cell in cells if "finished" in {run.status for run in cell}]
    assert [[run.restart for run in cell] for cell in ended] == [[0, 1]] * 2  # a failed run with the one that ended


def test_own_subsets_of_two_versions_of_the_data_are_two_studies(declare, tmp_path, finish, tiny_task):
    ledger, truth = Ledger(tmp_path / "ledger"), {}
    for version in range(2):
        place = tmp_path / f"version-{version}" / "words"
        shutil.copytree(tiny_task, place)
        rows = (place / "train.csv").read_text().splitlines()
        (place / "train.csv").write_text("\n".join([rows[0], *rows[1 + version :], *rows[1 : 1 + version]]))
        tasks = [Axis(label="words", settings={"task": str(place)})]
        for one in declare(restarts=3, settings={"train_size": 16}, own_subsets=True, tasks=tasks).runs():
            data = {"train": f"{version}{one.restart}" * 4, "dev": "d" * 8, "weights": "w"}
            finish(ledger, one, fingerprints=data)
            truth.setdefault((version, one.method), set()).add(one.id)
    found = [{run.id for run in cell} for cell in by_cell(ledger.runs()).values()]
    assert sorted(map(sorted, found)) == sorted(map(sorted, truth.values()))


def test_runs_made_before_a_setting_existed_are_of_the_cell_of_later_ones(declare, tmp_path, finish):
    ledger, truth = Ledger(tmp_path), {}
    for number, study in enumerate((declare(restarts=4), declare(restarts=2, settings={"learning_rate": 0.02}))):
        for one in study.runs():
            finish(ledger, one)
            truth.setdefault((number, one.method), set()).add(one.id)
            if number == 0 and one.restart < 2:
                [place] = (tmp_path / "runs").glob(f"{one.id}*/run.json")
                values = json.loads(place.read_text())
                del values["settings"]["keep_best"], values["settings"]["interpolate"]
                place.write_text(json.dumps(values))
    found = [{run.id for run in cell} for cell in by_cell(ledger.runs()).values()]
    assert sorted(map(sorted, found)) == sorted(map(sorted, truth.values()))


def test_own_subsets_of_two_folders_of_one_name_are_two_studies():
    def entry(version, restart):
        data = {"train": f"{version}{restart}" * 4, "dev": "d", "weights": "w"}
        settings = Settings(task="RTE", data_dir=f"glue-{version}", train_size=9, subset_seed=restart, method="plain")
        run = SimpleNamespace(id=f"{version}{restart}", task="RTE", restart=restart)
        return SimpleNamespace(run=run, settings=asdict(settings), record=SimpleNamespace(fingerprints=data))

    told = told_apart([entry(version, restart) for version in "ab" for restart in range(3)])
    assert {told[id]["train_data"] for id in told} == {"own, RTE in glue-a", "own, RTE in glue-b"}


def test_what_is_chosen_by_the_rows_is_one_method(declare, tmp_path, finish, monkeypatch):
    monkeypatch.setattr(defaults, "MANY", 20)
    methods = [labelled("auto", "auto"), labelled("plain", "plain")]
    for one in declare(methods=methods, factors={"train_size": [16, 24]}).runs():
        finish(Ledger(tmp_path), one)
    found = Ledger(tmp_path).runs()
    assert {run.method for run in found} == {"auto", "plain"}
    assert {len(cell) for cell in by_cell(found).values()} == {2}


def test_one_rule_in_one_place_with_other_rows_is_told_apart_by_them(declare, tmp_path, finish, monkeypatch):
    """Of ``auto`` the method is no factor, also where it has a setting of its own; nor of runs that failed."""
    monkeypatch.setattr(defaults, "MANY", 20)
    with_rate = Axis(label="auto, learning_rate 0.02", settings={"method": "auto", "learning_rate": 0.02})
    for size in (16, 24):  # two studies: the size is no factor of either
        methods = [labelled("auto", "auto"), with_rate, labelled("plain", "plain")]
        for one in declare(methods=methods, settings={"train_size": size}).runs():
            finish(Ledger(tmp_path), one, fingerprints={"train": f"{size}" * 4, "dev": "d", "weights": "w"})
    contents = Ledger(tmp_path).read()
    found = contents.runs()
    assert {run.method for run in found} == {"auto", "auto, learning_rate 0.02", "plain"}
    assert not any("method" in run.factors for run in found)
    assert [len(cell) for cell in by_cell(found).values()] == [2] * 6
    report_on(None, contents, tmp_path / "report", title="t", commands=[])


def test_a_method_that_ran_on_one_version_of_the_data_is_compared_there():
    """Also where its settings differ from the other's, as a rate that follows from the method."""

    def entry(method, rate, version, restart):
        data = {"train": f"{version}{restart}" * 4, "dev": "d", "weights": "w"}
        settings = Settings(
            task=f"{version}/t.csv", train_size=9, subset_seed=restart, method=method, learning_rate=rate
        )
        run = SimpleNamespace(id=f"{method}{version}{restart}", task="t.csv", restart=restart)
        return SimpleNamespace(run=run, settings=asdict(settings), record=SimpleNamespace(fingerprints=data))

    made = [("plain", 1e-4, "a"), ("plain", 1e-4, "b"), ("mixout(0.7)", 2e-4, "a")]
    told = told_apart([entry(*one, restart) for one in made for restart in range(3)])
    assert {traits["train_data"] for id, traits in told.items() if "mixout" in id} == {"own, a/t.csv"}
    assert {traits["train_data"] for id, traits in told.items() if "plain" in id} == {"own, a/t.csv", "own, b/t.csv"}


def test_own_subsets_of_data_that_were_changed_in_place_are_not_mixed(declare, tmp_path, finish):
    ledger, versions = Ledger(tmp_path), {}
    study = declare(restarts=3, settings={"train_size": 16}, own_subsets=True)
    for version in "ab":
        for one in study.runs():
            # The identity is made of the content too.
            changed = replace(one, id=f"{version}{one.id[1:]}")
            finish(ledger, changed, fingerprints={"train": f"{version}{one.restart}" * 4, "dev": "d", "weights": "w"})
            versions[changed.id] = version
    cells = by_cell(ledger.runs()).values()
    assert sum(map(len, cells)) == 12
    assert all(len({versions[run.id] for run in cell}) == 1 for cell in cells)
