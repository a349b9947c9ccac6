from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mixout
from mixout.cli import main
from mixout.finetune import folder, train
from mixout.finetune import predict as predicting
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run(options, tmp_path, capsys):
    assert main([*options, "--method", "mixout(0.9)", "--seed", "3"]) == 0
    record = Record.read(tmp_path / "out")
    assert record.settings.method == "mixout(0.9)"
    assert record.settings.data_seed == 3
    printed = capsys.readouterr()
    assert "accuracy" in printed.out
    assert "; standard error over 20 dev examples: 0." in printed.out
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


@pytest.mark.filterwarnings("ignore::mixout.DecayStrengthWarning")
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


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "cp437", "utf-8"])
def test_a_printed_config_is_read_again_whatever_the_console_encodes(options, tiny_task, tmp_path, seen, encoding):
    table = tmp_path / "caf\u00e9 \u043e\u0442\u0437\u044b\u0432 \U0001f600 \x85.csv"
    shutil.copy(Path(tiny_task) / "train.csv", table)
    named = [word if word != tiny_task else str(table) for word in options]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert main([*named, "--print-config"]) == 0
        (tmp_path / "run.yaml").write_bytes(sys.stdout.buffer.getvalue())
    main(["finetune", "--config", str(tmp_path / "run.yaml")])
    assert seen[0][0].task == str(table)


