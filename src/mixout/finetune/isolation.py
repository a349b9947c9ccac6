"""A run leaves the process as it found it: random streams, and what transformers prints.

It is not thread-safe: the streams are those of the process.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mixout.finetune.extras import needs

with needs("hf", "fine-tuning"):
    import numpy as np
    from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """No advice and no bars for loading from transformers in the body; its errors still show."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def own_streams() -> Iterator[None]:
    """The body may seed and draw: the global streams of Python, numpy and torch (CPU and CUDA) are put back."""
    python, numpy = random.getstate(), np.random.get_state()
    # Every device: torch.manual_seed reaches all of them.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
