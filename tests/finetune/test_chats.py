"""What is learned of a conversation, against TRL's SFTTrainer and against what the words say."""

from __future__ import annotations

import json
from typing import Any

import datasets
import pytest
import torch
import transformers
import trl

from mixout.errors import InputError
from mixout.finetune.batches import collate
from mixout.finetune.causal import encode
from mixout.finetune.tasks import Split as Documents
from mixout.finetune.train import finetune

# TRL's use of transformers' old names.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::FutureWarning")]

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}luta BEGIN{{ m.content }} </s>END"
    "{% else %}kita {{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}luta {% endif %}"
)
MARKED = TEMPLATE.replace("BEGIN", " {% generation %}").replace("END", "{% endgeneration %} ")
PLAIN = TEMPLATE.replace("BEGIN", " ").replace("END", " ")
CHATS = [
    [
        {"role": "user", "content": "bata bavi"},
        {"role": "assistant", "content": "dota"},
        {"role": "user", "content": "bapo"},
        {"role": "assistant", "content": "dovi dota"},
    ],
    [{"role": "system", "content": "bavi"}, {"role": "assistant", "content": "bata"}],
]
PART = Documents(text=tuple(map(json.dumps, CHATS)), chat=True)


def of_trl(model: str, tokenizer: Any, place: Any, *, assistant_only: bool) -> list[dict[str, list[int]]]:
    """Tokens and labels as SFTTrainer makes them."""
    args = trl.SFTConfig(
        output_dir=str(place), assistant_only_loss=assistant_only, max_length=None, report_to="none", use_cpu=True
    )
    rows = datasets.Dataset.from_list([{"messages": chat} for chat in CHATS])
    trainer = trl.SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(CHATS))])
    mask = batch["attention_mask"].bool()
    # The first token is predicted by nothing: its label has no influence.
    batch["labels"][:, 0] = -100
    return [
        {name: batch[name][row][mask[row]].tolist() for name in ("input_ids", "labels")} for row in range(len(CHATS))
    ]


@pytest.fixture
def tokenizer(tiny_llama) -> Any:
    found = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    found.pad_token = found.eos_token
    return found


@pytest.mark.parametrize("assistant_only", [False, True])
def test_tokens_and_labels_are_those_of_trl(tokenizer, tiny_llama, tmp_path, assistant_only):
    tokenizer.chat_template = MARKED
    expected = of_trl(tiny_llama, tokenizer, tmp_path, assistant_only=assistant_only)
    # Without marks the turns are found in what the template writes.
    for template in (MARKED, PLAIN):
        tokenizer.chat_template = template
        windows = encode(PART, tokenizer, 60, assistant_only=assistant_only)
        assert [{name: one[name] for name in ("input_ids", "labels")} for one in windows] == expected
    batch = collate(windows)
    learned = tokenizer.decode(batch["input_ids"][batch["labels"] != -100])
    assert (learned == "dota </s> dovi dota </s> bata </s>") == assistant_only


def test_what_the_template_cannot_do_is_said(tokenizer):
    # Such as templates that remove the thoughts of earlier turns.
    tokenizer.chat_template = PLAIN.replace("m.content", "('bavi ' if loop.last else '') + m.content")
    encode(PART, tokenizer, 60)
    with pytest.raises(InputError, match=r"\{% generation %\}.*--assistant-only-loss"):
        encode(PART, tokenizer, 60, assistant_only=True)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"that the model's chat template takes, got .*roles must alternate"):
        encode(PART, tokenizer, 60)
    tokenizer.chat_template = PLAIN
    asked = Documents(text=(json.dumps(CHATS[0][:1]),), chat=True)
    with pytest.raises(InputError, match="a token to predict"):
        encode(asked, tokenizer, 60, assistant_only=True)


@pytest.mark.parametrize("assistant_only", [False, True])
@pytest.mark.parametrize("wrong", [[{"type": "text", "text": "bapo"}], None, 3, {"text": "bapo"}, "absent"])
def test_content_that_a_template_does_not_take_is_said(tokenizer, wrong, assistant_only):
    """Each template on its own: some write a number, or what is no text, as if it were one."""
    message = {"role": "user"} | ({} if wrong == "absent" else {"content": wrong})
    row = json.dumps([*CHATS[0], message, CHATS[0][1]])
    part = Documents(text=(PART.text[0], row), chat=True)
    joined = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] }}{% endfor %}"
    for template in (joined, joined.replace("m['content']", "m['content'] | trim"), PLAIN, MARKED):
        tokenizer.chat_template = template
        try:
            tokenizer.apply_chat_template(json.loads(row))
        except Exception:  # whatever Python or jinja says of it
            with pytest.raises(InputError, match="that the model's chat template takes, got ") as caught:
                encode(part, tokenizer, 60, assistant_only=assistant_only)
            assert row[:150] in str(caught.value)
        else:
            assert template != joined


def test_a_run_learns_what_the_assistant_says(causal, tiny_llama, tokenizer, tmp_path):
    """One step of plain SGD is the gradient of transformers' own loss on TRL's labels."""
    tokenizer.chat_template = MARKED
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in CHATS))
    options = {"task": tmp_path, "model": tmp_path / "chat", "original": None, "text_column": "messages"}
    options |= {"method": "plain", "optimizer": "sgd", "learning_rate": 0.5, "warmup": 0.0, "max_grad_norm": 0.0}
    finetune(causal(**options, epochs=1.0, max_length=60, assistant_only_loss=True), tmp_path / "out")
    loss = torch.zeros(())
    labels = of_trl(tiny_llama, tokenizer, tmp_path, assistant_only=True)
    for row in labels:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum")
    (loss / sum(label != -100 for row in labels for label in row["labels"])).backward()
    trained = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(trained[name], parameter.detach() - 0.5 * parameter.grad, rtol=1e-5, atol=1e-6)


def test_other_data_have_no_assistant(causal, settings, tmp_path):
    for chosen in (causal(assistant_only_loss=True), settings(assistant_only_loss=True)):
        with pytest.raises(InputError, match="assistant_only_loss only with conversations"):
            finetune(chosen, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
