from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixout.errors import InputError
from mixout.finetune.settings import Settings


def test_repr_evaluates():
    settings = Settings(method="mixout(0.7)+anchor_decay(0.01)", seed=3, report_to=("wandb",), save=10)
    assert eval(repr(settings)) == settings


@given(
    seed=st.integers(0, 2**63 - 1),
    rate=st.floats(1e-300, 1e300),
    text=st.text(min_size=1).filter(str.strip),
    save=st.one_of(st.sampled_from(["epoch", "no"]), st.integers(1, 10**9)),
    size=st.none() | st.integers(1, 10**9),
)
def test_json_goes_both_ways(seed, rate, text, save, size):
    settings = Settings(seed=seed, learning_rate=rate, task=text, save=save, train_size=size)
    assert Settings.from_json(settings.to_json()) == settings
    json.loads(settings.to_json(), parse_constant=pytest.fail)


def test_the_method_has_one_spelling():
    assert Settings(method=" mixout( p = .90 ) + anchor_decay(1e-2)").method == "mixout(0.9)+anchor_decay(0.01)"
    assert Settings(method="mixout(.9)").digest() == Settings(method="mixout(0.9)").digest()


def test_seeds_follow_the_seed_unless_given():
    resolved = Settings(seed=7, mask_seed=2).resolved()
    assert (resolved.init_seed, resolved.data_seed, resolved.mask_seed) == (7, 7, 2)
    assert resolved.resolved() == resolved
    assert resolved.digest() == Settings(seed=7, mask_seed=2).digest()


def test_restarts_share_the_subset_unless_told_otherwise():
    assert {Settings(seed=seed).resolved().subset_seed for seed in range(5)} == {0}
    assert Settings(seed=4, subset_seed=9).resolved().subset_seed == 9


def test_streams_of_small_seeds_do_not_meet():
    # The sampler adds the epoch to its seed, so seeds that are near each other would share shuffles.
    seeds = [Settings(seed=seed).stream_seed(purpose) for seed in range(50) for purpose in ("init", "data", "mask")]
    assert len({seed + epoch for seed in seeds for epoch in range(20)}) == 20 * len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert Settings(seed=1, data_seed=5).stream_seed("data") == Settings(seed=2, data_seed=5).stream_seed("data")


def test_digest_tells_runs_apart(tmp_path: Path):
    assert Settings(task=tmp_path).digest() == Settings(task=str(tmp_path)).digest()
    assert Settings(report_to=("wandb",), logging_steps=3).digest() == Settings().digest()
    changed = [
        Settings(seed=1), Settings(method="plain"), Settings(learning_rate=1e-5), Settings(train_size=9),
        Settings(subset_seed=1), Settings(task="rte"), Settings(where="paper"), Settings(),
        Settings(batching="bucketed"), Settings(original="a.txt"), Settings(task_type="causal-lm"),
    ]  # fmt: skip
    assert len({settings.digest() for settings in changed}) == len(changed)


def test_settings_of_before_a_setting_existed():
    earlier = json.loads(Settings(seed=3).to_json())
    for name in ("reinit_layers", "batching", "head", "task_type", "original"):
        del earlier[name]
    assert Settings.from_json(json.dumps(earlier)) == Settings(seed=3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": "mixout(1.2)"}, "1.2"),
        ({"method": "mixuot(0.9)"}, "'mixout'"),
        ({"method": "mixout+plain"}, "plain alone"),
        ({"task_type": "token-classification", "multi_label": True}, "neither multi_label nor pair_column"),
        ({"method": ""}, "method"),
        ({"model": " "}, "model"),
        ({"task": None}, "task"),
        ({"where": "layer.("}, "regular expression"),
        ({"optimizer": "adam"}, "adamw"),
        ({"precision": "fp8"}, "fp16"),
        ({"batching": "bucket"}, "'bucketed'"),
        ({"head": "mixuot"}, "'mixout'"),
        ({"head": "mixout", "method": "plain"}, "head='plain'"),
        ({"head": "dropout", "method": "dropout(0.1)+anchor_decay(0.1)"}, "head='plain'"),
        ({"head": "dropout", "method": "dropconnect(0.1)"}, "pretrained weights"),
        ({"reinit_layers": -1}, ">= 0"),
        ({"reinit_layers": 1.0}, "whole number"),
        ({"evaluate": "never"}, "epoch"),
        ({"save": 0}, "save"),
        ({"save": "sometimes"}, "save"),
        ({"save": True}, "save"),
        ({"batch_size": 0}, ">= 1"),
        ({"batch_size": 2.0}, "whole number"),
        ({"batch_size": True}, "whole number"),
        ({"accumulation": 0}, ">= 1"),
        ({"max_length": 1}, ">= 2"),
        ({"train_size": 0}, ">= 1"),
        ({"seed": -1}, "[0, 2**63)"),
        ({"seed": 10**400}, "[0, 2**63)"),
        ({"seed": None}, "seed"),
        ({"mask_seed": 1.5}, "whole number"),
        ({"learning_rate": 0}, "> 0"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"learning_rate": "2e-5"}, "finite number"),
        ({"learning_rate": 10**400}, "finite number"),
        ({"weight_decay": -0.1}, ">= 0"),
        ({"layer_decay": 1.1}, "(0, 1]"),
        ({"warmup": 1.0}, "share"),
        ({"epochs": 0.0}, "> 0"),
        ({"max_grad_norm": -1}, ">= 0"),
        ({"max_steps": 0}, ">= 1"),
        ({"label_smoothing": 1.0}, "share of each label"),
        ({"keep_best": 1}, "true or false"),
        ({"patience": 1, "evaluate": "end"}, "evaluate='epoch'"),
        ({"schedule": "cosin"}, "'cosine'"),
        ({"report_to": (1,)}, "loggers"),
        ({"report_to": "wandb"}, "'wandb'"),
        ({"report_to": None}, "loggers"),
    ],
)
def test_wrong_values_are_named(values, said):
    with pytest.raises(InputError) as caught:
        Settings(**values)
    message = str(caught.value)
    assert "expected" in message
    assert said in message
    assert "got" in message


def test_json_that_is_no_settings():
    with pytest.raises(InputError, match="'learning_rate'"):
        Settings.from_json('{"learning_rat": 1}')
    with pytest.raises(InputError, match="list"):
        Settings.from_json("[]")
    with pytest.raises(InputError, match="no JSON"):
        Settings.from_json("seed = 1")


def test_every_field_has_a_help_text():
    assert all(item.metadata["help"] for item in dataclasses.fields(Settings))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed = 1


def test_a_bare_name_means_the_same_in_a_sum():
    for task_type, radius in (("classification", "0.005"), ("causal-lm", "0.025")):
        settings = Settings(method="dropout + anchor_decay", task_type=task_type)
        assert settings.method == f"dropout(0.1)+anchor_decay(radius={radius})"
        alone = Settings(method="anchor_decay", task_type=task_type)
        assert alone.method == f"anchor_decay(radius={radius})"
    assert Settings(method="mixout+interpolate(0.5)").method == "mixout(0.7)+interpolate(0.5)"
    assert Settings(method="anchor_decay(1e+2)").method == "anchor_decay(100.0)"
