"""Memory, traffic and time per step of 7B and 70B parameters on 8 to 512 GPUs, worked out: nothing here is measured.

    python benchmarks/scale.py --output benchmarks/results/scale.csv

Arithmetic from the shapes of the models, the bandwidths below and one measured number: how far a mixed step lies above
its floor (results/step-cpu.csv, a CPU). docs/scale.md says what the columns mean and what is not known.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

# H100 SXM, from its data sheet; what is achieved of it is an assumption.
PEAK_FLOPS, ACHIEVED = 989e12, 0.45  # bfloat16, dense
MEMORY_BANDWIDTH = 3.35e12
NVLINK = 450e9  # each direction; 900 GB/s together
INFINIBAND = 50e9  # 400 Gb/s a GPU, each direction
LINK_ACHIEVED = 0.8
PCIE = 55e9  # host to device, generation 5, 16 lanes
NODE = 8  # GPUs that NVLink joins

GPUS = (8, 64, 512)
TOKENS, LENGTH = 8192, 4096  # a GPU and step; a sequence
P = 0.9
LORA_RANK = 16


@dataclass(frozen=True, kw_only=True)
class Model:
    """The shape of a decoder of the Llama 2 family."""

    name: str
    layers: int
    width: int
    inner: int
    key_width: int
    vocabulary: int = 32_000

    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's linears."""
        w, i, k = self.width, self.inner, self.key_width
        return [(w, w), (w, k), (w, k), (w, w), (w, i), (w, i), (i, w)]

    @property
    def mixed(self) -> int:
        """Weights of the linears, which are mixed."""
        return self.layers * sum(a * b for a, b in self.linears())

    @property
    def total(self) -> int:
        """All parameters: linears, embedding and head, norms."""
        return self.mixed + 2 * self.vocabulary * self.width + (2 * self.layers + 1) * self.width

    def adapters(self) -> tuple[int, int]:
        """LoRA's A, whose input columns are masked, and B."""
        ins, outs = (sum(pair[k] for pair in self.linears()) for k in (0, 1))
        return self.layers * LORA_RANK * ins, self.layers * LORA_RANK * outs


