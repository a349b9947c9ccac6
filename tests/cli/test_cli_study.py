"""mixout study from the command line: plan, run, look, report, export, clean up."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mixout.cli import main
from mixout.cli.study import runs as runs_module
from mixout.errors import InputError
from mixout.study import executors
from mixout.study.ledger import Contents, Ledger

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")

Study = Callable[..., int]


def test_from_the_plan_to_the_report(study, tmp_path, capsys, study_file, numbers):
    assert study("plan") == 0
    printed = capsys.readouterr().out
    assert "tiny: 4 runs = 1 task x 2 methods x 2 restarts" in printed
    assert [numbers(line) for line in printed.splitlines()[3:5]] == [["2", "0", "0", "2", "?"]] * 2
    assert "4 to run" in printed
    assert "under Adam" not in printed
    decaying = tmp_path / "decaying.toml"
    decaying.write_text(Path(study_file).read_text().replace("mixout(.5)", "anchor_decay(200)"))
    assert study("plan", file=str(decaying)) == 0
    far = "anchor_decay(200.0): under Adam a weight goes about 0.005 from its start at most"
    assert capsys.readouterr().out.count(far) == 1
    again = f"mixout study run {study_file} --ledger {tmp_path / 'ledger'}"
    assert f"\n  {again} --pilot\n" in printed
    assert not (tmp_path / "ledger").exists()

    assert study("run", "--pilot") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("2 runs in this call, 0 of them failed")
    # No terminal: plain lines.
    ended = [line for line in printed.err.splitlines() if not line.startswith("  ")]
    assert [line[:12] for line in ended] == ["[1/2] words,", "[2/2] words,"]
    assert study("plan", "--restarts", "3") == 0
    printed = capsys.readouterr().out
    assert [numbers(line)[:4] for line in printed.splitlines()[3:5]] == [["3", "1", "0", "2"]] * 2
    assert re.search(r"4 to run, about \d+ s one after the other", printed)

    assert study("run") == 0
    assert "2 of 4 runs are there already" in capsys.readouterr().err
    assert study("status") == 0
    assert [numbers(line) for line in capsys.readouterr().out.splitlines()[1:3]] == [["2", "2", "0", "0"]] * 2

    assert study("report", "--restarts", "3", "--output-dir", str(tmp_path / "report"), "--title", "Tiny & small") == 0
    printed = capsys.readouterr()
    page = tmp_path / "report" / "index.html"
    assert printed.out == f"report {page}\n"
    assert printed.err == "2 of 6 runs are missing; the report is on the others\n"
    text = page.read_text()
    for part in ("Tiny &amp; small", "mixout(0.5)", "dropout(0.0)", "learning_rate", "torch"):
        assert part in text
    # What was asked: sizes, and three texts of the dev set, each in quotes.
    assert "rows trained on, 20 rows tested on (dev set)" in text
    assert re.findall(r"<span>answer: (\w+)</span>", text)[:2] == ["first", "second"]
    # The very commands: called again, they write this report.
    options = f"{study_file} --restarts 3 --ledger {tmp_path / 'ledger'}"
    shown = [line for line in html.unescape(text).splitlines() if "mixout study " in line]
    assert shown[0].endswith(f"mixout study run {options}")
    assert shown[1].startswith(f"mixout study report {options} --title 'Tiny & small' --output-dir ")
    words = shlex.split(shown[1].partition("</code>")[0].partition("</pre>")[0])
    assert main(words[1:]) == 0
    assert page.read_text() == text
    capsys.readouterr()
    assert study("plan") == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_settings_of_the_command_line(study, tmp_path, capsys, numbers):
    assert study("plan", "--set", "epochs=0.5", "where=paper", "--set", "train_size=16", "--restarts", "1") == 0
    assert "tiny: 2 runs = " in capsys.readouterr().out
    assert study("run", "--set", "epochs=0.5", "where=paper", "train_size=16", "--restarts", "1") == 0
    described = [json.loads(path.read_text())["settings"] for path in tmp_path.rglob("run.json")]
    assert [(one["epochs"], one["where"], one["train_size"]) for one in described] == [(0.5, "paper", 16)] * 2
    # Other settings, other runs.
    capsys.readouterr()
    assert study("status") == 0
    assert [numbers(line)[:4] for line in capsys.readouterr().out.splitlines()[1:3]] == [["2", "0", "0", "2"]] * 2


def test_what_failed_is_shown_and_retried(study, tmp_path, failing, capsys, study_file, numbers):
    assert study("run") == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("4 runs in this call, 1 of them failed")
    assert "mixout study status" in printed.err
    assert study("status") == 0
    shown = capsys.readouterr().out
    assert "failed after 2 attempts: words, mixout(0.5), restart 1: RuntimeError: CUDA out of memory" in shown
    assert "CUDA out of memory" in (Path(re.search(r"traceback: ([^;]+);", shown)[1]) / "failure.json").read_text()
    assert study("plan") == 0
    said = capsys.readouterr().out
    assert "no other run is missing" in said
    assert f"1 failed; try again: mixout study retry {study_file} --ledger {tmp_path / 'ledger'}" in said
    assert study("run") == 1  # failed is not missing, and not done
    printed = capsys.readouterr()
    assert "1 of 4 runs failed before" in printed.err
    assert "1 failed; why: mixout study status" in printed.err
    assert study("retry", "--retries", "0") == 1
    failing.undo()
    assert study("retry") == 0
    capsys.readouterr()
    assert study("status") == 0
    assert [numbers(line) for line in capsys.readouterr().out.splitlines()[1:3]] == [["2", "2", "0", "0"]] * 2


def test_conflicts_damage_and_cleaning_up(study, tmp_path, capsys, study_file):
    ledger = Ledger(tmp_path / "ledger")
    assert study("run", "--restarts", "3") == 0
    entries = sorted(ledger.read().entries.values(), key=lambda entry: (entry.run.restart, entry.run.method))
    # Another result of the first, as if from another machine; half a copy of the second; a run that was cut off.
    record = entries[0].record
    assert record is not None
    place = tmp_path / "other"
    shutil.copytree(entries[0].folder, place)
    text = (place / "record.json").read_text().replace(f'"distance": {record.distance}', '"distance": 123.0')
    (place / "record.json").write_text(text.replace(record.finished_at, "2999-01-01T00:00:00+00:00"))
    from mixout.study.entry import result_of

    values = json.loads((place / "record.json").read_text())
    name = f"{entries[0].run.id}.{result_of(values)[:12]}"
    place.rename(ledger.folder / "runs" / name)
    whole = entries[1].folder / "record.json"
    whole.write_text(whole.read_text()[:1000])
    (ledger.folder / "work" / "cut-off").mkdir(parents=True)

    capsys.readouterr()
    assert study("status") == 0
    printed = capsys.readouterr().out
    assert "conflict: words, dropout(0.0), restart 0 came out in 2 ways" in printed
    assert f"damaged: {entries[1].folder}" in printed
    assert "1 folder of runs that were cut off" in printed

    for step, told in (("run", []), ("plan", []), ("report", ["--output-dir", str(tmp_path / "report")])):
        words = ["--restarts", "3", *told] if step != "run" else ["--restarts", "1", "--pilot"]
        assert study(step, *words) == 0
        printed = capsys.readouterr()
        assert "came out in 2 ways; the one that was finished first counts." in printed.out + printed.err
        assert "They were made with mixout 0.2.0 on " in printed.out + printed.err
    # Nothing but what is of no use, unless a study is named: restart 2 is not in the file, but one of its study.
    assert study("prune", file=None) == 0
    assert "would be moved to the trash" in capsys.readouterr().out
    assert study("prune", "--not-in", study_file, file=None) == 0
    assert "not in" not in capsys.readouterr().out
    assert study("prune", "--not-in", study_file, "--restarts", "2", "--yes", file=None) == 0
    assert f"folders moved to {ledger.folder / 'trash'}" in capsys.readouterr().out
    assert len(list((ledger.folder / "trash").glob("*/*"))) >= 5
    left = {path.name for path in (ledger.folder / "runs").iterdir()}
    assert left == {entries[0].folder.name, entries[1].folder.name, entries[2].folder.name, entries[3].folder.name}
    assert study("prune", file=None) == 0
    assert capsys.readouterr().out == "0 folders to remove\n"
    assert study("run") == 0
    assert capsys.readouterr().out.startswith("0 runs in this call")
    assert main(["study", "prune", "--ledger", str(tmp_path / "typo")]) == 2
    assert not (tmp_path / "typo").exists()


def test_what_is_only_watched_is_not_run_again(study, capsys):
    assert study("run") == 0
    for words in (["save=epoch"], ["evaluate=end"], ["metric=f1"]):
        capsys.readouterr()
        assert study("plan", "--set", *words) == 0
        assert "nothing is missing" in capsys.readouterr().out


def test_a_plan_says_why_runs_are_missing_and_what_they_could_show(study, capsys):
    assert study("run") == 0
    capsys.readouterr()
    assert study("plan", "--set", "epochs=2") == 0
    said = capsys.readouterr().out
    assert "4 of these are in the ledger with other epochs" in said
    assert "with 2 restarts the test of 1 comparison cannot show a difference" in said
    assert "with 6 it can" in said
    assert study("plan", "--set", "interpolate=[0.5]") == 0  # four methods for the report
    assert "with 2 restarts the test of 3 comparisons cannot show a difference" in capsys.readouterr().out


def test_a_method_without_scores_does_not_end_the_looks(study, tmp_path, monkeypatch, capsys):
    """Nothing is known of it, so the difference is not known well enough."""
    true, of = runs_module.run_missing, Contents.of
    # As of a language model.
    monkeypatch.setattr(Contents, "of", lambda *args: [replace(run, chance=None) for run in of(*args)])

    def failing(planned, ledger, executor, **options):
        for one in planned:
            if one.method == "mixout(0.5)":
                ledger.fail(one, 1, "E: no")
        return true([one for one in planned if one.method != "mixout(0.5)"], ledger, executor, **options)

    monkeypatch.setattr(runs_module, "run_missing", failing)
    assert study("run", "--until-width", "1000", "--looks", "2") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("look ")]
    assert len(said) == 2
    assert all("mixout(0.5) on words was not compared" in line for line in said)


def test_an_interrupt_keeps_what_is_finished(study, tmp_path, monkeypatch, capsys):
    original = executors.finetune

    def interrupted(settings, *args, **options):
        if settings.seed == 1:
            raise KeyboardInterrupt
        return original(settings, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(executors, "finetune", interrupted)
        assert study("run") == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"mixout: interrupted; finished runs are kept in {tmp_path / 'ledger'}: call it again to continue"
    )
    assert study("run") == 0
    assert capsys.readouterr().out.startswith("2 runs in this call")


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("words", "looks", "last"),
    [
        # Any interval is narrow enough, as soon as there are ten restarts and three pairs that do not fail.
        pytest.param(["--until-width", "10000", "--looks", "7"], 6, "narrow enough", marks=pytest.mark.sweep),
        # None is; after the last look that was planned it ends all the same.
        (["--until-width", "5", "--looks", "2"], 2, "no interval yet"),
    ],
)
def test_until_the_difference_is_known(study, tmp_path, capsys, words, looks, last):
    # Five epochs: otherwise all scores are those of a constant answer.
    assert study("run", "--set", "epochs=5", *words) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("look ")]
    assert len(said) == looks
    assert said[0].startswith(f"look 1 of {words[-1]}: mixout(0.5) against dropout(0.0) on words, 2 restarts: ")
    assert last in said[-1]
    assert len(Ledger(tmp_path / "ledger").runs()) == 2 * 2 * looks


@pytest.mark.parametrize(
    ("step", "words", "said"),
    [
        ("run", ["--gpus-per-run", "0.5"], "--gpus-per-run only with --ray-address"),
        ("run", ["--workers", "0"], "workers >= 1, got 0"),
        ("run", ["--restarts", "0"], "restarts as a whole number >= 1, got 0"),
        ("run", ["--restart", "3"], "did you mean '--restarts'"),
        ("run", ["--retries", "-1"], "retries >= 0, got -1"),
        ("run", ["--set", "epoch=3"], "did you mean 'epochs'"),
        ("run", ["--set", "epochs"], "--set NAME=VALUE, got 'epochs'"),
        ("run", ["--set", "seed=3"], "restart k has seed k"),
        ("run", ["--set", "restarts=3"], "write it under [study], or --restarts N"),
        ("run", ["--set", "report_to=tensorboard"], "such as [\"tensorboard\"], got 'tensorboard'"),
        ("run", ["--set", "model=2024-01-01"], "'2024-01-01'"),
        ("run", ["--set", "method=mixout(0.9)"], "got 'method', which its tasks or methods name themselves"),
        ("run", ["--pilot", "--until-width", "1"], "either --pilot or --until-width"),
        ("run", ["--until-width", "1", "--looks", "0"], "looks >= 1, got 0"),
        ("run", ["--until-width", "-1"], "width > 0 in points"),
        ("export", ["--output", "runs.xlsx"], ".csv or .parquet"),
        ("export", [], "ledger, which does not exist; run the study first"),
        ("report", ["--scores", "runs.csv"], "either a study FILE or --scores"),
        ("report", ["--unit", "percent"], "--unit only with --scores"),
        ("report", ["--margin", "0"], "run the study first"),
        ("report", [], "ledger, which does not exist; run the study first"),
        ("pln", [], "did you mean 'plan'"),
        ("run", ["--keep", "bast"], "did you mean 'best'"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(study, step, words, said, tmp_path, monkeypatch, capsys):
    def never(*_, **__):
        raise AssertionError("nothing is to run")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(executors, "finetune", never)
    assert study(step, *words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    error = printed.err.splitlines()[-1]
    assert error.startswith("mixout: error: ")
    assert said in error


def test_options_that_need_a_file(study, capsys):
    assert study("status", "--restarts", "3", file=None) == 2
    assert "name the FILE" in capsys.readouterr().err
    assert study("status", file=None) == 0
    assert "no runs in" in capsys.readouterr().out


def test_a_folder_may_be_called_like_a_number(study, tiny_bert, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("1e3").symlink_to(tiny_bert)
    assert study("plan", "--set", "model=1e3") == 0
    assert study("plan", "--set", 'model="1e3"') == 0
    capsys.readouterr()


def test_of_an_error_of_several_lines_the_first_is_shown(study, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("CUDA error: boom\nCompile with a flag\n")

    monkeypatch.setattr(executors, "finetune", fails)
    assert study("run", "--restarts", "1", "--retries", "0") == 1
    assert capsys.readouterr().err.count("after 1 attempt: RuntimeError: CUDA error: boom, ") == 2
    assert study("status") == 0
    assert capsys.readouterr().out.count(": RuntimeError: CUDA error: boom\n") == 2


def test_an_error_of_a_run_ends_the_study(study, capsys, monkeypatch):
    def wrong(*_, **__):
        raise InputError("expected max_length <= 16")

    monkeypatch.setattr(executors, "finetune", wrong)
    assert study("run") == 2
    assert capsys.readouterr().err == "mixout: error: expected max_length <= 16\n"


def test_each_method_at_its_own_best_rate(study_file, tmp_path, capsys):
    file, ledger = tmp_path / "best.toml", str(tmp_path / "ledger")
    text = Path(study_file).read_text().replace("restarts = 2", 'restarts = 3\nrate = "best"\nsearch = 1')
    file.write_text(text + "\n[factors]\nlearning_rate = [0.01, 0.02]\n")
    assert main(["study", "plan", str(file), "--ledger", ledger]) == 0
    said = capsys.readouterr().out
    assert "at the best rate of each method" in said
    assert "4 runs, of 1 task x 2 methods x 2 of learning_rate x 3 restarts" in said
    # Two of the three restarts are compared, at one rate.
    assert "with 2 restarts the test of 1 comparison cannot show" in said
    assert said.count("so set restarts to 7") == 1
    assert main(["study", "run", str(file), "--ledger", ledger]) == 0
    assert capsys.readouterr().out.startswith("8 runs in this call")  # 2 x 2 to search, 2 x 2 to judge
    assert main(["study", "run", str(file), "--ledger", ledger]) == 0
    assert capsys.readouterr().out.startswith("0 runs in this call")
    report = tmp_path / "report"
    assert main(["study", "report", str(file), "--ledger", ledger, "--output-dir", str(report)]) == 0
    summary = json.loads((report / "summary.json").read_text())
    assert [(cell["n"], cell["factors"]) for cell in summary["cells"]] == [(2, {}), (2, {})]
    assert sum("the best of 2 over restarts 0 to 0" in note for note in summary["notes"]) == 2


def test_the_plan_names_methods_that_are_the_same(study, study_file, tmp_path, capsys):
    text = Path(study_file).read_text().partition("[[method]]")[0].replace('baseline = "dropout(0.0)"\n', "")
    names = ("plain", "dropout(0.1)", "dropout(0.0)", "mixout(0.5)")
    twins = tmp_path / "twins.toml"
    twins.write_text(text + "".join(f'[[method]]\nname = "{name}"\n' for name in names))
    assert study("plan", file=str(twins)) == 0
    assert capsys.readouterr().out.count("plain and dropout(0.1) are the same here") == 1
    twins.write_text(text + "".join(f'[[method]]\nname = "{name}"\n' for name in names[1:]))
    assert study("plan", file=str(twins)) == 0
    assert "the same here" not in capsys.readouterr().out


def test_a_setting_that_no_run_would_have_is_refused(study, study_file, demo_file, tmp_path, capsys):
    for step in ("plan", "run", "status", "report"):
        assert study(step, "--set", "learning_rate=1e-5", file=demo_file) == 2
        assert "got 'learning_rate', a factor; edit the file" in capsys.readouterr().err
    own = tmp_path / "own.toml"
    text = Path(study_file).read_text().replace('baseline = "dropout(0.0)"\n', "")
    own.write_text(text.replace("[[method]]\n", "[[method]]\nweight_decay = 0.01\n"))
    assert study("plan", "--set", "weight_decay=0.5", file=str(own)) == 2
    assert "got 'weight_decay', which its tasks or methods name" in capsys.readouterr().err
    own.write_text(text.replace("[[method]]\n", "[[method]]\nweight_decay = 0.01\n", 1))
    assert study("plan", "--set", "weight_decay=0.5", file=str(own)) == 0  # the other method has it
