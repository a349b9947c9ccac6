"""The DARE curve of a model of your own: how much of what fine-tuning changed does it need?

A network that reads digits is fine-tuned with mixout on transposed images. Then a share of the change w - u is dropped,
by elements (DARE) and by input neurons, or all of it is scaled down (WiSE-FT).
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import mixout
from mixout.delta import drop_

DATA = load_digits()
UPRIGHT, LABELS = torch.tensor(DATA.images / 16).float(), torch.tensor(DATA.target)
BEFORE, AFTER, TEST = slice(0, 700), slice(700, 1000), slice(1000, None)  # images of their own for each purpose


def train(model: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(100):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    found = model(UPRIGHT[TEST].transpose(1, 2)).argmax(1)
    return (found == LABELS[TEST]).float().mean().item()


def curve(base: nn.Module, tuned: nn.Module) -> dict[tuple[str, float], list[float]]:
    """Accuracies of ``tuned``, which ends as it began, by what is removed and how much."""
    trained, found = copy.deepcopy(tuned.state_dict()), {}
    for rate in (0.5, 0.9, 0.99):
        for unit in ("element", "input"):
            for seed in range(3):
                drop_(tuned, rate, base, unit=unit, seed=seed)
                found.setdefault((unit, rate), []).append(accuracy(tuned))
                tuned.load_state_dict(trained)
    for kept in (0.0, 0.5, 1.0):
        mixout.interpolate_(tuned, kept, anchor=base)
        found["interpolation", 1 - kept] = [accuracy(tuned)]
        tuned.load_state_dict(trained)
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    base = train(network, UPRIGHT[BEFORE], LABELS[BEFORE])
    mixed = mixout.apply_(copy.deepcopy(base), mixout.Mixout(0.5))  # the head too: its weights are pretrained
    tuned = mixout.remove_(train(mixed, UPRIGHT[AFTER].transpose(1, 2), LABELS[AFTER]))
    for (what, removed), accuracies in curve(base, tuned).items():
        print(f"{what:<14}{removed:<6}", *(f"{value:.3f}" for value in accuracies))
