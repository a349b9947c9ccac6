"""Commands of version 0.1 that are gone say what takes their place."""

import pytest

from mixout import cli


@pytest.mark.parametrize(
    ("command", "instead"),
    [("bench", "make bench"), ("verify", "make verify"), ("dare", "mixout.delta.drop_")],
)
def test_a_command_that_moved_says_where_to(command, instead, capsys):
    assert cli.main([command, "--output-dir", "out"]) == 2
    message = capsys.readouterr().err
    assert f"mixout {command} is no command any more" in message
    assert instead in message


@pytest.mark.parametrize("words", [["--p", "0.9"], ["--method", "mixout", "--p=0.9"]])
def test_an_option_that_is_gone_says_what_to_write(words, capsys):
    assert cli.main(["finetune", "reviews.csv", *words]) == 2
    assert "write p into the method, such as --method 'mixout(0.9)'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["finetune", "--fp16"], "write --precision fp16"),
        (["finetune", "--overwrite_output_dir"], "write --output-dir with another folder"),
        (["study", "run", "table1", "--known", "runs.csv"], "copy the folder runs of the other ledger into this one"),
        (["predict", "a", "b", "--fp16"], "see mixout predict --help"),
        (["predict", "a", "b", "--lr", "1"], "see mixout predict --help"),
    ],
)
def test_an_option_of_another_trainer_is_answered_with_one_that_the_command_has(words, hint, capsys):
    assert cli.main(words) == 2
    assert hint in capsys.readouterr().err
