"""The DARE curve of a model of your own: how much of what fine-tuning changed does it need?

A network that reads digits is fine-tuned with mixout on transposed images. Then a share of the change w - u is dropped,
by elements and by input neurons, or all of it is scaled down. For what mixout finetune wrote, call mixout dare.
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import mixout
from mixout.dare.delta import Delta
from mixout.dare.scores import INTERPOLATION, Score, table

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


def curve(base: nn.Module, tuned: nn.Module) -> list[Score]:
    """Scores of ``tuned``, which ends as it began."""
    delta, scores = Delta.of(tuned, dict(base.named_parameters())), []
    for rate in (0.5, 0.9, 0.99):
        for unit in ("element", "input"):
            for seed in range(3):
                delta.drop_(rate, unit=unit, seed=seed)
                scores.append(Score(curve=unit, removed=rate, seed=seed, score=accuracy(tuned)))
    for kept in (0.0, 0.5, 1.0):
        delta.interpolate_(kept)
        scores.append(Score(curve=INTERPOLATION, removed=1 - kept, seed=None, score=accuracy(tuned)))
    return scores


if __name__ == "__main__":
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    base = train(network, UPRIGHT[BEFORE], LABELS[BEFORE])
    mixed = mixout.apply_(copy.deepcopy(base), mixout.Mixout(0.5))  # the head too: its weights are pretrained
    tuned = mixout.remove_(train(mixed, UPRIGHT[AFTER].transpose(1, 2), LABELS[AFTER]))
    print(table(curve(base, tuned), "accuracy"))
