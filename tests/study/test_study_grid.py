"""The grid of a study, against a list written by hand; everything wrong is refused before anything runs."""

from __future__ import annotations

import pytest

from mixout.errors import InputError
from mixout.study.grid import Axis, with_all_restarts
from mixout.study.ledger import Contents, Ledger

DECAY = "anchor_decay(radius=0.02)"  # what auto chooses for the tiny model


def test_restart_by_restart_all_methods_with_the_same_seeds(declare):
    runs = declare(factors={"train_size": [16, 32]}).runs()
    assert [(run.restart, run.factors["train_size"], run.method) for run in runs] == [
        (0, "16", "dropout(0.0)"),
        (0, "16", "mixout(0.5)"),
        (0, "32", "dropout(0.0)"),
        (0, "32", "mixout(0.5)"),
        (1, "16", "dropout(0.0)"),
        (1, "16", "mixout(0.5)"),
        (1, "32", "dropout(0.0)"),
        (1, "32", "mixout(0.5)"),
    ]
    for run in runs:
        settings = run.settings.resolved()
        assert {settings.init_seed, settings.data_seed, settings.mask_seed} == {run.restart}
        assert (settings.subset_seed, settings.train_size) == (0, int(run.factors["train_size"]))
        assert (run.metric, run.chance) == ("accuracy", 0.5)  # ten of each class
    assert len({run.id for run in runs}) == 8


def test_more_restarts_leave_the_first_as_they_are(declare):
    assert [run.id for run in declare(restarts=3).runs()[:4]] == [run.id for run in declare(restarts=2).runs()]


def test_each_restart_may_draw_its_own_subset_and_all_methods_share_it(declare):
    shared = declare(restarts=2, settings={"train_size": 16}).runs()
    own = declare(restarts=2, settings={"train_size": 16}, own_subsets=True).runs()
    assert [(run.restart, run.settings.subset_seed) for run in own] == [(0, 0), (0, 0), (1, 1), (1, 1)]
    # Subset 0 is the one that all share otherwise, so its runs are not run again; those of other subsets are others.
    assert [a.id == b.id for a, b in zip(shared, own, strict=True)] == [True, True, False, False]


def test_a_methods_settings_come_before_the_tasks_and_these_before_the_shared_ones(declare, tiny_task):
    study = declare(
        restarts=1,
        settings={"epochs": 1, "warmup": 0.5, "batch_size": 4},
        tasks=[Axis(label="t", settings={"task": tiny_task, "epochs": 2, "warmup": 0.25})],
        methods=[
            Axis(label="a", settings={"method": "plain", "epochs": 3}),
            Axis(label="b", settings={"method": "plain"}),
        ],
    )
    found = [(run.settings.epochs, run.settings.warmup, run.settings.batch_size) for run in study.runs()]
    assert found == [(3.0, 0.25, 4), (2.0, 0.25, 4)]


PLAIN = {"method": "plain"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"restarts": 0}, "restarts as a whole number >= 1, got 0"),
        ({"restarts": True}, "restarts"),
        ({"name": " "}, "name of the study"),
        ({"own_subsets": "yes"}, "own_subsets as true or false, got 'yes'"),
        ({"own_subsets": True}, "expected train_size with own_subsets, got none"),
        ({"own_subsets": True, "settings": {"train_size": 16, "subset_seed": 3}}, "no subset_seed with own_subsets"),
        ({"baseline": "dropout(0)"}, r"did you mean 'dropout\(0.0\)'"),
        ({"settings": {"learning_rat": 1}}, "did you mean 'learning_rate'"),
        ({"settings": {"seed": 1}}, "restart k has seed k"),
        ({"settings": {"method": "plain"}}, r"\[\[method\]\]"),
        ({"settings": {"epochs": -1}}, r"words, dropout\(0.0\): expected epochs > 0, got -1"),
        ({"settings": {"train_size": 43}}, "training subset of 2 to 42"),
        ({"settings": {"model": "./nowhere"}}, "no such folder"),
        # Held against the model's shape: positions, blocks, names of layers.
        ({"settings": {"max_length": 65}}, r"words, dropout\(0.0\): expected max_length <= 64, .* got 65"),
        ({"factors": {"reinit_layers": [0, 3]}}, "reinit_layers 3: expected reinit_layers <= 2"),
        ({"settings": {"where": "papr"}}, r"words, mixout\(0.5\): expected where .* got 'papr'; did you mean 'paper'"),
        ({"methods": []}, "at least one method"),
        ({"methods": [Axis(label="a", settings=PLAIN), Axis(label="a", settings=PLAIN)]}, "'a' twice"),
        ({"methods": [Axis(label="a", settings=PLAIN), Axis(label="b", settings=PLAIN)]}, "every cell once"),
        (
            {
                "methods": [
                    Axis(label=name, settings=PLAIN if name != "auto" else {"method": name})
                    for name in ("a", "b", "auto")
                ]
            },
            "as 'words, b, restart 0'; remove one",  # of which auto is none
        ),
        (
            {"methods": [Axis(label=name, settings={"method": name}) for name in ("auto", DECAY)]},
            r"as 'words, anchor_decay.*\('auto' chooses 'anchor_decay\(radius=0.02\)' for these rows\); remove one",
        ),
        ({"tasks": [Axis(label="t", settings={"task": "./nowhere.csv"})]}, "nowhere"),
        ({"tasks": [Axis(label="t", settings={"task": "rtee"})]}, "exists, or a task .*RTE.*did you mean 'rte'"),
        ({"factors": {"epoch": [1]}}, "did you mean 'epochs'"),
        ({"factors": {"epochs": []}}, "epochs as a list"),
        ({"factors": {"epochs": 3}}, "epochs as a list"),
        ({"factors": {"metric": ["f1"]}}, "expected a factor"),
        ({"factors": {"epochs": [1, 1.0]}}, "every cell once"),
        ({"factors": {"epochs": [1]}, "methods": [Axis(label="a", settings=PLAIN | {"epochs": 2})]}, "either as"),
        # Seeds that are all given make every restart the same run.
        ({"settings": {"init_seed": 0, "data_seed": 0, "mask_seed": 0}}, "every cell once"),
    ],
)
def test_what_cannot_be_is_refused(declare, changes, said):
    with pytest.raises(InputError, match=said):
        declare(**changes).runs()


def test_a_loss_that_the_labels_do_not_have_is_refused_before_any_run(declare, tmp_path):
    (tmp_path / "values.csv").write_text("text,label\n" + "".join(f"bata {row},{row}.5\n" for row in range(40)))
    task = Axis(label="t", settings={"task": str(tmp_path / "values.csv")})
    with pytest.raises(InputError, match=r"expected label_smoothing=0.0 for labels that are values, got 0.1"):
        declare(tasks=[task], settings={"label_smoothing": 0.1}).runs()


@pytest.mark.parametrize("lost", [None, 2, 3])
def test_restarts_beyond_a_missing_one_are_the_studys(declare, finish, tmp_path, lost):
    """As where the copy of one was cut off; by ``prune`` the others would go to the trash."""
    ledger = Ledger(tmp_path)
    for run in declare(restarts=5).runs() + declare(restarts=7, settings={"learning_rate": 0.5}).runs():
        if run.restart != lost:
            finish(ledger, run)
    assert with_all_restarts(declare(restarts=2), ledger.read()).restarts == 5
    assert with_all_restarts(declare(restarts=9), ledger.read()).restarts == 9
    assert with_all_restarts(declare(restarts=2), Contents()).restarts == 2
