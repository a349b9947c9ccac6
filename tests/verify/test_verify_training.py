"""Stacked restarts are single ones; the network, its treatments and the measured pull agree with plain torch."""

import math

import pytest
import torch
from torch import nn

from mixout.verify import pull, transfer
from mixout.verify.digits import Images
from mixout.verify.network import accuracies, drift, initial, scores, squared_distances
from mixout.verify.restarts import Training, course, train

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = (9, 6, 5, 4)
TREATMENTS = ("dropout", "mixout", "gradient mask", "dense gradient", "smaller rate")


@pytest.fixture
def images():
    draw = torch.Generator().manual_seed(0)
    pixels = torch.rand(24, 9, generator=draw, dtype=torch.float64)
    return Images(pixels=pixels, labels=torch.randint(4, (24,), generator=draw))


def start():
    network = initial(SIZES, seed=1, dtype=torch.float64)
    for weight in network.weights:
        weight *= 20  # the paper's .02 is almost linear at this size
    return network


def training(treatment="mixout", p=0.5, optimizer="adam", **changes):
    rate = 0.01 if optimizer == "adam" else 0.1
    return Training(
        **{"treatment": treatment, "p": p, "optimizer": optimizer, "rate": rate, "epochs": 2, "batch": 8, **changes}
    )


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("treatment", TREATMENTS)
def test_stacked_restarts_are_single_ones(treatment, optimizer, images):
    how = training(treatment, optimizer=optimizer, decay=0.01)
    together = train(start(), images, how, [3, 4, 5])
    for number, seed in enumerate((3, 4, 5)):
        alone = train(start(), images, how, [seed])
        for stacked, single in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(stacked[number], single[0], rtol=1e-9, atol=1e-12)
    assert not together.weights[0][0].allclose(together.weights[0][1])


def modules(network):
    """The same network of torch's own modules."""
    linears = []
    for weight, bias in zip(network.weights, network.biases, strict=True):
        linear = nn.Linear(weight.shape[2], weight.shape[1], dtype=torch.float64)
        linear.weight.data, linear.bias.data = weight[0].clone(), bias[0, 0].clone()
        linears.append(linear)
    norms = [nn.LayerNorm(gain.shape[2], dtype=torch.float64) for gain in network.gains]
    return nn.Sequential(linears[0], nn.ReLU(), norms[0], linears[1], nn.ReLU(), norms[1], linears[2])


def test_plain_training_is_that_of_torchs_modules(images):
    how = training(p=0.0, epochs=1, rate=0.01)
    trained = train(start(), images, how, [7])
    model = modules(start())
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(7))
    # Three steps: a warm-up of one, then a linear decay.
    for share, rows in zip((1.0, 1.0, 0.5), order.view(3, 8), strict=True):
        optimizer.param_groups[0]["lr"] = 0.01 * share
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images.pixels[rows]), images.labels[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(scores(trained, images.pixels[None])[0], model(images.pixels), rtol=1e-7, atol=1e-9)
    own = (model(images.pixels).argmax(1) == images.labels).float().mean()
    assert accuracies(trained, images.pixels, images.labels, batch=10)[0] == own


def step(treatment, images, p=0.5, **changes):
    """Weights after one step of SGD, from another place than the anchor's: the second step of a course."""
    how = training(treatment, p=p, optimizer="sgd", epochs=1, rate=1.0, **changes)
    return [[weight.detach().clone() for weight in network.weights] for network in course(start(), images, how, [0])]


def test_treatments_touch_what_they_say(images):
    """Columns that fell on the anchor have no gradient under mixout and the gradient mask, and one under the others."""
    first = {name: step(name, images)[0][0] for name in TREATMENTS}
    still = {name: (first[name] == start().weights[0]).all(1)[0] for name in TREATMENTS}
    assert 0 < still["mixout"].sum() < 9
    assert still["mixout"].equal(still["gradient mask"])  # the same masks for every treatment
    assert not still["dense gradient"].any()
    assert not still["smaller rate"].any()
    # In the first step w is the anchor and mixing changes nothing: what differs from plain is the gradient.
    plain = step("mixout", images, p=0.0)[0][0] - start().weights[0]
    masked = first["gradient mask"] - start().weights[0]
    torch.testing.assert_close(masked, plain * ~still["mixout"] * 2)
    torch.testing.assert_close(first["mixout"], first["gradient mask"])
    torch.testing.assert_close(first["dense gradient"] - start().weights[0], plain)
    torch.testing.assert_close(first["smaller rate"] - start().weights[0], plain * 0.5**0.5)
    # In the second step it is not: mixout reads Phi, the mask reads w.
    assert not step("mixout", images)[1][0].allclose(step("gradient mask", images)[1][0])


def test_p_0_is_plain_for_every_treatment(images):
    ends = [train(start(), images, training(name, p=0.0), [1]).weights[0] for name in TREATMENTS]
    assert all(end.equal(ends[0]) for end in ends)


def test_too_few_images_are_refused(images):
    with pytest.raises(ValueError, match="expected at least 32 images to train on"):
        train(start(), images, training(batch=32), [0])


def test_distance_and_drift():
    anchor = start()
    network = anchor.copies(3)
    moved = torch.randn(3, *network.weights[0].shape[1:], dtype=torch.float64)
    network.weights[0].data += moved
    flat = moved.flatten(1)
    torch.testing.assert_close(squared_distances(network, anchor), (flat**2).sum(1))
    pairs = [float(flat[i] @ flat[j]) for i in range(3) for j in range(3) if i != j]
    assert drift(network, anchor) == pytest.approx(sum(pairs) / 6)
    assert math.isnan(drift(anchor.copies(1), anchor))


def exact_sum(network, anchor, images):
    """Sum over input units of d^T H d, from the whole Hessian."""
    shapes = [weight.shape for weight in network.weights]
    sizes = [math.prod(shape) for shape in shapes]

    def loss(flat):
        weights = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        found = scores(network.with_weights(weights), images.pixels[None])
        return nn.functional.cross_entropy(found[0], images.labels)

    flat = torch.cat([weight.detach().flatten() for weight in network.weights])
    delta = flat - torch.cat([weight.flatten() for weight in anchor.weights])
    hessian = torch.autograd.functional.hessian(loss, flat)
    unit = torch.cat([
        (torch.arange(size) % shape[2]) + 1000 * layer
        for layer, (size, shape) in enumerate(zip(sizes, shapes, strict=True))
    ])  # fmt: skip
    return float(delta @ (hessian * (unit[:, None] == unit[None, :])) @ delta)


def test_random_signs_estimate_the_block_sum(images):
    anchor = start()
    network = train(anchor, images, training(p=0.0), [0])
    deltas = [w.detach() - u for w, u in zip(network.weights, anchor.weights, strict=True)]
    found = pull.block_curvature(network, deltas, images, 1500)
    expected = exact_sum(network, anchor, images)
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean()) - expected) < 4.5 * error
    assert error < 0.1 * abs(expected)


