"""Texts become tokens: pairs whose second text can be told, and how many texts are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from sklearn.utils.class_weight import compute_class_weight
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mixout.errors import InputError
from mixout.finetune.batches import DevSet, cut_texts, encode
from mixout.finetune.tasks import Split, Task

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "<sep>", *"abcdefgh"]


def tokenizer(template=None, **special):
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if template is not None:
        tokens = [(word, number) for number, word in enumerate(WORDS[:5])]
        core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair=template, special_tokens=tokens)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", **special)


def decoded(tokenizer, text, pair, length=64):
    (example,) = encode(Split(text=(text,), pair=(pair,), label=(0,)), tokenizer, length)
    return tokenizer.convert_ids_to_tokens(example["input_ids"])


@pytest.mark.parametrize(
    ("special", "mark"), [({"eos_token": "</s>"}, "</s>"), ({"eos_token": "</s>", "sep_token": "<sep>"}, "<sep>")]
)
def test_a_tokenizer_without_a_template_gets_a_mark_between_the_texts(special, mark):
    assert decoded(tokenizer(**special), "a b", "c d") == ["a", "b", mark, "c", "d"]
    # Where a pair is cut, the longer text loses first, and the mark stays.
    assert decoded(tokenizer(**special), "a b c d e f", "g h", 6) == ["a", "b", "c", mark, "g", "h"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("<s> $A </s> $B </s>", ["<s>", "a", "b", "</s>", "c", "d", "</s>"]),
        ("<s> $A <s> $B", ["<s>", "a", "b", "<s>", "c", "d"]),
        ("<s> $A $B", ["<s>", "a", "b", "</s>", "c", "d"]),  # begins a text, but does not part two
    ],
)
def test_a_template_that_parts_the_texts_is_left_alone(template, expected):
    assert decoded(tokenizer(template, eos_token="</s>", bos_token="<s>"), "a b", "c d") == expected


def test_types_of_tokens_tell_texts_apart_too(tiny_bert):
    bert = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    alone = bert(["bata"], ["dovi"])
    (example,) = encode(Split(text=("bata",), pair=("dovi",), label=(1,)), bert, 16)
    assert example["input_ids"] == alone["input_ids"][0]
    typed = tokenizer()
    typed._tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    typed.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert decoded(typed, "a b", "c d") == ["a", "b", "c", "d"]


def test_a_pair_that_nothing_can_mark_is_refused():
    with pytest.raises(
        InputError, match=r"can mark where the second text of a pair begins.*neither a sep_token nor an eos"
    ):
        decoded(tokenizer(), "a b", "c d")


@pytest.mark.parametrize("length", [2, 3, 5, 8, 9])
@pytest.mark.parametrize("paired", [False, True])
def test_texts_that_are_cut_are_counted(length, paired):
    template = tokenizer("<s> $A </s> $B </s>", eos_token="</s>", bos_token="<s>")
    texts = tuple(" ".join("abcdefgh"[:count]) for count in (1, 3, 3, 6, 7, 8))
    split = Split(text=texts, pair=("a b",) * 6 if paired else None, label=(0,) * 6)
    length += 3 * paired
    # A token a word, two for the template; a pair has two words and one token more.
    whole = [len(text.split()) + 2 + 3 * paired for text in texts]
    examples = encode(split, template, length)
    assert cut_texts(split, examples, template, length) == sum(count > length for count in whole)


def test_balanced_classes_weigh_as_scikit_learn_says_and_only_in_training():
    train = Split(text=tuple("abcdefgh"), label=(0, 0, 0, 0, 0, 1, 1, 2))
    task = Task(train=train, dev=train, labels=("x", "y", "z"), metrics=("f1",), metric="f1", name="t", source="")
    logits, labels = torch.randn(8, 3), torch.tensor(train.label)
    weights = compute_class_weight("balanced", classes=np.arange(3), y=np.array(train.label))
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    plain, balanced = DevSet(task, []), DevSet(task, [], balanced=True)
    expected = (losses.double() * torch.tensor(weights)[labels]).sum()
    assert balanced.total(logits, labels, training=True).item() == pytest.approx(expected.item(), rel=1e-6)
    assert balanced.total(logits, labels).item() == plain.total(logits, labels).item() == pytest.approx(losses.sum())
