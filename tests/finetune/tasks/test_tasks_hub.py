"""Data sets of the hub, through a loader that reads a folder; shards; conversations."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from mixout.errors import InputError
from mixout.finetune import causal, data
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Split, files, load_task
from mixout.finetune.tasks.files import Columns


def rows(count: int) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    texts, labels = [f"text {n}" for n in range(count)], [n % 2 for n in range(count)]
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as the hub stores it: shards of parquet files."""
    data = tmp_path / "repository" / "data"
    data.mkdir(parents=True)
    for split, count in (("train", 20), ("test", 6)):
        for shard in range(2):
            part = rows(count).shard(2, shard, contiguous=True)
            part.to_parquet(data / f"{split}-{shard:05}-of-00002.parquet")
    load = datasets.load_dataset

    def stand_in(name: str, **options):
        if name != "org/reviews":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        return load(str(tmp_path / "repository"), cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    return tmp_path / "repository"


def test_a_data_set_trains_on_train_and_leaves_test_alone(hub):
    task = load_task("org/reviews")
    assert (task.name, task.labels) == ("org/reviews", ("neg", "pos"))
    texts = {*task.train.text, *task.dev.text}
    assert texts == set(rows(20)["text"])
    assert "on the hub" in task.source


def test_splits_can_be_named(hub):
    task = load_task("org/reviews:train,test")
    assert (len(task.train), len(task.dev)) == (20, 6)
    assert task.dev.label == tuple(rows(6)["label"])
    assert len(load_task("org/reviews:train[:10]").train) < 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/nothing", "doesn't exist"),
        ("org/reviews:dev", "data set of the hub"),
        ("reviews.csv", "check the path"),
        ("rtee", "did you mean 'rte'"),
        ("org/reviews:train,test,train", "one split, or two"),
    ],
)
def test_what_is_not_there_is_said(hub, name, message):
    with pytest.raises(InputError, match=message):
        load_task(name)


def test_a_wrong_name_in_a_folder_that_exists_is_not_looked_for_on_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "review").mkdir(parents=True)
    with pytest.raises(InputError, match=r"got 'org/reviews'; did you mean 'review'\?"):
        load_task("org/reviews")
    with pytest.raises(InputError, match=r"folder or file with text .* got 'org/reviews'"):
        data.load(Settings(task="org/reviews", task_type="causal-lm"))
    assert len(load_task("org/reviews:train,test").dev) == 6


def test_a_language_model_reads_it_too(hub):
    part = files.load_text(Path("org/reviews:test"), original=None, column="text", metric=None)
    assert {*part.train.text, *part.dev.text} == set(rows(6)["text"])


def test_a_folder_of_shards_is_one_table(hub, tmp_path):
    (hub / "data" / "test-00000-of-00002.parquet").rename(hub / "data" / "dev-00000-of-00001.parquet")
    task = load_task(str(hub))
    assert task.train.text == tuple(rows(20)["text"])
    assert len(task.dev) == 3
    (hub / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(InputError, match="expected 2 shards of train"):
        load_task(str(hub), columns=Columns(label="label"))


def test_conversations_go_through_the_chat_template(tmp_path, tiny_llama):
    import transformers

    chats = [[{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": "yes"}] for n in range(9)]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    part = files.read_original(file, "messages")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    with pytest.raises(InputError, match="chat template"):
        causal.encode(part, tokenizer, 64)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    encoded = causal.encode(part, tokenizer, 64)
    expected = tokenizer("user question 0 assistant yes ", add_special_tokens=False)["input_ids"]
    assert encoded[0]["input_ids"][: len(expected)] == expected
    assert part.fingerprint() != Split(text=part.text).fingerprint()
    file.write_text('{"messages": [{"role": "user", "content": "a"}]}\n{"messages": ["a"]}\n')
    with pytest.raises(InputError, match="line 2: expected a conversation"):
        files.read_original(file, "messages")


def test_the_column_of_conversations_is_advised_where_no_text_is(tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text('{"id": 1, "messages": []}\n')
    with pytest.raises(InputError, match=r"'messages'; .* name yours with --text-column messages$"):
        files.read_original(file, "text")


def test_a_language_model_task_may_be_a_name_of_the_hub():
    assert Settings(task="org/reviews:train", task_type="causal-lm").task == "org/reviews:train"


def test_columns_within_objects_have_a_name(tmp_path):
    file = tmp_path / "nested.jsonl"
    lines = ({"data": {"review": {"body": f"text {n}"}}, "meta": {"stars": n % 2}} for n in range(20))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = load_task(str(file), columns=Columns(text="data.review.body", label="meta.stars"))
    assert {*task.train.text, *task.dev.text} == {f"text {n}" for n in range(20)}
    assert task.labels == ("0", "1")