def test_the_measured_pull_is_the_prediction_for_a_small_delta(images):
    """So close to the anchor that no kink of ReLU is crossed, the second order is all there is."""
    anchor = start()
    network = anchor.copies(1)
    draw = torch.Generator().manual_seed(2)
    for weight in network.weights:
        weight.data += 1e-5 * torch.randn(weight.shape, generator=draw, dtype=torch.float64)
    here, pulls = pull.sampled_pulls(network, anchor, images, 0.5, 4000)
    loss = nn.functional.cross_entropy(scores(network, images.pixels[None])[0], images.labels)
    assert here == pytest.approx(float(loss.detach()))
    error = float(pulls.std()) / len(pulls) ** 0.5
    expected = 0.5 / (2 * 0.5) * exact_sum(network, anchor, images)
    assert abs(float(pulls.mean()) - expected) < 4.5 * error + 0.02 * abs(expected)
    assert error < 0.1 * abs(expected)


def point(step, measured, predicted, p=0.1):
    return pull.Point(
        step=step, p=p, loss=1.0, squared_distance=1.0, measured=measured, measured_error=0.01, predicted=predicted,
        predicted_error=0.01, fixed=1.0,
    )  # fmt: skip


def test_the_pull_is_claimed_where_the_curvature_is_positive_and_at_the_end():
    found = [
        point(1, 0.5, -1.0),
        point(2, 1.1, 1.0),
        point(3, 1.6, 1.0),
        point(3, 9.0, 1.0, p=0.9),
        point(4, 0.5, -1.0),
    ]
    claims = pull.claims(found)
    assert [(claim.statement, claim.holds) for claim in claims] == [
        ("after 2 steps", True),
        ("after 3 steps", False),
        ("after 4 steps", False),
    ]


def cell(treatment, p, distance, target, optimizer="adam"):
    return transfer.Cell(
        optimizer=optimizer, treatment=treatment, p=p, restarts=2, distance=distance, distance_sd=0.0, drift=distance,
        target=target, target_sd=0.0, source=0.5, source_sd=0.0,
    )  # fmt: skip


def test_the_claims_of_section_4_can_fail():
    good = [
        cell("plain", 0.0, 2.0, 0.9), cell("dropout", 0.8, 3.0, 0.7), cell("mixout", 0.8, 1.0, 0.8),
        cell("gradient mask", 0.8, 1.1, 0.8), cell("dense gradient", 0.8, 2.5, 0.8),
        cell("smaller rate", 0.8, 0.9, 0.8),
    ]  # fmt: skip
    assert all(claim.holds for claim in transfer.claims(good))
    for number, distance in ((2, 3.0), (3, 2.5), (4, 1.9), (5, 2.1)):
        worse = cell(good[number].treatment, 0.8, distance, good[number].target)
        assert sum(not claim.holds for claim in transfer.claims([*good[:number], worse, *good[number + 1 :]])) == 1
    assert sum(not c.holds for c in transfer.claims([*good[:2], cell("mixout", 0.8, 1.0, 0.6), *good[3:]])) == 1
    lines = transfer.table(good).splitlines()
    assert lines[1].split()[-2:] == ["1.627", "0.918"]  # the paper's 2.513 / 1.545
    assert next(line for line in lines if line.startswith("adam, mixout")).split()[-2:] == ["0.500", "0.800"]
