"""A finished run of the tiny model, for the command to look at."""

import pytest
import torch

from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune


@pytest.fixture(scope="session")
def trained(tiny_bert, tiny_task, tmp_path_factory):
    """Folder of a finished run with a score above chance, so that the ends differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("dare") / "run"
    chosen = Settings(
        model=tiny_bert, task=tiny_task, max_length=32, learning_rate=1e-2, epochs=12.0, batch_size=8,
        method="dropout(0.0)", save="no",
    )  # fmt: skip
    finetune(chosen, folder)
    torch.set_num_threads(threads)
    return folder