MODELS = (
    Model(name="7B", layers=32, width=4096, inner=11_008, key_width=4096),
    Model(name="70B", layers=80, width=8192, inner=28_672, key_width=1024),
)
LAYOUTS = ("ddp + sharded optimizer", "fsdp2", "lora, ddp", "lora, fsdp2")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration. Bytes and seconds are those of one GPU and one step."""

    model: str
    gpus: int
    layout: str
    method: str
    weights_gb: float
    gradients_gb: float
    optimizer_gb: float
    anchor_gb: float
    activations_gb: float
    total_gb: float
    fits_80gb: bool
    gradient_sent_gb: float
    weights_sent_gb: float
    compute_s: float
    mixing_s: float
    communication_s: float
    overlapped_s: float
    exposed_s: float
    hidden_from_tokens: float


def compute_seconds(model: Model, *, lora: bool, sparse: bool) -> float:
    """FLOPs of a step with every block recomputed in backward, over what a GPU achieves.

    A linear costs 2 FLOPs a weight and token in forward, recomputation, the input's gradient and the weight's gradient;
    LoRA leaves the last one out, and mixout computes 1-p of it; under FSDP2 all of it, and masks it.
    """
    weight_gradient = 0.0 if lora else (1 - P) if sparse else 1.0
    linears = (3 + weight_gradient) * 2 * model.mixed
    head = 2 * model.vocabulary * model.width * (2 if lora else 3)  # not in a block: not recomputed
    attention = 4 * 2 * LENGTH * model.width * model.layers  # causal: half of 4 n d; backward is twice the forward
    adapters = 4 * 2 * sum(model.adapters()) if lora else 0
    return TOKENS * (linears + head + attention + adapters) / (PEAK_FLOPS * ACHIEVED)


def mixing_seconds(model: Model, layout: str, gpus: int) -> float:
    """Element-wise passes: w and u read and Phi written in forward, recomputation and backward; grad_w made of columns.

    FSDP2 mixes its shard before each of its two all-gathers, and masks the whole gradient. LoRA masks the input of A,
    which is thin.
    """
    bandwidth = MEMORY_BANDWIDTH * LINK_ACHIEVED
    if layout.startswith("lora"):
        return 0.0
    columns = 2 * model.mixed * (1 + 2 * (1 - P))  # zeros, then the columns read and written, bfloat16
    whole = 2 * model.mixed * 2  # read and written
    phi = 3 * 2 * model.mixed
    return (2 * phi / gpus + whole if layout == "fsdp2" else 3 * phi + columns) / bandwidth


def all_gather_seconds(size: float, gpus: int) -> float:
    """Of ``size`` bytes: within nodes by NVLink, between nodes each GPU moves an eighth. A reduce-scatter is equal."""
    nodes = gpus // NODE
    within = (NODE - 1) / NODE * size / NVLINK
    between = (nodes - 1) / nodes * size / NODE / INFINIBAND
    return (within + between) / LINK_ACHIEVED


def row(model: Model, gpus: int, layout: str, method: str) -> Row:
    """Work one configuration out. bfloat16 weights and gradients; Adam and the master weights in float32."""
    lora, sharded, mixed = layout.startswith("lora"), layout.endswith("fsdp2"), method != "plain"
    trained = sum(model.adapters()) if lora else model.total
    share = gpus if sharded else 1
    weights = 2 * (model.total + (trained if lora else 0)) / share
    gradients = 2 * trained / share
    optimizer = 12 * trained / (1 if layout == "lora, ddp" else gpus)
    anchor = 2 * model.mixed / share if mixed and not lora else 0.0
    if sharded:
        weights += 2 * 2 * model.mixed / model.layers  # two blocks are whole at a time
    blocks = 2 * TOKENS * model.width * (model.layers + 17)  # inputs of all blocks, about 34 bytes a number of one
    activations = blocks + 6 * TOKENS * model.vocabulary
    total = weights + gradients + optimizer + anchor + activations
    compute = compute_seconds(model, lora=lora, sparse=mixed and not sharded)
    mixing = mixing_seconds(model, layout, gpus) if mixed else 0.0
    gathered = 2 * model.total if sharded else 0.0
    gradients_sent, rounds = 2 * trained, 1 if sharded else 2  # reduce-scatter, or all-reduce
    communication = rounds * all_gather_seconds(gradients_sent, gpus) + 2 * all_gather_seconds(gathered, gpus)
    if layout == "ddp + sharded optimizer":
        communication += all_gather_seconds(2 * model.total, gpus)  # the stepped weights
    ring = (gpus - 1) / gpus
    return Row(
        model=model.name,
        gpus=gpus,
        layout=layout,
        method=method,
        weights_gb=weights / 1e9,
        gradients_gb=gradients / 1e9,
        optimizer_gb=optimizer / 1e9,
        anchor_gb=anchor / 1e9,
        activations_gb=activations / 1e9,
        total_gb=total / 1e9,
        fits_80gb=total < 76e9,
        gradient_sent_gb=rounds * ring * gradients_sent / 1e9,
        weights_sent_gb=ring * (2 * gathered if sharded else 0 if lora else 2 * model.total) / 1e9,
        compute_s=compute,
        mixing_s=mixing,
        communication_s=communication,
        overlapped_s=max(compute + mixing, communication),
        exposed_s=compute + mixing + communication,
        hidden_from_tokens=max(0.0, (communication - mixing) / compute * TOKENS),
    )


def step_over_floor() -> float:
    """How far a mixed step of a small case on a CPU lies above its floor."""
    with (RESULTS / "step-cpu.csv").open() as handle:
        steps = [
            line
            for line in csv.DictReader(handle)
            if (line["case"], line["tokens"], line["method"], line["p"], line["mode"], line["anchor"])
            == ("bert-base-3", "4096", "mixout", str(P), "train", "")
        ]
    return statistics.median(float(line["ratio"]) / float(line["floor"]) for line in steps)


def anchors(model: Model) -> str:
    """The anchor's memory, by where and how it is kept."""
    whole, pcie = 2 * model.mixed / 1e9, 2 * model.mixed / PCIE
    shards = ", ".join(f"{whole / gpus:.2f} on {gpus}" for gpus in GPUS)
    return (
        f"{model.name}: {model.total / 1e9:.2f}e9 parameters, {model.mixed / 1e9:.2f}e9 mixed; anchor float32 "
        f"{2 * whole:.1f} GB, bfloat16 {whole:.1f} GB, sharded bfloat16 {shards} GPUs; from the host whole "
        f"{pcie:.2f} s a pass, a shard of 8 {pcie / 8:.3f} s"
    )


def main() -> None:
    """Print the tables and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="CSV to write")
    output = parser.parse_args().output
    rows = [
        row(model, gpus, layout, method)
        for model in MODELS
        for layout in LAYOUTS
        for gpus in GPUS
        for method in ("plain", "mixout")
    ]
    constants = {"p": P, "tokens_per_gpu": TOKENS, "length": LENGTH, "kind": "computed"}
    with output.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, [*asdict(rows[0]), *constants], lineterminator="\n")
        writer.writeheader()
        for one in rows:
            writer.writerow(
                {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in (asdict(one) | constants).items()}
            )
    for model in MODELS:
        print(anchors(model))
    print(f"measured at p = {P}, on a CPU: a step {step_over_floor():.3f} of its floor")
    print("model  GPUs  layout                  method                       GB/GPU   sent: gradient + weights, GB")
    for one in rows:
        print(
            f"{one.model:<5}{one.gpus:>6}  {one.layout:<24}{one.method:<26}"
            f"{one.total_gb:>8.1f}{' ' if one.fits_80gb else '!'}  {one.gradient_sent_gb:>7.3f} + "
            f"{one.weights_sent_gb:>6.2f}  compute {one.compute_s:.3f} s, mixing {one.mixing_s:.3f} s, "
            f"communication {one.communication_s:.3f} s: {one.overlapped_s:.3f} to {one.exposed_s:.3f} s"
        )


if __name__ == "__main__":
    main()
