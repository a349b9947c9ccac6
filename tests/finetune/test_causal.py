"""Windows, losses and scores of language models, against the model on one unpadded document at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from mixout.errors import InputError
from mixout.finetune.batches import collate
from mixout.finetune.causal import DevTexts, encode
from mixout.finetune.tasks import Split as Documents
from mixout.finetune.tasks import Task as Corpus

pytestmark = pytest.mark.usefixtures("one_thread")
BOS, EOS = 0, 1


@pytest.fixture
def tokenizer(tiny_llama) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_llama)


class Numbers:
    """A tokenizer of texts that list their tokens; begins and ends a text as it is told to."""

    def __init__(self, bos: int | None = None, eos: int | None = None, *, ends: bool = False) -> None:
        self.eos_token_id, self.bos, self.ends = eos, bos, ends

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        def tokens(text: str) -> list[int]:
            special = add_special_tokens and self.bos is not None
            closing = [self.eos_token_id] if add_special_tokens and self.ends else []
            return ([self.bos] if special else []) + [int(word) for word in text.split()] + closing

        return {"input_ids": [tokens(text) for text in texts]}


@given(length=st.integers(1, 40), prompt=st.integers(0, 20), window=st.integers(2, 15), bos=st.booleans())
def test_every_token_is_predicted_once_whatever_the_window(length, prompt, window, bos):
    text = " ".join(str(10 + k) for k in range(length))
    asked = None if prompt == 0 else (" ".join(str(100 + k) for k in range(prompt)),)
    part = Documents(text=(text,), prompt=asked)
    windows = encode(part, Numbers(BOS if bos else None, EOS), window)
    whole = ([BOS] if bos else []) + [100 + k for k in range(prompt)] + [10 + k for k in range(length)] + [EOS]
    # What is predicted, from what: (context token, target), over all windows.
    seen = []
    for one in windows:
        assert 2 <= len(one["input_ids"]) == len(one["labels"]) <= window
        assert one["labels"][0] == -100
        for k in range(1, len(one["labels"])):
            if one["labels"][k] != -100:
                assert one["labels"][k] == one["input_ids"][k]
                seen.append((one["input_ids"][k - 1], one["labels"][k]))
    first = max(1, prompt + bos if prompt else 1)
    assert seen == [(whole[k - 1], whole[k]) for k in range(first, len(whole))]


def test_the_end_token_is_written_once_and_never_behind_a_prompt():
    part = Documents(text=("5 6",), prompt=("7 8",))
    for tokenizer in (Numbers(BOS, EOS), Numbers(BOS, EOS, ends=True)):
        (window,) = encode(part, tokenizer, 20)
        assert window == {"input_ids": [BOS, 7, 8, 5, 6, EOS], "labels": [-100] * 3 + [5, 6, EOS], "document": 0}
        (window,) = encode(Documents(text=("5 6",)), tokenizer, 20)
        assert window["input_ids"] == [BOS, 5, 6, EOS]
    (window,) = encode(Documents(text=("5 6",)), Numbers(), 20)
    assert window["input_ids"] == [5, 6]
    assert encode(Documents(text=()), Numbers(), 20) == []


@pytest.mark.parametrize("part", [Documents(text=("4 5", "6")), Documents(text=("4", ""), prompt=("1", "2"))])
def test_documents_in_which_nothing_can_be_predicted_are_refused(part):
    with pytest.raises(InputError, match=f"got {part.text[1]!r}; remove it"):
        encode(part, Numbers(), 8)


def reference(model: Any, tokenizer: Any, prompt: str | None, text: str, window: int) -> tuple[float, int]:
    """Sum of -log p and number of predicted tokens: by hand, a document at a time, in windows without padding."""
    before = [BOS] if prompt is None else [BOS, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    whole = [*before, *tokenizer(text, add_special_tokens=False)["input_ids"], EOS]
    total, count = 0.0, 0
    for start in range(0, len(whole) - 1, window - 1):
        ids = torch.tensor([whole[start : start + window]])
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0].double().log_softmax(-1)
        for k in range(1, ids.shape[1]):
            if start + k >= len(before):
                total -= logp[k - 1, ids[0, k]].item()
                count += 1
    return total, count


@pytest.mark.parametrize("asked", [False, True])
def test_loss_and_scores_are_those_of_unpadded_documents(tiny_llama, tiny_text, tokenizer, asked):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    texts = (Path(tiny_text) / "dev.txt").read_text().strip().split("\n\n")
    prompts = tuple(text.rpartition(" ")[0] for text in texts) if asked else None
    dev, old = Documents(text=tuple(texts), prompt=prompts), Documents(text=tuple(texts[:4]))
    corpus = Corpus(name="c", train=dev, dev=dev, original=old, metric="log_likelihood", source="")
    judge = DevTexts(corpus, encode(dev, tokenizer, 7), encode(old, tokenizer, 7))
    windows = judge.sorted()
    kept, total, count = [], 0.0, 0
    for start in range(0, len(windows), 5):
        batch = collate(windows[start : start + 5])
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch).logits
        kept.append(judge.keep((logits,), labels))
        total += judge.total(logits, labels).item()
        count += int(judge.parts(labels))
    scores = judge.score(torch.cat(kept).numpy())

    each = [reference(model, tokenizer, prompts[k] if prompts else None, text, 7) for k, text in enumerate(texts)]
    every = [reference(model, tokenizer, None, text, 7) for text in texts[:4]]
    new, before = (sum(pair[0] for pair in found) / sum(pair[1] for pair in found) for found in (each, every))
    assert scores["loss"] == pytest.approx(new, rel=1e-5)
    assert scores["log_likelihood"] == -scores["loss"]
    assert scores["perplexity"] == pytest.approx(math.exp(new), rel=1e-4)
    assert scores["original_log_likelihood"] == pytest.approx(-before, rel=1e-5)
    assert scores["original_perplexity"] == pytest.approx(math.exp(before), rel=1e-4)
    assert judge.predictions == pytest.approx([-a / b for a, b in each], rel=1e-5)
    # A ratio of two sums: its jackknife, document by document.
    loss, tokens = np.array(each).T
    without = -(loss.sum() - loss) / (tokens.sum() - tokens)
    error = math.sqrt((len(each) - 1) / len(each) * ((without - without.mean()) ** 2).sum())
    assert judge.standard_errors()["log_likelihood"] == pytest.approx(error, rel=1e-4)
    assert count == sum(pair[1] for pair in [*each, *every])
    assert total == pytest.approx(sum(pair[0] for pair in [*each, *every]), rel=1e-5)


def test_chance_is_the_best_constant_distribution(tokenizer):
    # It predicts a b </s> a </s>: counts 2, 1, 2 of 5.
    words = ("bata", "bavi")
    dev, old = Documents(text=(" ".join(words), words[0])), Documents(text=(words[0],))
    entropy = -(2 * 0.4 * math.log(0.4) + 0.2 * math.log(0.2))
    for metric, expected in (("log_likelihood", -entropy), ("original_log_likelihood", math.log(0.5))):
        corpus = Corpus(name="c", train=dev, dev=dev, original=old, metric=metric, source="")
        for window in (2, 9):
            judge = DevTexts(corpus, encode(dev, tokenizer, window), encode(old, tokenizer, window))
            assert judge.chance() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("loss", "said"), [(800.0, math.inf), (math.inf, math.inf), (math.nan, math.nan)])
def test_perplexity_may_overflow_and_a_lost_run_has_no_score(loss, said):
    dev = Documents(text=("1 2", "3 4"))
    corpus = Corpus(name="c", train=dev, dev=dev, original=None, metric="log_likelihood", source="")
    judge = DevTexts(corpus, encode(dev, Numbers(), 9), [])
    scores = judge.score(np.array([[loss, 1.0], [loss, 1.0]], dtype=np.float32))
    assert scores["perplexity"] == pytest.approx(said, nan_ok=True)
    assert math.isnan(scores["log_likelihood"]) != (loss == 800.0)
    assert scores.keys() == {"loss", "log_likelihood", "perplexity"}
    assert judge.standard_errors().keys() <= {"log_likelihood"}  # what is finite
