"""benchmarks/bench.py goes through every row on tiny models; no time is asserted."""

from __future__ import annotations

import doctest
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import authors
import bench
import mixout
import models
import pairs
import parts
import table
from authors import AuthorsLinear, apply_authors_, expanded_mix
from mixout import dropouts, passes
from mixout.ops import reference
from models import CASES, PLAIN, Setting, build, count, inputs

pytestmark = [pytest.mark.sweep, pytest.mark.usefixtures("one_thread")]
CPU = torch.device("cpu")
BERT = replace(
    CASES["minilm"], width=16, intermediate=24, heads=4, key_heads=4, layers=2, vocabulary=40, batch=4, length=6
)
LLAMA = replace(
    CASES["llama-1b"], width=16, intermediate=24, heads=4, key_heads=2, layers=2, vocabulary=40, batch=2, length=8
)


def rows(path):
    return table.read(path).to_dict("records")


@pytest.mark.parametrize("module", [authors, models, pairs, parts, table], ids=lambda module: module.__name__)
def test_examples_of_docstrings(module):
    found = doctest.testmod(module)
    assert found.failed == 0


def test_every_part_writes_its_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parts, "COSTS_NOTHING", replace(models.COSTS_NOTHING, layers=1))
    place = tmp_path / "deep" / "bench.csv"
    words = ["--dry-run", "--case", "llama-1b", "--parts", "time", "memory", "host", "state", "busy"]
    assert bench.main([*words, "--output", str(place)]) == 0
    found = rows(place)
    assert {row["note"] for row in found} == {""}
    # plain against itself, every way of mixing, and evaluation
    mixed = [parts.MIXOUT, *parts.OTHERS, parts.EVERY, parts.LEAN, parts.DROPOUT, parts.ANCHORS[0]]
    time = [*[("time", "step")] * (1 + len(mixed)), ("time", "eval")]
    memory = [("memory", "saved"), ("memory", "saved and anchors")] * len(mixed)
    host = [("host", "process time"), ("host", "operators")] * len(parts.HOST)
    state = [("state", "apply_"), ("state", "save_state"), ("state", "distance")]
    busy = [("busy", what) for what in ("launched", "done", "kernels run", "kernels")] * 3
    assert sorted((row["part"], row["what"]) for row in found) == sorted([*time, *memory, *host, *state, *busy])
    assert all(float(row["ratio"]) > 0 for row in found if row["part"] in ("time", "memory"))
    plain, *others = (float(row["value"]) for row in found if row["what"] == "operators")
    assert all(other > plain for other in others)
    assert {row["torch"] for row in found} == {torch.__version__}
    assert "mixout(0.9), bf16 anchor" in capsys.readouterr().out


def test_compiled_models_in_processes_of_their_own(tmp_path, monkeypatch):
    class Done:
        returncode = 0

    def in_this_process(command, **_):
        """What the script does in a process of its own, whose imports would take longer than all the rest."""
        assert bench.main(command[4:]) == 0
        return Done()

    monkeypatch.setattr(parts.subprocess, "run", in_this_process)
    place = tmp_path / "bench.csv"
    words = ["--dry-run", "--case", "minilm", "--output", str(place), "--parts"]
    assert bench.main([*words, "compile"]) == 0
    assert [(row["what"], row["note"]) for row in rows(place)] == [("time to compile", ""), ("compiled step", "")]
    monkeypatch.undo()
    assert bench.main([*words, "compile", "--seconds", "0"]) == 0
    assert [row["note"] for row in rows(place)] == ["not finished after 0 s"]


