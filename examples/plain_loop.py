"""A loop of your own: nothing to integrate. And what to save, so that a killed run goes on bit for bit."""

import os
import tempfile
from pathlib import Path

import torch
from torch import nn

import mixout
from mixout.schedule import LinearRamp

STEPS, EVERY = 20, 4


def train(folder: Path) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1)
    )  # load pretrained weights here
    mixout.apply_(model, mixout.Mixout(0.7))  # before a checkpoint is loaded: the anchor is a copy of the weights now
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    p = mixout.PScheduler(model, LinearRamp(0.0, 0.7, steps=10))  # optional

    file, done = folder / "checkpoint.pt", 0
    if file.exists():
        state = torch.load(file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        p.load_state_dict(state["p"])
        mixout.load_state_(model, state["mixout"])  # refuses a model that is anchored elsewhere
        torch.set_rng_state(state["rng"])  # masks are drawn from it, as dropout's; on a GPU save its state as well
        done = state["step"]

    for step in range(done, STEPS):
        x = torch.randn(16, 8)
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        p.step()
        if (step + 1) % EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "p": p.state_dict()}
            state |= {"mixout": mixout.save_state(model), "rng": torch.get_rng_state(), "step": step + 1}
            torch.save(state, file.with_suffix(".new"))
            os.replace(file.with_suffix(".new"), file)
    return model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        model = train(Path(folder))
    print(mixout.coverage(model))
    print(f"distance to the anchor: {mixout.distance(model).total:.3f}")
    mixout.remove_(model)  # a plain model again
