from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixout.errors import InputError
from mixout.finetune.tasks import Split as Documents
from mixout.finetune.tasks import few_sample
from mixout.finetune.tasks.files import load_text as load
from mixout.finetune.tasks.files import read_original


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def folder(place: Path, train: str, dev: str, ending: str = "txt") -> Path:
    write(place / f"train.{ending}", train)
    write(place / f"dev.{ending}", dev)
    return place


def test_blank_lines_part_the_documents_of_a_text_file(tmp_path):
    text = "\ufeff\n\n  def f():\n    pass\r\n\r\n \t\n\nsecond line one  \nline two\n\n\n\u2028third\x0c\n \n\n"
    found = read_original(write(tmp_path / "a.txt", text), "text")
    # Indentation and blanks within a document stay; U+2028 and form feeds are no line ends.
    assert found == Documents(text=("  def f():\n    pass", "second line one  \nline two", "\u2028third\x0c"))


def test_rows_hold_documents_or_prompts_with_completions(tmp_path):
    plain = write(tmp_path / "a.jsonl", lines({"text": "one\n\ntwo", "id": 3}, {"text": " three"}))
    assert read_original(plain, "text") == Documents(text=("one\n\ntwo", " three"))
    named = write(tmp_path / "b.csv", 'body,more\n"x, y",1\nz,2\n')
    assert read_original(named, "body") == Documents(text=("x, y", "z"))
    pairs = write(
        tmp_path / "c.jsonl", lines({"completion": "4", "prompt": "2+2="}, {"prompt": "q ", "completion": "a"})
    )
    assert read_original(pairs, "text") == Documents(text=("4", "a"), prompt=("2+2=", "q "))


def test_a_folder_and_the_text_of_the_original_domain(tmp_path):
    place = folder(tmp_path, "one\n\ntwo", "three")
    before = write(tmp_path / "before.jsonl", lines({"text": "old"}))
    corpus = load(place, original=before, column="text", metric=None)
    assert (corpus.train.text, corpus.dev.text, corpus.original) == (
        ("one", "two"),
        ("three",),
        Documents(text=("old",)),
    )
    assert corpus.metric == "log_likelihood"
    assert corpus.metrics == ("log_likelihood", "perplexity", "original_log_likelihood", "original_perplexity")
    assert all(name in corpus.source for name in ("train.txt", "dev.txt", "before.jsonl"))
    alone = load(place, original=None, column="text", metric=None)
    assert alone.metrics == ("log_likelihood", "perplexity")
    assert len({corpus.fingerprint(), alone.fingerprint()}) == 2
    assert load(place, original=before, column="text", metric="original_log_likelihood").metric.startswith("original")


def test_conversations_in_prompt_and_completion_are_named(tmp_path):
    """TRL reads them; here a conversation is one cell."""
    row = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
    with pytest.raises(InputError, match=r"got conversations; put each as a whole into one column, --text-column mess"):
        read_original(write(tmp_path / "chats.jsonl", lines(row)), "text")


def test_a_single_file_is_split_by_text_or_prompt(tmp_path):
    numbers = [f"number {k}" for k in range(100)]
    text = load(write(tmp_path / "a.txt", "\n\n".join(numbers)), original=None, column="text", metric=None)
    assert sorted(text.train.text + text.dev.text) == sorted(numbers)
    assert 10 < len(text.dev) < 30
    rows = [{"prompt": f"question {k % 20}", "completion": f"answer {k}"} for k in range(60)]
    asked = load(write(tmp_path / "b.jsonl", lines(*rows)), original=None, column="text", metric=None)
    assert set(asked.train.prompt or ()).isdisjoint(asked.dev.prompt or ())
    assert len(asked.train) + len(asked.dev) == 60


def test_a_subset_is_drawn_from_its_seed_in_order(tmp_path):
    part = Documents(text=tuple(map(str, range(50))), prompt=tuple(f"q{k}" for k in range(50)))
    first = few_sample(part, 20, 0)
    assert first == few_sample(part, 20, 0) != few_sample(part, 20, 1)
    assert list(map(int, first.text)) == sorted(map(int, first.text))
    assert first.prompt == tuple(f"q{text}" for text in first.text)
    assert few_sample(part, 50, 3) == part
    for size in (0, 51):
        with pytest.raises(InputError, match=f"1 to 50 documents, got {size}"):
            few_sample(part, size, 0)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "", "empty"),
        ("a.txt", "\n \n\n\t\n", "empty"),
        ("a.txt", b"ok\n\nb\xe4d", r"line 3: expected UTF-8, got byte 0xe4"),
        ("a.jsonl", lines({"text": "x"}, {"text": " "}), r"line 2: expected text in column 'text', got an empty cell"),
        ("a.jsonl", lines({"text": "x"}, {"text": 3}), "line 2.*got 3"),
        ("a.jsonl", lines({"body": "x"}), "expected a column 'text', got the columns 'body'"),
        ("a.jsonl", lines({"prompt": "x"}), "expected a column 'text'"),
        ("a.jsonl", lines({"prompt": "x", "completion": "y"}, {"prompt": "x"}), "line 2.*'completion'.*empty cell"),
        ("a.jsonl", lines({"prompt": "x", "completion": "y", "text": "z"}), "either the column 'text' or"),
        ("a.jsonl", '{"text": "x"}\n{"text": ', "line 2: expected a JSON object"),
        ("a.md", "x", r"ends in \.txt, \.csv.*got '\.md'"),
        ("a.txt", "one document", "enough different documents"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, name, content, said):
    with pytest.raises(InputError, match=said):
        load(write(tmp_path / name, content), original=None, column="text", metric=None)


def test_bad_folders_originals_and_metrics(tmp_path):
    place = folder(tmp_path, "one", "two")
    for metric, said in (
        ("perplexity", "log_likelihood.*higher is better"),
        ("accuracy", "for a causal language model, got 'accuracy'"),
        ("original_log_likelihood", "give --original"),
    ):
        with pytest.raises(InputError, match=said):
            load(place, original=None, column="text", metric=metric)
    for original in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(InputError, match="expected original as a file"):
            load(place, original=original, column="text", metric=None)
    write(place / "train.jsonl", lines({"text": "x"}))
    with pytest.raises(InputError, match=r"one file train .*got train\.jsonl, train\.txt"):
        load(place, original=None, column="text", metric=None)
