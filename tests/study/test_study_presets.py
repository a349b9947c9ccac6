"""Every study that comes with mixout, expanded on stand-in data: its runs against the paper's own numbers."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields, replace

import pytest

from mixout.finetune.settings import Settings
from mixout.study.declaration import read, shipped
from mixout.study.identity import Inputs, Planned

# Lee, Cho and Kang 2020: 20 restarts of each cell. Tasks x methods of each table or figure.
RESTARTS = 20
CELLS = {"rte": 1 * 6, "table1": 4 * 11, "table2": 1 * 2, "table3": 4 * 3, "figure4": 1 * 19, "figure6": 4 * 6}
FORMS = ("", "-adamw", "-longer")
ELSEWHERE = {"controls": 8 * 20, "baselines": 9 * 20, "glue-small": 4 * 3 * 3, "demo": 4 * 3, "demo-tie": 3 * 4}
ELSEWHERE["rate-first"] = 4 * 5 * 10  # of which a search and its best rates run

PAPER = {
    "optimizer": "bertadam", "learning_rate": 2e-5, "warmup": 0.1, "epochs": 3.0, "batch_size": 32, "max_length": 128,
    "batching": "random", "where": "paper", "precision": "fp32", "max_grad_norm": 1.0, "accumulation": 1,
    "layer_decay": 1.0, "reinit_layers": 0, "train_size": None,
}  # fmt: skip
# Technique 1 and 2 of Table 1: dropout, wdecay(0, .), mixout(w_pre, .), wdecay(w_pre, .).
TABLE1 = [
    ("dropout(0.1)", 0.01),
    ("dropout(0.0)+anchor_decay(0.01)", 0.0),
    ("dropout(0.0)+anchor_decay(0.04)", 0.0),
    ("dropout(0.0)+anchor_decay(0.07)", 0.0),
    ("dropout(0.0)+anchor_decay(0.1)", 0.0),
    ("mixout(0.7, gradient=paper)", 0.0),
    ("mixout(0.8, gradient=paper)", 0.0),
    ("mixout(0.9, gradient=paper)", 0.0),
    ("mixout(0.7, gradient=paper)+anchor_decay(0.01)", 0.0),
    ("mixout(0.8, gradient=paper)+anchor_decay(0.01)", 0.0),
    ("mixout(0.9, gradient=paper)+anchor_decay(0.01)", 0.0),
]


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The five tasks in GLUE's layout, a few made-up rows each."""
    place = tmp_path_factory.mktemp("glue")
    pair = {name: f"{name}-{{0}}" for name in ("sentence1", "sentence2")}
    layouts = {
        "RTE": {**pair, "label": ("entailment", "not_entailment")},
        "MRPC": {"Quality": ("0", "1"), "#1 String": "one {0}", "#2 String": "two {0}"},
        "STS-B": {**pair, "score": ("0.5", "4.5")},
        "SST-2": {"sentence": "words {0}", "label": ("0", "1")},
    }
    for task, columns in layouts.items():
        rows = [list(columns)]
        rows += [[c.format(k) if isinstance(c, str) else c[k % 2] for c in columns.values()] for k in range(200)]
        write(place / task, rows)
    write(place / "CoLA", [["source", str(k % 2), "", f"words {k}"] for k in range(200)])
    return str(place)


