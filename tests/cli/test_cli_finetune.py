from __future__ import annotations

import csv
import dataclasses
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mixout
from mixout.cli import main
from mixout.finetune import train
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def options(tiny_bert, tiny_task, tmp_path) -> list[str]:
    return [
        "finetune", "--model", tiny_bert, "--task", tiny_task, "--output-dir", str(tmp_path / "out"),
        "--max-length", "32", "--epochs", "0.5", "--batch-size", "8", "--save", "no",
    ]  # fmt: skip


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, Path, dict]]:
    """What the command passes on; nothing is trained."""
    calls: list[tuple[Settings, Path, dict]] = []

    def spy(settings, place, **rest):
        calls.append((settings, place, rest))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "finetune", spy)
    return calls


def test_a_run(options, tmp_path, capsys):
    assert main([*options, "--method", "mixout", "--p", "0.9", "--seed", "3"]) == 0
    record = Record.read(tmp_path / "out")
    assert record.settings.method == "mixout(0.9)"
    assert record.settings.data_seed == 3
    printed = capsys.readouterr()
    assert "accuracy" in printed.out
    assert str(tmp_path / "out") in printed.out
    # No terminal: plain lines, no bars, no advice of others.
    assert "step 3/3" in printed.err
    beginnings = (
        "words: 42 training rows, 20 dev rows",
        "2 classes: 'first' (21 ",
        "mixout(0.9)",
        "learning",
        "  step",
    )
    assert all(line.startswith(beginnings) for line in printed.err.splitlines())


def test_a_run_that_diverges_says_so(options, capsys):
    steps = ["--optimizer", "sgd", "--learning-rate", "1e30", "--max-grad-norm", "0"]
    assert main([*options, *steps]) == 0
    printed = capsys.readouterr()
    assert "\ndiverged: the training loss is nan" in printed.out


def test_a_language_model(tiny_llama, tiny_text, tmp_path, capsys):
    words = ["finetune", "--task-type", "causal-lm", "--model", tiny_llama, "--task", tiny_text, "--epochs", "0.2"]
    words += ["--original", f"{tiny_text}/other.txt", "--output-dir", str(tmp_path / "out"), "--max-length", "12"]
    assert main([*words, "--save", "no", "--metric", "original_log_likelihood"]) == 0
    record, printed = Record.read(tmp_path / "out"), capsys.readouterr().out
    assert record.metric == "original_log_likelihood"
    _, before, _ = printed.splitlines()
    assert before.startswith("before training: log_likelihood")
    for entry in (record.evaluations[0], record.evaluations[-1]):
        assert f"original_perplexity {entry.scores['original_perplexity']:.4f}" in printed


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
        "method: mixout\np: 0.5\noutput_dir: there\nmetric:\n"
    )
    main(["finetune", "--config", str(file), "--seed", "3", "--learning-rate", "2e-4"])
    expected = {"task": "RTE", "save": "no", "keep_best": True, "method": "mixout(0.5)", "seed": 3}
    assert seen[0][0] == Settings(**expected, learning_rate=2e-4, report_to=("tensorboard", "wandb"))
    assert seen[0][1] == Path("there")
    for text, said in (
        ("learning_rat: 1", "did you mean '--learning-rate'"),
        ("optimizer: adam", "adamw"),
        ("[1, 2]", "got list"),
        ("a: [", "YAML or JSON"),
    ):
        file.write_text(text)
        assert main(["finetune", "--config", str(file)]) == 2
        printed = capsys.readouterr().err
        assert said in printed
        assert "run.yaml" in printed


