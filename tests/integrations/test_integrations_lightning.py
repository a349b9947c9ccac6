"""The callback in a Trainer of Lightning: schedule, logs, exact resume, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

import mixout
from mixout.errors import AnchorMismatchError, NotAppliedError
from mixout.integrations.lightning import MixoutCallback
from mixout.schedule import LinearRamp

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Advice of Lightning's on workers and intervals, and what it calls of torch.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\)"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*could not find the monitored key"),
]


class Module(lightning.LightningModule):
    def __init__(self, seed: int = 0, method: mixout.Method | None = None, p: float = 0.5) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        mixout.apply_(self.model, method or mixout.Mixout(p))
        self.dropped: list[tuple[bool, ...]] = []
        self.distances: list[float] = []

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        x = batch[0].to(self.dtype)
        loss = (self.model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        self.log("loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.dropped.append(tuple((self.model[0].weight.grad == 0).all(dim=0).tolist()))

    def on_before_zero_grad(self, optimizer: Any) -> None:
        layers = (self.model[0], self.model[2])
        squares = sum((layer.weight - layer._mixed.anchor.tensor).double().square().sum() for layer in layers)
        self.distances.append(squares.sqrt().item())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        torch.rand(())  # a set-up that draws, after the checkpoint was read
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Seen(Logger):
    """Keeps what a logger is handed."""

    name, version = "seen", 0

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[dict[str, float]] = []

    def log_metrics(self, metrics, step=None):
        self.metrics.append(dict(metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


def rows() -> torch.Tensor:
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(1))


def shuffled() -> DataLoader:
    return DataLoader(TensorDataset(rows()), batch_size=4, shuffle=True)


class Resumable:
    """Batches in a fixed order that know how many were taken; draws a number when begun, as a DataLoader does."""

    def __init__(self) -> None:
        self.taken = 0

    def __len__(self) -> int:
        return 3

    def __iter__(self):
        torch.rand(())
        for number in range(self.taken, 3):
            self.taken = (number + 1) % 3
            yield [rows()[4 * number : 4 * number + 4]]

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.taken = state["taken"]


def fit(module, data=None, *, place=None, epochs=4, ckpt_path=None, callbacks=None, every=None, saving=None,
        validation=None, **options) -> None:  # fmt: skip
    saving = [] if place is None else [
        ModelCheckpoint(place, filename="{step}", save_top_k=-1, every_n_train_steps=every,
                        **(saving or {"save_on_train_epoch_end": None if every else True}))
    ]  # fmt: skip
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=place is not None, callbacks=[*(callbacks or [MixoutCallback()]), *saving],
        **({"logger": False} | options),
    )  # fmt: skip
    torch.manual_seed(5)
    trainer.fit(module, data or shuffled(), validation, ckpt_path=ckpt_path)


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_loggers_get_p_and_the_distance_of_the_step_just_done():
    schedule, seen, module = LinearRamp(0.0, 0.8, 8), Seen(), Module()
    fit(
        module, callbacks=[MixoutCallback(schedule=schedule)], logger=seen, log_every_n_steps=2, epochs=4,
        accumulate_grad_batches=1,
    )  # fmt: skip
    found = [entry for entry in seen.metrics if "mixout_p" in entry]
    assert [entry["mixout_p"] for entry in found] == pytest.approx([schedule(step) for step in range(1, 12, 2)])
    # zero_grad follows the step that it closes, or comes first in the next: the distances before and after are there.
    known = torch.tensor([*module.distances, mixout.distance(module).total])
    assert all((known - entry["anchor_distance"]).abs().min() < 1e-5 for entry in found)
    assert found[0]["anchor_distance"] < found[-1]["anchor_distance"]
    assert {entry["loss"] for entry in found}
    assert len(set(module.dropped[4:])) > 2


def test_p_rises_with_optimizer_steps_not_with_micro_batches():
    module, schedule = Module(), LinearRamp(0.0, 0.9, 4)
    fit(module, callbacks=[MixoutCallback(schedule=schedule, log=False)], epochs=2, accumulate_grad_batches=3)
    assert mixout.save_state(module)["p"] == schedule(1)


MOVING = mixout.Mixout(0.5, every=4, anchor_ema=0.5)


@pytest.mark.parametrize("method", [mixout.Mixout(0.5), mixout.Mixconnect(0.3), MOVING], ids=mixout.methods.spell)
def test_an_epochs_checkpoint_goes_on_bit_for_bit(tmp_path, method):
    schedule = LinearRamp(0.0, 0.6, 10)
    whole = Module(method=method)
    fit(whole, place=tmp_path / "whole", callbacks=[MixoutCallback(schedule=schedule)])
    resumed = Module(method=method)
    fit(resumed, ckpt_path=tmp_path / "whole" / "step=6.ckpt", callbacks=[MixoutCallback(schedule=schedule)])
    assert equal(resumed, whole)
    assert mixout.save_state(resumed, tensors=False) == mixout.save_state(whole, tensors=False)
    anchors = [
        layer._mixed.anchor.tensor for module in (resumed, whole) for layer in (module.model[0], module.model[2])
    ]
    assert all(a.equal(b) for a, b in zip(anchors[:2], anchors[2:], strict=True))
    assert resumed.dropped == whole.dropped[6:]


class Validated(Module):
    def validation_step(self, batch: Any, number: int) -> None:
        self.log("others", self.model(batch[0].to(self.dtype)).square().mean())


@pytest.mark.parametrize("length", [{"epochs": 3}, {"epochs": None, "max_steps": 8}], ids=str)
@pytest.mark.parametrize(
    "saves",
    [{"monitor": "others"}, {"save_on_train_epoch_end": True}, {"save_on_train_epoch_end": False}],
    ids=str,
)
def test_the_checkpoint_of_an_epoch_with_validation_goes_on_bit_for_bit(tmp_path, length, saves):
    def run(place, ckpt_path=None):
        module, validation = Validated(), DataLoader(TensorDataset(rows()), batch_size=4)
        fit(module, place=tmp_path / place, saving=saves, validation=validation, ckpt_path=ckpt_path, **length)
        return module

    whole = run("whole")
    resumed = run("resumed", tmp_path / "whole" / "step=3.ckpt")
    assert equal(resumed, whole)
    assert resumed.dropped == whole.dropped[3:]


class Late(Module):
    """Makes and applies where Lightning asks for large models, in the dtype of ``precision``."""

    def configure_model(self) -> None:
        self.model = Module().model


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
@pytest.mark.parametrize("kind", [Module, Late])
def test_a_run_in_another_dtype_goes_on_bit_for_bit(tmp_path, kind, precision):
    """Lightning checks the checkpoint first and casts the module later."""
    whole, resumed = kind(), kind()
    fit(whole, place=tmp_path, precision=precision)
    fit(resumed, precision=precision, ckpt_path=tmp_path / "step=6.ckpt")
    assert {p.dtype for p in resumed.parameters()} == {torch.bfloat16 if precision == "bf16-true" else torch.float64}
    assert equal(resumed, whole)
    assert mixout.save_state(resumed) == mixout.save_state(whole)
    assert mixout.distance(resumed) == mixout.distance(whole)
    assert resumed.dropped == whole.dropped[6:]
    with pytest.raises(AnchorMismatchError, match="call apply_"):
        fit(Module(seed=1), precision=precision, ckpt_path=tmp_path / "step=6.ckpt")


def test_the_distance_of_a_lora_model_is_logged():
    peft = pytest.importorskip("peft")
    module, seen = Module(), Seen()
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, mixout.remove_(module.model))
    mixout.apply_(module.model, mixout.Mixout(0.5))
    module.on_before_zero_grad = module.on_before_optimizer_step = lambda *_: None
    fit(module, logger=seen, log_every_n_steps=1, epochs=1)
    logged = [entry["anchor_distance"] for entry in seen.metrics if "anchor_distance" in entry]
    layer = module.model[0]
    delta = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert logged[-1] == pytest.approx(delta.norm().item(), rel=1e-5)
    assert len(set(logged)) == 3


@pytest.mark.filterwarnings("ignore:Found . module.* in eval mode")  # of Lightning, which does not say what it means
def test_a_model_in_eval_mode_is_told_before_it_trains():
    module = Module()
    module.model.eval()
    with pytest.warns(mixout.EvalModeWarning, match=r"Mixout\(p=0\.5\) does nothing.*call model\.train\(\)") as told:
        fit(module, epochs=8)
    assert [one.category for one in told].count(mixout.EvalModeWarning) == 1


def test_a_seed_counts_in_the_fit_that_follows_a_search_for_the_learning_rate(tmp_path):
    """The search puts a checkpoint of its own back, whose random state is not that of the next fit."""

    def run(seed):
        module = Module()
        module.lr = 0.05
        trainer = lightning.Trainer(
            default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", enable_progress_bar=False, logger=False,
            enable_model_summary=False, enable_checkpointing=False, callbacks=[MixoutCallback()],
        )  # fmt: skip
        lightning.pytorch.tuner.Tuner(trainer).lr_find(module, shuffled(), num_training=4, update_attr=False)
        torch.manual_seed(seed)
        trainer.fit(module, shuffled())
        return module

    assert not equal(run(1), run(2))
    assert equal(run(1), run(1))


@pytest.mark.filterwarnings("ignore::mixout.ZeroDecayWarning")
def test_what_is_logged_can_be_monitored_in_epochs_shorter_than_the_interval(tmp_path):
    module, monitors = (
        Module(method=[mixout.Mixout(0.5), mixout.AnchorDecay(radius=1.0)]),
        ("anchor_distance", "anchor_radius_used"),
    )
    saving = ModelCheckpoint(tmp_path, monitor=monitors[0], mode="max")
    stopping = lightning.pytorch.callbacks.EarlyStopping(monitors[1], mode="max", check_on_train_epoch_end=True)
    fit(module, place=tmp_path, callbacks=[MixoutCallback(), saving, stopping], log_every_n_steps=50)
    assert float(saving.best_model_score) == pytest.approx(mixout.distance(module).total, rel=0.1)
    assert stopping.best_score > 0


def test_adapters_that_came_after_the_method_are_told():
    peft = pytest.importorskip("peft")
    module = Module()
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0"]), module.model)
    with pytest.warns(mixout.FrozenLayersWarning, match="frozen by an adapter that came later"):
        MixoutCallback().on_fit_start(None, module)


def test_a_checkpoint_within_an_epoch_goes_on_bit_for_bit_where_the_data_do(tmp_path):
    whole, resumed = Module(), Module()
    fit(whole, Resumable(), place=tmp_path / "whole", every=2)
    fit(resumed, Resumable(), ckpt_path=tmp_path / "whole" / "step=4.ckpt")
    assert resumed.dropped == whole.dropped[4:]
    assert equal(resumed, whole)


def test_p_without_a_schedule_is_restored(tmp_path):
    whole = Module()
    mixout.set_p_(whole, 0.25)
    fit(whole, place=tmp_path, epochs=2)
    resumed = Module()
    fit(resumed, epochs=2, ckpt_path=tmp_path / "step=3.ckpt")
    assert mixout.save_state(resumed)["p"] == 0.25
    assert equal(resumed, whole)


def test_another_anchor_is_refused(tmp_path):
    fine_tuned = Module()
    fit(fine_tuned, place=tmp_path, epochs=1)
    mixout.apply_(mixout.remove_(fine_tuned).model, mixout.Mixout(0.5))
    for module in (fine_tuned, Module(seed=1)):
        with pytest.raises(AnchorMismatchError, match="call apply_"):
            fit(module, ckpt_path=tmp_path / "step=3.ckpt")


def test_what_cannot_be_checked_is_refused(tmp_path):
    fit(Module(), place=tmp_path, epochs=1, callbacks=[lightning.Callback()])
    with pytest.raises(AnchorMismatchError, match="without MixoutCallback"):
        fit(Module(), ckpt_path=tmp_path / "step=3.ckpt")
    plain = mixout.remove_(Module())
    with pytest.raises(NotAppliedError):
        fit(plain)
    assert plain.global_step == 0


class Anchored(lightning.LightningModule):
    """A classifier whose answers are held, as docs/integrations/lightning.md has it."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
            num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = BertForSequenceClassification(config)

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        batch = dict(zip(("input_ids", "labels"), batch, strict=True))
        outputs = self.model(**batch)
        return outputs.loss + mixout.output_penalty(self.model, batch, outputs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_answers_are_held_as_in_a_loop_with_a_second_model(tmp_path):
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randint(20, (8, 5), generator=generator), torch.randint(3, (8,), generator=generator))
    module, by_hand = Anchored(), Anchored().model
    mixout.apply_(module.model, mixout.OutputAnchor(0.7), where=mixout.ALL)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    lightning.Trainer(max_epochs=3, accumulate_grad_batches=2, default_root_dir=tmp_path, **options).fit(
        module, DataLoader(data, batch_size=2)
    )
    base, optimizer = copy.deepcopy(by_hand).eval(), torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for number, (x, y) in enumerate(3 * [*DataLoader(data, batch_size=2)]):
        outputs, start = by_hand(input_ids=x, labels=y), base(input_ids=x).logits.detach()
        logs = [logits.log_softmax(-1) for logits in (outputs.logits, start)]
        penalty = 0.7 * nn.functional.kl_div(*logs, log_target=True, reduction="batchmean")
        ((outputs.loss + penalty) / 2).backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(module.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
