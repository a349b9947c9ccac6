"""Several labels a row, and a tag for each word: from files to answers, against counts by hand and sklearn."""

from __future__ import annotations

import csv
import json
import math
import random
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from tests.conftest import WORDS
from tests.finetune.conftest import write
from torch import nn

from mixout.errors import InputError
from mixout.finetune import metrics
from mixout.finetune.batches import DevSet, encode
from mixout.finetune.data import describe
from mixout.finetune.outcome import constant_losses
from mixout.finetune.predict import predict
from mixout.finetune.record import Record
from mixout.finetune.tasks import Columns, Split, load_task
from mixout.finetune.tasks.tables import read_conll
from mixout.finetune.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")


def spans(tags: list[str]) -> set[tuple[str, int, int]]:
    """Entities by a regular expression over the tags as letters; types have one letter."""
    text = "".join("O." if tag == "O" else tag.replace("-", "") for tag in tags)
    found = re.finditer(r"(?:B|I)(\w)(?:I\1)*", text)
    return {(one[1], one.start() // 2, one.end() // 2) for one in found if one.start() % 2 == 0}


def test_entities_are_seqevals():
    # The example of seqeval's README, whose F1 is 0.50.
    tags = ("O", "B-MISC", "I-MISC", "B-PER", "I-PER")
    true = [[0, 0, 0, 1, 2, 2, 0], [3, 4, 0]]
    got = [[0, 0, 1, 2, 2, 2, 0], [3, 4, 0]]
    scores = metrics.compute(["entity_f1", "accuracy"], got, true, classes=5, tags=tags)
    assert scores == {"entity_f1": 0.5, "accuracy": 0.8}
    draw = random.Random(0)
    for _ in range(300):
        row = draw.choices(["O", "B-X", "I-X", "B-Y", "I-Y"], k=draw.randint(1, 8))
        assert metrics.entities(row) == spans(row), row
    one = metrics.compute(["entity_f1"], [[0]], [[0]], classes=5, tags=tags)
    assert one == {"entity_f1": 0.0}  # nothing to find, nothing found


def test_several_labels_score_as_sklearn_and_the_best_constant_is_found():
    draw = np.random.default_rng(0)
    got, true = ((draw.random((40, 4)) < (0.7, 0.5, 0.2, 0.1)).astype(int) for _ in range(2))
    scores = metrics.compute(metrics.MULTI_LABEL, got, true, classes=4)
    assert scores["micro_f1"] == pytest.approx(f1_score(true.ravel(), got.ravel()))
    assert scores["accuracy"] == pytest.approx(np.mean([(a == b).all() for a, b in zip(got, true, strict=True)]))
    every = [np.array([[code >> bit & 1 for bit in range(4)]] * 40) for code in range(16)]
    best = max(f1_score(true.ravel(), answer.ravel()) for answer in every)
    assert metrics.chance("micro_f1", true.tolist(), classes=4) == pytest.approx(best)
    equal = max((answer == true).all(axis=1).mean() for answer in every)
    assert metrics.chance("accuracy", true.tolist(), classes=4) == pytest.approx(equal)
    tags = ("O", "B-X", "I-X")
    assert metrics.chance("entity_f1", [(1, 0), (1, 2), (1,)], classes=3, tags=tags) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["joy, fear", "joy", "fear", "very good"], ","),
        (["joy|fear", "joy", "fear", "very good"], "|"),
        (["['joy', 'fear']", "['joy']", "[fear]", '["very good"]'], ","),
        (["very good;joy", "joy;fear", "fear", "very good"], ";"),
    ],
)
def test_what_separates_labels_is_found_and_said(tmp_path, cells, separator):
    for name in ("train", "dev"):
        with (tmp_path / f"{name}.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows([("text", "label"), *((f"{name} {cell}", cell) for cell in [*cells, "[]"])])
    task = load_task(str(tmp_path), columns=Columns(holds="labels"))
    assert task.labels == ("fear", "joy", "very good")
    meant = [{name for name in task.labels if name in cell} for cell in cells]
    read = [{name for name, has in zip(task.labels, row, strict=True) if has} for row in task.train.label]
    assert read == [*meant, set()]
    line = describe(task)[1]
    assert line.startswith(
        f"3 labels, {sum(map(len, meant)) / 5:.1f} a row, read from cells with {separator!r} between them; in "
    )


def test_refusals_of_several_labels_say_what_to_do(settings, tmp_path, moods, names):
    write(tmp_path / "one/train.jsonl", [{"text": "a", "label": "joy"}, {"text": "b", "label": "fear"}])
    write(tmp_path / "one/dev.jsonl", [{"text": "c", "label": "joy"}])
    with pytest.raises(InputError, match=r"several labels in some rows, .* leave out --multi-label"):
        load_task(str(tmp_path / "one"), columns=Columns(holds="labels"))
    write(tmp_path / "one/train.jsonl", [{"text": "a", "label": ["joy"]}, {"text": "b", "label": None}])
    with pytest.raises(
        InputError, match=r"expected labels in column 'label', got an empty cell; .* none of the labels"
    ):
        load_task(str(tmp_path / "one"))
    write(tmp_path / "one/train.jsonl", [{"text": "a", "label": ["joy"]}, {"text": "b", "label": []}])
    write(tmp_path / "one/dev.jsonl", [{"text": "c", "label": ["joy", "pride"]}])
    with pytest.raises(
        InputError, match=r"a label that also occurs in the training rows \(joy\), got \('joy', 'pride'\)"
    ):
        load_task(str(tmp_path / "one"))
    with pytest.raises(InputError, match="words with tags need --task-type token-classification"):
        load_task(str(names))
    write(tmp_path / "one/train.jsonl", [{"text": ["a", "b"], "label": ["O"]}])
    (tmp_path / "t.conll").write_text("Ada B-PER\nLovelace\n")
    with pytest.raises(InputError, match=r"t\.conll, line 2: expected a word and its tag"):
        load_task(str(tmp_path / "t.conll"), columns=Columns(holds="tags"))
    with pytest.raises(InputError, match="a list in column 'label' with a tag for each word"):
        load_task(str(tmp_path / "one"), columns=Columns(holds="tags"))
    for changes, words in (
        ({"task": moods, "class_weights": "balanced"}, "class_weights=none for several labels a row"),
        ({"task": moods, "label_smoothing": 0.1}, r"label_smoothing=0.0 for several labels a row"),
        ({"task": moods, "method": "anchor_decay(1, fisher=8)"}, "rows with one label"),
        ({"task": moods, "method": "output_anchor(1)"}, "on=hidden for several labels a row"),
        ({"task": names, "task_type": "token-classification", "class_weights": "balanced"}, "for tags of words"),
        ({"task": names, "task_type": "token-classification", "multi_label": True}, "neither multi_label nor"),
        ({"task_type": "causal-lm", "multi_label": True}, "expected multi_label only with labelled text"),
    ):
        with pytest.raises(InputError, match=words):
            finetune(settings(**changes), tmp_path / "out")


def test_several_labels_are_learned_saved_and_predicted(settings, moods, tmp_path):
    lines: list[str] = []
    chosen = settings(task=moods, epochs=30.0, max_length=16, method="plain", evaluate="end")
    record = finetune(chosen, tmp_path / "out", report=lines.append)
    assert record.metric == "micro_f1"
    assert record.score > record.chance + 0.15
    assert any(re.match(r"3 labels, \d\.\d a row; in training rows: '\w+( good)?' \(\d+\), ", line) for line in lines)
    assert Record.read(tmp_path / "out").predictions == record.predictions
    card = (tmp_path / "out/README.md").read_text()
    assert "3 labels, several a row" in card
    # The loss of a constant answer, by torch.
    task = load_task(str(moods))
    train, dev = (torch.tensor(part.label).double() for part in (task.train, task.dev))
    losses = [nn.functional.binary_cross_entropy(train.mean(0).expand_as(part), part) for part in (train, dev)]
    assert constant_losses(task) == pytest.approx([float(one) for one in losses])
    # Answers for the dev rows are those of the run, whichever way the file writes its labels.
    rows = [json.loads(line) for line in (moods / "dev.jsonl").read_text().splitlines()]
    assert f"micro_f1 {record.score:.4f}" in predict(tmp_path / "out", moods / "dev.jsonl", tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as handle:
        written = list(csv.DictReader(handle))
    for row, true, answer in zip(written, rows, record.predictions, strict=True):
        said = json.loads(row["prediction"])
        assert said == [name for name, is_said in zip(record.labels, answer, strict=True) if is_said]
        assert said == [name for name in record.labels if float(row[f"probability of {name}"]) > 0.5]
        assert json.loads(row["label"]) == true["label"]
    apart = [row | {"label": "; ".join(row["label"]) or "[]"} for row in rows]
    assert f"micro_f1 {record.score:.4f}" in predict(
        tmp_path / "out", write(tmp_path / "apart.jsonl", apart), tmp_path / "p.csv"
    )


def test_tags_are_learned_saved_and_predicted(settings, names, tmp_path):
    lines: list[str] = []
    chosen = settings(task=names, task_type="token-classification", epochs=10.0, max_length=16)
    record = finetune(chosen, tmp_path / "out", report=lines.append)
    assert record.metric == "entity_f1"
    assert record.score > max(0.6, record.chance)
    assert any(line.startswith("3 tags of ") and "training words: 'O' (" in line for line in lines)
    card = (tmp_path / "out/README.md").read_text()
    assert "AutoModelForTokenClassification" in card
    assert "pipeline_tag: token-classification" in card
    task = load_task(str(names), columns=Columns(holds="tags"))
    flat = np.bincount([tag for row in task.train.label for tag in row])
    assert constant_losses(task)[0] == pytest.approx(-(flat * np.log(flat / flat.sum())).sum() / flat.sum())
    # The same task by a file with a word a line.
    for name in ("train", "dev"):
        rows = [json.loads(line) for line in (names / f"{name}.jsonl").read_text().splitlines()]
        pieces = ["\n".join(map(" ".join, zip(row["text"], row["label"], strict=True))) for row in rows]
        (tmp_path / "conll").mkdir(exist_ok=True)
        (tmp_path / f"conll/{name}.conll").write_text("-DOCSTART- -X-\n\n" + "\n\n".join(pieces) + "\n")
    other = load_task(str(tmp_path / "conll"), columns=Columns(holds="tags"))
    assert other.fingerprint() == task.fingerprint()
    found = predict(tmp_path / "out", tmp_path / "conll/dev.conll", tmp_path / "p.csv")
    assert f"entity_f1 {record.score:.4f}" in found
    with (tmp_path / "p.csv").open() as handle:
        said = [json.loads(row["prediction"]) for row in csv.DictReader(handle)]
    assert said == [[record.labels[one] for one in row] for row in record.predictions]
    # What is cut has no tag, and is not scored.
    write(tmp_path / "long.jsonl", [{"text": [WORDS[0]] * 20, "label": ["B-X"] * 20}])
    assert "1 text was cut after 16 tokens" in predict(tmp_path / "out", tmp_path / "long.jsonl", tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as handle:
        [row] = csv.DictReader(handle)
    assert json.loads(row["prediction"])[13:] == [json.loads(row["prediction"])[13], *[None] * 6]
    with pytest.raises(InputError, match="a list of words in column 'text'"):
        predict(tmp_path / "out", write(tmp_path / "t.jsonl", [{"text": "a b"}]), tmp_path / "p.csv")


def test_a_constant_answer_is_scored_on_the_words_that_a_model_reads(settings, tmp_path):
    """Long rows end with one tag, which is cut."""
    rows = [{"text": ["bata", "dota"] * 2 + ["kita"] * 20, "label": ["A", "B"] * 2 + ["O"] * 20}] * 8
    for name in ("train", "dev"):
        write(tmp_path / f"{name}.jsonl", rows)
    chosen = settings(task=tmp_path, task_type="token-classification", max_length=6, epochs=0.5, metric="accuracy")
    record = finetune(chosen, tmp_path / "out")
    assert record.chance == 0.5  # of four words that are left


def test_a_tag_lies_on_the_first_token_of_its_word_and_the_loss_is_the_mean_over_words(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "b": 2, "##b": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[UNK]")
    rows = [{"text": ["abb", "a", "bb"], "label": ["B-X", "O", "O"]}, {"text": ["a"], "label": ["O"]}]
    for name in ("train", "dev"):
        write(tmp_path / f"d/{name}.jsonl", rows)
    task = load_task(str(tmp_path / "d"), columns=Columns(holds="tags"))
    examples = encode(task.dev, tokenizer, 5)
    assert [one["labels"] for one in examples] == [[0, -100, -100, 1, 1], [1]]
    dev = DevSet(task, examples)
    outputs = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    scores = dev.score(outputs.numpy())
    losses = -outputs.log_softmax(-1)
    by_hand = (losses[0, 0, 1] + losses[1, 0, 0] + losses[1, 3, 1] + losses[1, 4, 1]) / 4
    assert scores["loss"] == pytest.approx(float(by_hand), rel=1e-6)
    best = outputs.argmax(-1)
    assert dev.predictions == (tuple(best[1, [0, 3, 4]].tolist()), (int(best[0, 0]),))
    assert math.isfinite(scores["accuracy"])


@pytest.mark.parametrize("kind", ["GPT2", "Roberta", "Qwen2", "plain"])
def test_words_of_byte_level_tokenizers_are_those_of_a_sentence(kind):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    sentence = "the newest of the lower houses in the newest of worlds"
    trained = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([sentence] * 9, trained)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>"}
    if kind == "plain":
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)
    else:
        words = json.loads(core.to_str())["model"]
        tokenizer = getattr(transformers, f"{kind}TokenizerFast")(
            vocab=words["vocab"], merges=[tuple(one) for one in words["merges"]], **special
        )
    words = sentence.split()
    split = Split(text=(tuple(words),), label=(tuple(range(len(words))),))
    [example] = encode(split, tokenizer, 64)
    # The tokens of the sentence itself, with a label where the letter of a blank begins a word.
    tokens = tokenizer.tokenize(f" {sentence}")
    found = tokenizer.convert_ids_to_tokens(example["input_ids"])
    start = found.index(tokens[0])
    assert found[start : start + len(tokens)] == tokens
    assert [at for at, label in enumerate(example["labels"]) if label != -100] == [
        start + at for at, token in enumerate(tokens) if token[0] == "\u0120"
    ]
    assert [label for label in example["labels"] if label != -100] == list(range(len(words)))


@pytest.mark.sweep
def test_choose_and_a_study_take_both_kinds(names, moods, settings, tmp_path):
    from mixout.choose import parts, verdict
    from mixout.choose.search import Candidate, Search, Trained
    from mixout.study.identity import Inputs

    for chosen in (settings(task=moods), settings(task=names, task_type="token-classification")):
        task, own_dev = parts.training_rows(chosen)
        assert own_dev
        rows = parts.split(task, 0)
        assert sorted(row for part in rows for row in part) == list(range(80))
        folder = parts.write(task, rows, tmp_path / task.name, chosen)[0]
        again, _ = parts.training_rows(settings(task=str(folder), task_type=chosen.task_type))
        assert again.kind == task.kind
        # A candidate that is always right.
        search = Search(
            lambda _, part, __, task=task, rows=rows: Trained(
                score=1.0, predictions=tuple(task.train.label[row] for row in rows[part]), seconds=1.0
            ),
            500.0,
            Candidate("plain", 1e-3),
            lambda _: None,
        )
        finalists = search.through(["mixout(0.5)"], lambda _: 1e-3)
        worth = verdict.expected(search, finalists, task, rows)
        assert (worth.value.value, worth.default, worth.gain.value) == (1.0, 1.0, 0.0)
        assert worth.rows == sum(len(rows[part]) for part in (2, 3, 4))
        metric, chance = Inputs().goal(chosen)
        assert (metric, 0 <= chance < 1) == (task.metric, True)


@pytest.mark.parametrize("comment", ["# id 1f domain=en", "# sent_id = 7\n# text = Ada came"])
def test_comments_before_a_sentence_are_no_words(comment, tmp_path):
    file = tmp_path / "t.conll"
    file.write_text(f"{comment}\nAda _ _ B-PER\n# _ _ O\n\n# _ _ O\nsaw _ _ O\n\n{comment}\n")
    table = read_conll(file)
    assert table.columns == {"text": [["Ada", "#"], ["#", "saw"]], "label": [["B-PER", "O"], ["O", "O"]]}
    file.write_text(f"{comment}\nAda\n#\n")
    assert read_conll(file).columns == {"text": [["Ada", "#"]]}
