"""A small model, and optimizers under which its weights decay, for tests."""

import math

import torch
from torch import nn

ETA, RATE = 0.1, 0.5
LEFT = math.exp(-ETA * RATE)  # of w - u after a step that moves nothing by itself


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double()


def batches(steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(steps)]


def loss_of(model, x):
    return model(x).pow(2).sum()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=ETA, **options)


def adamw(model, **options):
    return torch.optim.AdamW(model.parameters(), lr=ETA, **{"weight_decay": 0.0, **options})


def train(model, optimizer, xs, after=None):
    for x in xs:
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
        if after is not None:
            after()


# Parameters that others exchange.


def step_of_nothing(optimizer, model):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