def test_predictions_for_a_file(options, tiny_task, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    learning = ["--epochs", "16", "--learning-rate", "3e-3", "--method", "dropout(0)"]
    file = Path(tiny_task) / "dev.csv"
    assert main([*options, *learning, "--test", str(file)]) == 0
    record = Record.read(tmp_path / "out")
    printed = capsys.readouterr()
    last = printed.out.splitlines()[-1]
    assert "are trained on" not in printed.err
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
    before = Path("predictions.csv").read_bytes()
    assert main(["predict", "out", "new.jsonl"]) == 2
    assert "expected no predictions.csv here, got one; name another file, or this one" in capsys.readouterr().err
    assert main(["predict", "out", "new.jsonl", "--output", "predictions.csv"]) == 0
    assert capsys.readouterr().out == "2 predictions: predictions.csv\n"
    assert Path("predictions.csv").read_bytes() == before
    Path("predictions.csv").unlink()
    for words, said in ((["out", "no.csv"], "no.csv"), (["nowhere", "new.jsonl"], "config.json")):
        assert main(["predict", *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["predict", "out", "new.jsonl", "--text-column", "sentence"]) == 2
    assert "--text-column" in capsys.readouterr().err


def test_names_that_a_code_page_lacks_do_not_end_the_command(monkeypatch: pytest.MonkeyPatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert main(["finetune", "--task", "./отзывы 😀.csv"]) == 2
    sys.stdout.write("отзывы 😀")  # as the summary of a finished run would
    for name, stream in streams.items():
        stream.flush()
        assert r"\u043e\u0442\u0437\u044b\u0432\u044b \U0001f600" in stream.buffer.getvalue().decode("cp1252"), name


def test_a_test_file_of_training_rows_is_told_and_commands_can_be_pasted(options, tiny_task, tmp_path, capsys):
    place = tmp_path / "zu hause ü"
    words = ["--output-dir", str(place), "--test", str(Path(tiny_task) / "train.csv")]
    assert main([*options, *words]) == 0
    printed = capsys.readouterr()
    assert re.search(r"note: \d+ texts of \S+train.csv are trained on: its scores will be too good", printed.err)
    assert f"mixout predict '{place}' FILE" in printed.out


def test_errors_of_model_and_data_are_reported_alike(options, tmp_path, capsys):
    for words in (["--model", "./nowhere"], ["--text-column", "sentence"], ["--where", "all"], ["--max-length", "99"]):
        assert main([*options, *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


def test_an_interrupt_names_the_way_on(seen, tmp_path, capsys):
    place = tmp_path / "out"
    plan = place / "checkpoints" / "run.json"
    for make in (lambda: None, lambda: plan.parent.mkdir(parents=True)):  # what is made before a run begins
        make()
        assert main(["finetune", "--output-dir", str(place)]) == 130
        assert "no files yet" in capsys.readouterr().err
        assert main(["finetune", "--resume", str(place)]) == 2
        capsys.readouterr()
    plan.write_text(json.dumps({"settings": dataclasses.asdict(Settings())}))
    (tmp_path / "new rows.csv").write_text("text\nbata\n")
    beside = ["--test", str(tmp_path / "new rows.csv"), "--device", "cpu"]
    for way in ("--output-dir", "--resume"):
        for words in ([], beside):  # which are no settings of the run
            assert main(["finetune", way, str(place), *words]) == 130
            again = capsys.readouterr().err.rpartition("continue with: ")[2]
            assert shlex.split(again) == ["mixout", "finetune", "--resume", str(place), *words]


@pytest.mark.parametrize("missing", ["transformers", pytest.param("accelerate", marks=pytest.mark.sweep)])
def test_a_missing_extra_names_the_pip_command(missing, tmp_path, own_lines):
    script = f"import sys; sys.modules[{missing!r}] = None; from mixout.cli import main; sys.exit(main(['finetune']))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert ended.returncode == 2
    (said,) = own_lines(ended.stderr)
    assert repr(missing) in said
    assert 'pip install "mixout[hf]"' in said


@pytest.mark.parametrize("cut_off", [False, True])
def test_what_follows_the_training_can_be_continued(options, tmp_path, monkeypatch, capsys, cut_off):
    """Interrupted while --test is answered, or between the record and the end."""
    file = tmp_path / "new rows.csv"
    file.write_text("text\nbata\n")
    place, module, name = tmp_path / "out", *((folder, "finish") if cut_off else (predicting, "predict"))

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupt)
        assert main([*options, "--test", str(file)]) == 130
    before = (place / "record.json").read_bytes()
    again = shlex.split(capsys.readouterr().err.rpartition("continue with: ")[2])
    assert again == ["mixout", "finetune", "--resume", str(place), "--test", str(file)]
    assert main(again[1:]) == 0
    assert (place / "predictions.csv").read_text().startswith("text,")
    assert (place / "record.json").read_bytes() == before
    assert not (place / "checkpoints").exists()
    # Nothing is written where only the settings are asked for, or by another process than the first.
    (place / "predictions.csv").unlink()
    assert main([*again[1:], "--print-config"]) == 2
    monkeypatch.setenv("RANK", "1")
    assert main(again[1:]) == 0
    monkeypatch.delenv("RANK")
    assert not (place / "predictions.csv").exists()
    (place / "predictions.csv").write_text("of other rows")
    assert main(again[1:]) == 2
    assert "expected no predictions.csv in" in capsys.readouterr().err
    assert (place / "predictions.csv").read_text() == "of other rows"
    assert main([*again[1:], "--seed", "1"]) == 2  # settings are of a run that goes on
    assert "got a finished one" in capsys.readouterr().err


def test_an_interruption_of_the_end_alone_leaves_nothing_to_do(options, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder, "finish", interrupt)
        assert main(options) == 130
    assert capsys.readouterr().err.endswith(f"mixout: interrupted; the run is finished: {tmp_path / 'out'}\n")
    assert main(["finetune", "--resume", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out" / "checkpoints").exists()


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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert done.stdout.startswith("usage: mixout")


@pytest.mark.sweep
def test_a_reader_who_has_read_enough_ends_a_command_without_a_traceback(own_lines):
    with subprocess.Popen(
        [sys.executable, "-m", "mixout", "finetune", "--print-config"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as command:  # fmt: skip
        command.stdout.close()
        assert (own_lines(command.stderr.read()), command.wait()) == ([], 141)
