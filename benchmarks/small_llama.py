"""A small language model, pretrained on the spot, with the text that it knows and new text to learn.

    python benchmarks/small_llama.py out/small-llama

A Llama of 0.13 million parameters reads 800 docstrings of scipy four times; 40 of networkx are left for fine-tuning.
The docstrings are those of the installed versions. It writes the model to ``base/``, and ``train.txt`` and ``dev.txt``
of both libraries to ``original/`` and ``new/``; ``evidence/stay-close-causal.toml`` fine-tunes it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from causal_lm import pretrain, write_text


def main() -> None:
    """Write the texts and train the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    place = parser.parse_args().folder
    torch.set_num_threads(1)
    place.mkdir(parents=True)
    write_text("scipy", place / "original", train=800, dev=60)
    write_text("networkx", place / "new", train=40, dev=60)
    print(f"wrote {pretrain(place, epochs=4)}")


if __name__ == "__main__":
    main()