def test_a_row_that_fails_or_has_no_time_leaves_the_others(tmp_path, monkeypatch):
    apply_ = mixout.apply_

    def fails(model, method, **options):
        if method == "mixout(0.5)":
            raise torch.OutOfMemoryError("of 80 GB")
        if options["form"] == "lean":
            raise RuntimeError("no kernel\nand much more")
        return apply_(model, method, **options)

    monkeypatch.setattr(models.mixout, "apply_", fails)
    place = tmp_path / "bench.csv"
    words = ["--dry-run", "--case", "minilm", "--output", str(place), "--parts", "memory"]
    assert bench.main(words) == 1
    notes = {row["method"]: row["note"] for row in rows(place)}
    assert {name: note for name, note in notes.items() if note} == {
        "mixout(0.5)": "out of memory",
        "mixout(0.9), lean": "failed: RuntimeError: no kernel",
    }
    assert bench.main([*words, "--seconds", "0"]) == 0
    assert {row["note"] for row in rows(place)} == {"not measured: no time left"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--case", "minlm"], "did you mean 'minilm'"),
        (["--pairs", "0"], "expected --pairs of at least 1, got 0"),
        (["--output", "FILE/bench.csv"], "name another place with --output"),
    ],
)
def test_wrong_input_is_said_before_anything_is_measured(words, said, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--dry-run", *(word.replace("FILE", str(tmp_path / "file")) for word in words)])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_shapes_are_those_of_the_models():
    """Parameters without head and pooler, as published: BERT-base 109 M with 12 layers, BERT-large 335 M."""
    counts = {name: sum(p.numel() for p in build(case, "meta").parameters()) for name, case in CASES.items()}
    assert counts["bert-base-12"] - (768 * 2 + 2) == 109_482_240
    assert counts["bert-large"] - (1024 * 2 + 2) == 335_141_888
    assert counts["llama-1b"] == 1_235_814_400


def test_the_work_of_an_encoder_by_hand_and_by_torchs_counter():
    """Width 16, intermediate 24, 2 layers, 4 x 6 = 24 tokens; 3 products of 2 N in out."""
    before, work = torch.get_rng_state(), count(BERT)
    assert torch.get_rng_state().equal(before)
    layer = 4 * 6 * 24 * 16 * 16 + 2 * 6 * 24 * 16 * 24  # q, k, v, o; up and down
    assert work.mixed == 2 * layer + 6 * 4 * 16 * 16  # and the pooler, on first tokens
    assert work.unmixed == 6 * 4 * 16 * 2  # the classifier
    assert work.attention == 2 * 6 * 2 * 4 * 6 * 6 * 16
    # Embeddings of tokens and segments on 24, of positions on 6; norm; two norms and an activation a layer; tanh.
    elements = 24 * 16 + 24 * 16 + 6 * 16 + 24 * 16 + 2 * (2 * 24 * 16 + 24 * 24) + 4 * 16
    parameters = sum(p.numel() for p in build(BERT, "cpu").parameters())
    assert work.other == 3 * models.ELEMENTWISE * (elements + 2 * 4 * 4 * 6 * 6) + models.ADAMW * parameters
    model = build(BERT, "cpu")
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(**inputs(BERT, "cpu")).loss.backward()
    assert counter.get_total_flops() == work.mixed + work.unmixed + work.attention
    whole = work.mixed + work.unmixed + work.attention + work.other
    assert work.floor(0.9) == pytest.approx((whole - 0.9 * work.mixed / 3) / whole)


def test_the_work_of_a_decoder_by_hand():
    """16 tokens; half as many heads of keys and values; three feed-forward linears; causal."""
    work = count(LLAMA)
    assert work.mixed == 2 * 6 * 16 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24)
    assert work.unmixed == 6 * 16 * 16 * 40  # the output embedding, tied or not
    assert work.attention == 2 * 6 * 2 * (2 * 8 * 8 / 2) * 16


