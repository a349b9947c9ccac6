"""Accelerate: apply_, then prepare. Accumulation, mixed precision and save_state work as without mixout.

python examples/accelerate_loop.py
accelerate launch --multi_gpu --num_processes 2 examples/accelerate_loop.py    # two processes, also on a CPU
"""

import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mixout

if __name__ == "__main__":
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision="bf16")
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))  # load pretrained weights here
    mixout.apply_(model, mixout.Mixout(0.7))  # before prepare, so that the anchor is captured unwrapped
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    x = torch.randn(64, 8)
    data = DataLoader(TensorDataset(x, x.sum(dim=1)), batch_size=8, shuffle=True)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)

    for _epoch in range(3):
        for inputs, targets in data:
            with accelerator.accumulate(model):
                loss = (model(inputs).squeeze(1) - targets).square().mean()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    with tempfile.TemporaryDirectory() as own:
        [folder] = broadcast_object_list([own])  # the main process's, for all
        accelerator.save_state(folder)  # plain weights, optimizer, and the random state that masks are drawn from
        accelerator.save(mixout.save_state(model), f"{folder}/mixout.pt")  # on several processes: where masks go on
        accelerator.wait_for_everyone()
    accelerator.print(mixout.coverage(model))  # everything of mixout finds its model inside wrappers too
    total = nn.utils.parameters_to_vector(model.parameters()).double().sum().item()  # equal in all processes
    masks, distance = mixout.save_state(model)["draws"], mixout.distance(model).total
    print(
        f"process {accelerator.process_index}: sum {total:.12f}, masks {masks}, distance to the anchor {distance:.3f}"
    )
    mixout.remove_(model)
    accelerator.end_training()
