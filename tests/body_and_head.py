"""Small models in the manner of transformers, with a body and a head, and their anchors."""

import torch
from torch import nn

import mixout


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(self.first(x))


class WithHead(nn.Module):
    """A pretrained body and a new head, marked as transformers marks them."""

    base_model_prefix = "body"

    def __init__(self):
        super().__init__()
        self.body, self.head = Body(), nn.Linear(3, 2)

    @property
    def base_model(self):
        return self.body

    def get_output_embeddings(self):
        return None

    def forward(self, x):
        return self.head(self.body(x))


def fresh(kind=WithHead, seed=0):
    torch.manual_seed(seed)
    return kind()


def anchors(model):
    return {name: one.tensor for name, (_, _, one) in mixout.measure.anchored_weights(model).items()}