def test_a_storage_counts_once_and_nothing_is_left_of_what_was_measured():
    x, w = torch.ones(50, 40), torch.ones(30, 40, requires_grad=True)
    two = lambda: nn.functional.linear(x, w) + nn.functional.linear(x[:25].repeat(2, 1), 2 * w)  # noqa: E731
    # x, its copy of 25 + 25 rows; 2 w is not kept, since no input needs a gradient.
    assert parts.saved_bytes(two, [w]) == 4 * (50 * 40 + 50 * 40)

    class Exponential(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.node = torch.zeros(1)
            nodes.append(weakref.ref(ctx.node))
            result = x.exp()
            ctx.save_for_backward(result)  # its own result
            return result

    nodes, w = [], torch.ones(3, 4, requires_grad=True)
    assert parts.saved_bytes(lambda: Exponential.apply(w).sum(), [w]) == 48
    assert nodes[0]() is None


def test_what_autograd_keeps_of_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "SPARSE_ON_CPU_FROM", 0.0)  # the forms of larger models: these keep no Phi
    place = bench.Bench(table=table.Table(tmp_path / "t.csv"), cases=[BERT], device=CPU, pairs=1, ends=1e12, dry=True)
    names = {"mixout(0.9)": parts.MIXOUT, "authors": Setting(method="authors(0.9)"), "bf16": parts.ANCHORS[0]}
    plain, sparse, theirs, narrow = (parts.usage(place, BERT, one) for one in (PLAIN, *names.values()))
    mixed = sum(m.weight.nbytes for m in build(BERT, "cpu").modules() if isinstance(m, nn.Linear)) - 4 * 16 * 2
    assert sparse["saved"] < plain["saved"] == plain["saved and anchors"]  # thin inputs, no mask, no Phi
    assert [one["saved and anchors"] - one["saved"] for one in (sparse, theirs, narrow)] == [mixed, mixed, mixed // 2]
    assert theirs["saved"] == plain["saved"] + 2 * mixed  # the mask and Phi


def test_pairs_are_interleaved_in_alternating_order_and_a_steady_drift_cancels():
    log, timed = [], []

    def clock(run):
        timed.append(run())
        return 1.0 + 0.01 * len(log)

    base, variant = (lambda name=name: log.append(name) or name for name in "bv")
    found = pairs.interleave(base, variant, pairs=10, warmup=2, clock=clock)
    assert "".join(log[:10]) == "bvbv" + "bvvbbv"
    assert len(timed) == 20
    assert found.ratio == pytest.approx(1.0, abs=1e-3)
    assert found.low < 1 < found.high
    with pytest.raises(ValueError, match="expected pairs"):
        pairs.interleave(base, variant, pairs=0, warmup=0, clock=clock)
    seconds = np.random.default_rng(0).uniform(1, 2, (2, 9))
    found = pairs.compare(*map(list, seconds))
    assert [found.low, found.ratio, found.high] == pytest.approx(np.percentile(seconds[1] / seconds[0], [25, 50, 75]))


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
def test_the_authors_formulation_is_the_definition_with_the_paper_gradient(p):
    torch.manual_seed(1)
    w, u = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    w.requires_grad_()
    mask = (torch.rand(1, 7, dtype=torch.float64) >= p).double().expand(5, 7).contiguous()
    grad = torch.randn(5, 7, dtype=torch.float64)
    phi, oracle = expanded_mix(w, u, mask, p), reference.mix(w, u, mask, 1 / (1 - p), gradient="paper")
    torch.testing.assert_close(phi, oracle)
    (mine,), (theirs,) = torch.autograd.grad(phi, w, grad), torch.autograd.grad(oracle, w, grad)
    torch.testing.assert_close(mine, theirs)


def test_the_authors_layers_stand_where_mixout_would_and_eval_is_plain():
    plain, theirs, mixed = (build(BERT, "cpu") for _ in range(3))
    apply_authors_(theirs, 0.9)
    mixout.apply_(mixed, mixout.Mixout(0.9))
    swapped = {name for name, module in theirs.named_modules() if isinstance(module, AuthorsLinear)}
    assert swapped == set(mixout.coverage(mixed).mixed)
    assert not dropouts.active(theirs)
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert theirs.eval()(tokens).logits.equal(plain.eval()(tokens).logits)
    layer = apply_authors_(nn.Linear(200, 3, bias=False), 0.75)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    layer.anchor.zero_()
    phi = layer(torch.eye(200)).t()
    assert set(phi.unique().tolist()) == {0.0, 4.0}
    assert (phi == phi[:1]).all()
    with pytest.raises(ValueError, match="divides by 1-p"):
        apply_authors_(nn.Linear(2, 2), 1.0)
