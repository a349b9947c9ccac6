"""Cases, variants and the plan: what is measured."""

import pytest
import torch

from mixout.bench.cases import CASES, build, find, inputs
from mixout.bench.plan import PAIRS, QUICK_PAIRS, plan
from mixout.bench.runs import compiling, model_of, train_run
from mixout.bench.variants import PLAIN, STEP, Variant
from mixout.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def test_shapes_are_those_of_the_models():
    """Parameters without head and pooler, as published: BERT-base 109 M with 12 layers, BERT-large 335 M."""
    counts = {name: sum(p.numel() for p in build(case, "meta").parameters()) for name, case in CASES.items()}
    head = {"bert-base-12": 768 * 2 + 2, "bert-large": 1024 * 2 + 2}
    assert counts["bert-base-12"] - head["bert-base-12"] == 109_482_240
    assert counts["bert-large"] - head["bert-large"] == 335_141_888
    assert counts["llama-1b"] == 1_235_814_400
    assert {name: case.tokens for name, case in CASES.items()} == {
        "bert-base-3": 4096, "bert-base-12": 4096, "minilm": 512, "bert-large": 4096, "llama-1b": 4096,
    }  # fmt: skip


def test_weights_and_batch_are_always_the_same_and_the_random_state_is_kept(bert):
    before = torch.get_rng_state()
    one, other = build(bert, CPU), build(bert, CPU)
    assert all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(a.equal(b) for a, b in zip(inputs(bert, CPU).values(), inputs(bert, CPU).values(), strict=True))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("variant", [PLAIN, *(v for v in STEP if v.mode == "train")], ids=str)
def test_a_step_of_each_variant_trains(name, variant, request):
    case = request.getfixturevalue(name)
    model = model_of(case, variant, CPU)
    embedding = model.get_input_embeddings().weight
    before = embedding.detach().clone()
    train_run(model, case, plan(names=["minilm"]))()
    assert all(p.grad is None for p in model.parameters())
    assert not embedding.equal(before)  # the gradient has gone through all layers, whatever their masks
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_eval_mode_is_plain_to_the_bit(name, request):
    case = request.getfixturevalue(name)
    (variant,) = (v for v in STEP if v.mode == "eval")
    batch = inputs(case, CPU)
    with torch.no_grad():
        plain = model_of(case, PLAIN, CPU).eval()(**batch)
        mixed = model_of(case, variant, CPU)(**batch)
    assert mixed.logits.equal(plain.logits)


def test_only_training_with_input_units_spares_arithmetic():
    spared = {str(v): v.spared for v in STEP}
    assert spared == {
        "dropout(0.1)": 0, "mixout(0.1)": 0.1, "mixout(0.5)": 0.5, "mixout(0.9)": 0.9, "mixconnect(0.9)": 0,
        "authors(0.9)": 0, "mixout(0.9), bf16 anchor": 0.9, "mixout(0.9), host anchor": 0.9, "mixout(0.9), eval": 0,
    }  # fmt: skip
    assert Variant(method="mixout", p=0.9).spared == 0.9


def test_the_plan_follows_the_machine(monkeypatch: pytest.MonkeyPatch):
    for gpu, names in ((False, ("bert-base-3", "bert-base-12", "minilm")), (True, ("bert-large", "llama-1b"))):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        chosen = plan()
        assert tuple(case.name for case in chosen.cases) == names
        assert chosen.device.type == ("cuda" if gpu else "cpu")
        assert chosen.pairs == PAIRS


def test_the_plan_follows_the_command_line():
    quick = plan(quick=True)
    assert ([case.name for case in quick.cases], quick.pairs) == (["minilm"], QUICK_PAIRS)
    chosen = plan(names=["bert-base-3", "minilm", "minilm"], pairs=4)
    assert ([case.name for case in chosen.cases], chosen.pairs) == (["bert-base-3", "minilm"], 4)
    assert [(case.name, case.batch) for case in chosen.smaller] == [("bert-base-3", b) for b in (4, 8, 16)]
    assert [case.batch for case in plan(names=["llama-1b"]).smaller] == [1, 2]


def test_what_cannot_be():
    with pytest.raises(InputError, match="did you mean 'minilm'"):
        find("minlm")
    with pytest.raises(InputError, match="pairs >= 1, got 0"):
        plan(pairs=0)


def test_graphs_of_all_variants_have_room():
    limit = torch._dynamo.config.recompile_limit
    with compiling(plan(compile=True)):
        assert torch._dynamo.config.recompile_limit > len(STEP) * 2
    assert torch._dynamo.config.recompile_limit == limit