def test_a_printed_config_is_the_run(options, tiny_task, tmp_path, capsys):
    named = [word for word in options if word not in ("--batch-size", "8")]
    assert main([*named, "--seed", "3", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "\nlearning_rate: 0.0005  # for a model of width 16\n" in printed
    assert "\nbatch_size: 8  # for 42 rows\n" in printed
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run.yaml").write_text(printed)
    assert main([*named, "--seed", "3"]) == 0
    assert main(["finetune", "--config", str(tmp_path / "run.yaml"), "--output-dir", str(tmp_path / "again")]) == 0
    first, again = Record.read(tmp_path / "out"), Record.read(tmp_path / "again")
    assert (again.digest, again.score, again.distance) == (first.digest, first.score, first.distance)


def test_predictions_for_a_file(options, tiny_task, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    learning = ["--epochs", "16", "--learning-rate", "3e-3", "--method", "dropout(0)"]
    file = Path(tiny_task) / "dev.csv"
    assert main([*options, *learning, "--test", str(file)]) == 0
    record = Record.read(tmp_path / "out")
    last = capsys.readouterr().out.splitlines()[-1]
    # The dev file as a test file: what the record knows already.
    assert last.startswith(f"20 predictions: {tmp_path / 'out' / 'predictions.csv'}; accuracy {record.score:.4f}")
    with (tmp_path / "out" / "predictions.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    with file.open(newline="") as handle:
        assert [row["text"] for row in rows] == [row["text"] for row in csv.DictReader(handle)]
    assert [row["prediction"] for row in rows] == [("first", "second")[int(at)] for at in record.predictions]
    for row in rows:
        shares = {name: float(row[f"probability of {name}"]) for name in ("first", "second")}
        assert sum(shares.values()) == pytest.approx(1)
        assert max(shares, key=shares.__getitem__) == row["prediction"]
    # Without labels, from a file of another kind.
    (tmp_path / "new.jsonl").write_text('{"text": "bata bavi"}\n{"text": "dota"}\n')
    assert main(["predict", "out", "new.jsonl"]) == 0
    assert capsys.readouterr().out == "2 predictions: predictions.csv\n"
    for words, said in ((["out", "no.csv"], "no.csv"), (["nowhere", "new.jsonl"], "config.json")):
        assert main(["predict", *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["predict", "out", "new.jsonl", "--output", "nowhere/p.csv"]) == 1
    assert "could not write to nowhere" in capsys.readouterr().err
    assert main(["predict", "out", "new.jsonl", "--text-column", "sentence"]) == 2
    assert "--text-column" in capsys.readouterr().err


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
        (["--method", "mixconnect", "--p", "0.3"], "mixconnect(0.3)"),
        (["--p", "0.25"], "mixout(0.25)"),
        (["--method", "plain"], "plain"),
        (["--method", "mixout"], "mixout(0.7)"),
        (["--method", "dropout"], "dropout(0.1)"),
        (["--method", "anchor_decay"], "anchor_decay(radius=0.005)"),
        (["--method", "anchor_decay", "--task-type", "causal-lm"], "anchor_decay(radius=0.025)"),
        (["--task-type", "causal-lm"], "anchor_decay(radius=0.025)"),
        (["--recipe", "paper"], "mixout(0.9, gradient=paper)"),
        (["--method", "mixout(0.9, gradient=paper)"], "mixout(0.9, gradient=paper)"),
    ],
)
def test_method_and_p(seen, words, method):
    main(["finetune", *words])
    assert seen[0][0].method == method


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND"),
        (["finetun"], "finetune"),
        (["finetune", "--learning-rat", "1"], "--learning-rate"),
        (["finetune", "--lr=1"], "expected an option"),
        (["finetune", "--batch-size", "two"], "two"),
        (["finetune", "--optimizer", "adam"], "adamw"),
        (["finetune", "--p", "1.2"], "1.2"),
        (["finetune", "--p", "nan"], "nan"),
        (["finetune", "--method", "mixuot", "--p", "0.5"], "mixout"),
        (["finetune", "--method", "mixout(0.9)", "--p", "0.5"], "bare name"),
        (["finetune", "--method", "plain", "--p", "0.5"], "leave out --p"),
        (["finetune", "--method", "anchor_decay", "--p", "0.9"], "mixout, mixconnect, dropconnect, dropout"),
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


def test_names_that_a_code_page_lacks_do_not_end_the_command(monkeypatch: pytest.MonkeyPatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert main(["finetune", "--task", "./отзывы 😀.csv"]) == 2
    sys.stdout.write("отзывы 😀")  # as the summary of a finished run would
    for name, stream in streams.items():
        stream.flush()
        assert r"\u043e\u0442\u0437\u044b\u0432\u044b \U0001f600" in stream.buffer.getvalue().decode("cp1252"), name


def test_errors_of_model_and_data_are_reported_alike(options, tmp_path, capsys):
    for words in (["--model", "./nowhere"], ["--text-column", "sentence"], ["--where", "all"], ["--max-length", "99"]):
        assert main([*options, *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


def test_an_interrupt_names_the_way_on(seen, tmp_path, capsys):
    place = tmp_path / "out"
    assert main(["finetune", "--output-dir", str(place)]) == 130
    assert "no files yet" in capsys.readouterr().err
    place.mkdir()
    assert main(["finetune", "--output-dir", str(place)]) == 130
    assert f"mixout finetune --resume {place}\n" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["transformers", "accelerate"])
def test_a_missing_extra_names_the_pip_command(missing, tmp_path, own_lines):
    script = f"import sys; sys.modules[{missing!r}] = None; from mixout.cli import main; sys.exit(main(['finetune']))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ended.returncode == 2
    (said,) = own_lines(ended.stderr)
    assert repr(missing) in said
    assert 'pip install "mixout[hf]"' in said


def test_a_bug_shows_where_it_is(monkeypatch: pytest.MonkeyPatch):
    def broken(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr(train, "finetune", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["finetune"])


def test_models_in_between_are_a_table(options, tmp_path, capsys):
    assert main([*options, "--interpolate", "0.5", "1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    [head] = [at for at, line in enumerate(lines) if line[:2] == ["t", "loss"]]
    record = Record.read(tmp_path / "out")
    assert [line[0] for line in lines[head + 1 : head + 3]] == ["0.5", "1"]
    assert lines[head + 2][lines[head].index("accuracy")] == f"{record.scores['accuracy']:.4f}"


@pytest.mark.parametrize("words", [["--help"], ["finetune", "--help"], ["--version"]])
def test_help_and_version(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    if words == ["--version"]:
        assert printed in (f"mixout {mixout.__version__}\n",)
    if "finetune" in words:
        flat = re.sub(r"\s+", " ", printed)
        for item in dataclasses.fields(Settings):
            assert f"--{item.name.replace('_', '-')}" in printed
            assert item.metadata["help"].split(",")[0].split(";")[0] in flat


@pytest.mark.parametrize("words", [["--help"], ["finetune", "--help"], ["predict", "--help"]])
def test_help_does_not_wait_for_torch(words):
    program = f"""
import sys
from mixout.cli import main
try:
    main({words!r})
finally:
    heavy = {{"torch", "transformers", "pandas", "numpy"}} & set(sys.modules)
    print(*heavy, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert done.stdout.startswith("usage: mixout")


def test_a_reader_who_has_read_enough_ends_a_command_without_a_traceback(own_lines):
    with subprocess.Popen(
        [sys.executable, "-m", "mixout", "finetune", "--print-config"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as command:  # fmt: skip
        command.stdout.close()
        assert (own_lines(command.stderr.read()), command.wait()) == ([], 141)