def write(folder, rows) -> None:
    folder.mkdir()
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def shape(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with as many blocks and positions as BERT-large; planning reads no weights."""
    place = shutil.copytree(tiny_bert, tmp_path_factory.mktemp("shape") / "bert")
    large = {"config.json": {"num_hidden_layers": 24, "max_position_embeddings": 512},
             "tokenizer_config.json": {"model_max_length": 512}}  # fmt: skip
    for name, values in large.items():
        (place / name).write_text(json.dumps(json.loads((place / name).read_text()) | values))
    return str(place)


@pytest.fixture(scope="module")
def expand(glue: str, shape: str):
    """The runs of a study, with a stand-in for its model."""
    inputs, known = Inputs(), {}

    def build(name: str) -> list[Planned]:
        if name not in known:
            stand_in = {"model": shape, "data_dir": glue}
            known[name] = read(name).with_settings(stand_in).runs(inputs)
        return known[name]

    return build


def test_what_is_shipped():
    assert set(shipped()) == {name + form for name in CELLS for form in FORMS} | set(ELSEWHERE)
    for name in shipped():
        assert read(name).name == name
        assert read(name).settings["save"] == "no"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name + form, marks=pytest.mark.sweep if form else []) for name in CELLS for form in FORMS],
)
def test_the_papers_studies(expand, name):
    runs = expand(name)
    preset, _, form = name.partition("-")
    assert len(runs) == CELLS[preset] * RESTARTS
    assert {run.restart for run in runs} == set(range(RESTARTS))
    changed = {"": {}, "adamw": {"optimizer": "adamw"}, "longer": {"optimizer": "adamw", "epochs": 20.0}}[form]
    for run in runs:
        assert {key: getattr(run.settings, key) for key in PAPER} == PAPER | changed
    assert read(name).settings["model"] == "bert-large-uncased"
    assert read(name).baseline in {run.method for run in runs}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("form", FORMS[1:])
def test_a_form_differs_in_nothing_else(expand, name, form):
    same = {"optimizer": "bertadam", "epochs": 3.0}
    first, other = expand(name), expand(name + form)
    assert [run.settings for run in first] == [replace(run.settings, **same) for run in other]
    assert [(run.task, run.method) for run in first] == [(run.task, run.method) for run in other]
    assert not {run.id for run in first} & {run.id for run in other}


def chosen(runs: list[Planned], task: str) -> list[tuple[str, float]]:
    return [(run.settings.method, run.settings.weight_decay) for run in runs if run.restart == 0 and run.task == task]


def test_the_rows_of_the_tables(expand):
    for task in ("RTE", "MRPC", "CoLA", "STS-B"):
        assert chosen(expand("table1"), task) == TABLE1
        heads = [run.settings.head for run in expand("table3") if run.restart == 0 and run.task == task]
        assert heads == ["plain", "mixout", "dropout"]
        assert set(chosen(expand("table3"), task)) == {("mixout(0.7, gradient=paper)", 0.0)}
        assert chosen(expand("figure6"), task) == [(f"dropout(0.{p})", 0.0) for p in range(6)]
    assert chosen(expand("table2"), "SST-2") == [TABLE1[0], TABLE1[8]]
    mixed = [(f"mixout(0.{p}, gradient=paper)", 0.0) for p in range(1, 10)]
    assert chosen(expand("figure4"), "RTE") == [(f"dropout(0.{p})", 0.0) for p in range(10)] + mixed
    assert set(chosen(expand("rte"), "RTE")) == {("dropout(0.0)", 0.0), *(TABLE1[at] for at in (0, 5, 6, 7, 8))}


def test_equal_rows_are_one_run(expand):
    # Whoever has run table1 has most of the others' runs already.
    table1 = {run.id for run in expand("table1")}
    assert {run.id for run in expand("rte")} - table1 == {
        run.id for run in expand("rte") if run.method == "dropout(0.0)"
    }
    assert len(table1 & {run.id for run in expand("table3")}) == 4 * RESTARTS


def by_label(runs: list[Planned]) -> dict[str, Settings]:
    return {run.method: run.settings for run in runs if run.restart == 0}


def test_the_controls_change_one_thing_each(expand):
    runs = expand("controls")
    assert len(runs) == ELSEWHERE["controls"]
    found = by_label(runs)
    shorter = found["dropout(0.0), lr x sqrt(0.1)"]
    assert shorter.learning_rate == pytest.approx(2e-5 * math.sqrt(1 - 0.9), rel=1e-15)
    assert differing(shorter, found["dropout(0.0)"]) == {"learning_rate"}
    for method in ("gradient_mask(0.9)", "mixout(0.9, gradient=dense)", "dropout(0.0)"):
        assert differing(found[method], found["mixout(0.9)"]) == {"method"}
    for method in ("dropout(0.0)", "mixout(0.9)", "gradient_mask(0.9)"):
        assert differing(found[f"{method}, SGD"], found[method]) == {"optimizer", "learning_rate"}


def test_the_baselines(expand):
    runs = expand("baselines")
    assert len(runs) == ELSEWHERE["baselines"]
    found = by_label(runs)
    corrected = found["bias correction"]
    assert (corrected.optimizer, corrected.method, corrected.weight_decay) == ("adamw", "dropout(0.1)", 0.01)
    alone = {
        "dropout(0.1), as in the paper": {"optimizer"},
        "longer training": {"epochs"},
        "layer-wise rates": {"layer_decay"},
        "new top layers": {"reinit_layers"},
        "anchor_decay(0.01)": {"method", "weight_decay"},
    }
    for label, names in alone.items():
        assert differing(found[label], corrected) == names
    assert differing(found["mixout(0.9), as in the paper"], found["mixout(0.9), bias correction"]) == {"optimizer"}
    assert differing(found["mixout(0.9), longer training"], found["mixout(0.9), bias correction"]) == {"epochs"}


def test_the_small_form(expand):
    runs = expand("glue-small")
    assert len(runs) == ELSEWHERE["glue-small"]
    assert read("glue-small").settings["model"] == "minilm"
    assert [run.task for run in runs[::9]] == ["RTE", "MRPC", "CoLA", "STS-B"]
    assert [run.metric for run in runs[::9]] == ["accuracy", "f1", "matthews", "spearman"]
    assert {(run.settings.train_size, run.settings.batching) for run in runs} == {(200, "bucketed")}


def differing(one: Settings, other: Settings) -> set[str]:
    return {item.name for item in fields(Settings) if getattr(one, item.name) != getattr(other, item.name)}
