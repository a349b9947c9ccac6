"""A layer of your own: say which attribute is the weight and which of its dimensions is the input."""

import torch
from torch import nn

import mixout


@mixout.register(weight="table", input_dim=0)  # (in, out)
class Project(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.table  # while it trains, self.table is Phi, drawn once for this call


if __name__ == "__main__":
    torch.manual_seed(0)
    model = nn.Sequential(Project(8, 32), nn.Tanh(), Project(32, 1))  # load pretrained weights here
    mixout.apply_(model, mixout.Mixout(0.5))
    print(mixout.coverage(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _step in range(20):
        x = torch.randn(16, 8)
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"distance to the anchor: {mixout.distance(model).total:.3f}")
