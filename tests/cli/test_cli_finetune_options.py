"""Words of a command line and lines of a file become the settings of a run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mixout.cli import main
from mixout.finetune.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")


def test_without_options_it_is_the_default_settings(seen, monkeypatch: pytest.MonkeyPatch):
    assert main(["finetune"]) == 130
    settings, place, rest = seen[0]
    assert settings == Settings()
    assert place == Path("out") / Settings().digest()[:12]
    assert rest["resume"] is False


def test_the_papers_recipe(seen):
    # Table 1's settings as the paper has them; each can be replaced.
    main(["finetune", "--recipe", "paper", "--seed", "3"])
    main(["finetune", "--recipe", "paper", "--epochs", "5", "--method", "plain"])
    settings, changed = seen[0][0], seen[1][0]
    paper = {"where": "paper", "optimizer": "bertadam", "learning_rate": 2e-5, "warmup": 0.1, "epochs": 3.0}
    paper |= {"batch_size": 32, "max_length": 128, "method": "mixout(0.9, gradient=paper)"}
    assert settings == Settings(seed=3, **paper)
    assert changed == Settings(**(paper | {"epochs": 5.0, "method": "plain"}))


def test_every_setting_is_an_option(seen):
    given = {
        "model": "m", "task": "t", "data_dir": "d", "text_column": "a", "pair_column": "b", "label_column": "c",
        "metric": "f1", "method": "mixout(0.7)+anchor_decay(0.01)", "where": "paper", "train_size": 5,
        "max_length": 64, "seed": 1, "init_seed": 2, "data_seed": 3, "mask_seed": 4, "subset_seed": 5,
        "optimizer": "bertadam", "learning_rate": 0.5, "weight_decay": 0.25, "layer_decay": 0.75, "warmup": 0.0,
        "epochs": 1.5, "batch_size": 2, "accumulation": 3, "max_grad_norm": 0.0, "precision": "bf16",
        "evaluate": "epoch", "save": 7, "reinit_layers": 2, "batching": "bucketed", "head": "dropout",
        "task_type": "causal-lm", "original": "o.txt", "max_steps": 9, "schedule": "cosine", "label_smoothing": 0.1,
        "gradient_checkpointing": True, "patience": 2, "keep_best": True,
        "report_to": ("tensorboard", "wandb"), "logging_steps": 6, "head_first": 0.5, "class_weights": "balanced",
        "interpolate": (0.5, 0.7), "assistant_only_loss": True, "multi_label": True,
    }  # fmt: skip
    assert given.keys() == {item.name for item in dataclasses.fields(Settings)}
    words = ["finetune"]
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    assert main(words) == 130
    settings, _, rest = seen[0]
    assert settings == Settings(**given)
    assert rest["resume"] is False


def test_the_names_of_other_trainers(seen):
    words = {
        "--model-name-or-path": "m", "--dataset-name": "RTE", "--max-seq-length": "64", "--num-train-epochs": "2",
        "--per-device-train-batch-size": "4", "--gradient-accumulation-steps": "2", "--warmup-ratio": "0.2",
        "--lr-scheduler-type": "cosine", "--label-smoothing-factor": "0.1", "--early-stopping-patience": "3",
        "--load-best-model-at-end": "True", "--save-steps": "50", "--eval-strategy": "epoch", "--max-steps": "70",
    }  # fmt: skip
    main(["finetune", *(word for pair in words.items() for word in pair), "--gradient-checkpointing"])
    assert seen[0][0] == Settings(
        model="m", task="RTE", max_length=64, epochs=2.0, batch_size=4, accumulation=2, warmup=0.2, schedule="cosine",
        label_smoothing=0.1, patience=3, keep_best=True, save=50, max_steps=70, gradient_checkpointing=True,
    )  # fmt: skip


def test_a_config_file_and_what_differs(seen, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(
        "task: RTE\nlearning-rate: 1e-4\nsave: no\nreport_to: [tensorboard, wandb]\nkeep_best: true\n"
        "method: mixout(0.5)\noutput_dir: there\nmetric:\n"
    )
    main(["finetune", "--config", str(file), "--seed", "3", "--learning-rate", "2e-4"])
    expected = {"task": "RTE", "save": "no", "keep_best": True, "method": "mixout(0.5)", "seed": 3}
    assert seen[0][0] == Settings(**expected, learning_rate=2e-4, report_to=("tensorboard", "wandb"))
    assert seen[0][1] == Path("there")
    for text, said in (
        ("learning_rat: 1", "did you mean '--learning-rate'"),
        ("methd: mixout(0.7) + dropout(0.0)\ntask: RTE", "did you mean '--method'"),
        ("learning_rate: [1e-4, 2e-4]", "expected one value for learning_rate, got several: ['1e-4', '2e-4']"),
        ("settings: {task: RTE}", "got '--settings'"),
        ("method: {name: mixout}", "expected one value for method"),
        ("optimizer: adam", "adamw"),
        ("[1, 2]", "got list"),
        ("a: [", "YAML or JSON"),
    ):
        file.write_text(text)
        assert main(["finetune", "--config", str(file)]) == 2
        printed = capsys.readouterr().err
        assert said in printed
        assert "run.yaml" in printed


def test_every_character_of_a_runs_own_file_is_read(seen, tmp_path):
    run = Settings(task="отзывы 😀.csv", text_column="😀 «текст»", report_to=("tensorboard",))
    (tmp_path / "run.json").write_text(json.dumps({"id": "1", "settings": dataclasses.asdict(run)}))
    main(["finetune", "--config", str(tmp_path / "run.json")])
    assert seen[0][0] == run


def test_a_test_file_is_read_before_the_training(options, tmp_path, capsys, seen):
    (tmp_path / "new.csv").write_text("sentence,label\nbata,first\n")
    for file, said in ((tmp_path / "no.csv", "no.csv"), (tmp_path / "new.csv", "a column 'text'")):
        assert main([*options, "--test", str(file)]) == 2
        assert said in capsys.readouterr().err
    assert seen == []


def test_the_data_may_come_without_an_options_name(options, tiny_task, tmp_path, capsys, seen):
    place = options.index("--task")
    for words in ([*options[:1], tiny_task, *options[1:place], *options[place + 2 :]], [*options[:place], tiny_task]):
        main(words)
        assert seen[-1][0].task == tiny_task
    (tmp_path / "run.yaml").write_text("task: docstrings")
    main(["finetune", tiny_task, "--config", str(tmp_path / "run.yaml"), *options[place + 2 :]])
    assert seen[-1][0].task == tiny_task
    assert main([*options, "other.csv"]) == 2
    assert "expected the data once, got 'other.csv' and --task" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "method"),
    [
        (["--method", "plain"], "plain"),
        (["--method", "mixout"], "mixout(0.7)"),
        (["--method", "dropout"], "dropout(0.1)"),
        (["--method", "anchor_decay"], "anchor_decay(radius=0.005)"),
        (["--method", "anchor_decay", "--task-type", "causal-lm"], "anchor_decay(radius=0.025)"),
        (["--task-type", "causal-lm"], "auto"),
        ([], "auto"),
        (["--recipe", "paper"], "mixout(0.9, gradient=paper)"),
        (["--method", "mixout(0.9, gradient=paper)"], "mixout(0.9, gradient=paper)"),
    ],
)
def test_a_method_by_its_name_alone(seen, words, method):
    main(["finetune", *words])
    assert seen[0][0].method == method


def test_a_shell_is_told_how_words_may_go_on(monkeypatch: pytest.MonkeyPatch):
    # argcomplete is not installed here; it is handed a parser that knows every option.
    asked = []
    monkeypatch.setitem(sys.modules, "argcomplete", SimpleNamespace(autocomplete=asked.append))
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    with pytest.raises(SystemExit):
        main(["--version"])
    [commands] = [one for one in asked[0]._actions if one.choices]
    assert "--batching" in commands.choices["finetune"]._option_string_actions


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND"),
        (["finetun"], "finetune"),
        (["finetune", "--learning-rat", "1"], "--learning-rate"),
        (["finetune", "--lr=1"], "expected an option"),
        (["finetune", "--batch-size", "two"], "two"),
        (["finetune", "--optimizer", "adam"], "adamw"),
        (["finetune", "--method", "mixout(1.2)"], "1.2"),
        (["finetune", "--method", "mixuot(0.5)"], "mixout"),
        (["finetune", "--save", "-3"], "expected save"),
        (["finetune", "--task", "./no-such-file.csv"], "no-such-file"),
        (["finetune", "--task", "rtee"], "RTE"),
        (["finetune", "--resume"], "write --resume DIR"),
        (["finetune", "--resume", "nowhere"], "expected an unfinished run in 'nowhere'"),
        (["finetune", "--per-device-train-batch-siz", "8"], "did you mean '--per-device-train-batch-size'"),
        (["finetune", "--keep-best", "perhaps"], "true or false"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(words, said, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert re.fullmatch(r"mixout: error: [^\n]+\n", printed.err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [("", "cpu", ""), ("4,6", "cpu", ""), ("", "1", "1"), ("4,6", "1", "6"), ("4,6", None, "4,6")],
)
@pytest.mark.parametrize("command", [["finetune", "RTE"], ["choose", "RTE"], ["predict", "none", "none.csv"]])
def test_a_device_hides_the_other_gpus(seen, monkeypatch: pytest.MonkeyPatch, command, visible, device, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("mixout.choose.choose", lambda *_args, **_options: (_ for _ in ()).throw(KeyboardInterrupt))
    main([*command, *(["--device", device] if device else [])])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


@pytest.mark.parametrize(
    ("device", "environment", "message"),
    [
        ("gpu", {}, "--device cpu or the number of a GPU"),
        ("2", {"CUDA_VISIBLE_DEVICES": "4,6"}, "number of a GPU of .*4.*6"),
        ("1", {"WORLD_SIZE": "2"}, "no --device under torchrun"),
        ("0", {}, "a GPU that torch sees"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    seen, monkeypatch: pytest.MonkeyPatch, capsys, device, environment, message
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # what the command sets is put back
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["finetune", "RTE", "--device", device]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not seen
