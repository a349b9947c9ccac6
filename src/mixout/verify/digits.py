"""Handwritten digits as a source to pretrain on and a target to fine-tune on: the user's files, or scikit-learn's.

The paper's source is EMNIST Digits, its target MNIST. Raw EMNIST images are the transpose of MNIST's orientation, so
without EMNIST the source is a stand-in, and is called that: one half of the same digits, transposed. Nothing is
downloaded. Pixels are scaled to [0, 1] and not standardised.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixout.errors import InputError
from mixout.finetune.extras import needs

with needs("demo", "mixout verify"):
    import numpy as np
    from sklearn.datasets import load_digits

_KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True, kw_only=True)
class Images:
    """Flattened images, (n, pixels), float32 in [0, 1], and their classes, (n,)."""

    pixels: Tensor
    labels: Tensor

    def part(self, start: int, stop: int | None = None) -> Images:
        """The images from ``start`` to before ``stop``."""
        return Images(pixels=self.pixels[start:stop], labels=self.labels[start:stop])

    def mixed(self) -> Images:
        """The same images in a random order that is always the same: files are sorted by class, or by writer."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0))
        return Images(pixels=self.pixels[order], labels=self.labels[order])

    def transposed(self) -> Images:
        """Each square image with rows and columns exchanged."""
        side = round(self.pixels.shape[1] ** 0.5)
        turned = self.pixels.view(-1, side, side).transpose(1, 2).flatten(1)
        return Images(pixels=turned.contiguous(), labels=self.labels)


@dataclass(frozen=True, kw_only=True)
class Domains:
    """What is learned first, and what is learned then.

    Args:
        name: of the data, in words.
        source: to pretrain on.
        source_test: to measure what is left of it.
        target: to fine-tune on.
        target_test: to measure what was learned.
    """

    name: str
    source: Images
    source_test: Images
    target: Images
    target_test: Images


def domains(mnist: Path | None = None, emnist: Path | None = None) -> Domains:
    """The data that the given files hold; scikit-learn's digits without any.

    Args:
        mnist: a .npz file with x_train (n, 28, 28), y_train, x_test and y_test, uint8.
        emnist: the same for EMNIST Digits, as it is oriented in the original files.

    Raises:
        InputError: if a file is missing or holds something else, or EMNIST comes without MNIST.
    """
    if mnist is None:
        if emnist is not None:
            raise InputError("expected --mnist beside --emnist, got EMNIST alone; it is the source, MNIST the target")
        return _scikit_learn()
    train, test = _read(mnist)
    if emnist is not None:
        source, source_test = _read(emnist)
        return Domains(
            name="EMNIST Digits, then MNIST", source=source, source_test=source_test, target=train, target_test=test
        )
    half, half_test = len(train.labels) // 2, len(test.labels) // 2
    return Domains(
        name="stand-in for EMNIST (one half of MNIST, transposed), then the other half of MNIST",
        source=train.part(0, half).transposed(),
        source_test=test.part(0, half_test).transposed(),
        target=train.part(half),
        target_test=test.part(half_test),
    )


def _scikit_learn() -> Domains:
    """1,797 images of 8 x 8: 600 transposed to pretrain on, 600 to fine-tune on, the rest to test on both ways."""
    found = load_digits()
    every = Images(
        pixels=torch.from_numpy(found.data / 16).float(), labels=torch.from_numpy(found.target).long()
    ).mixed()
    test = every.part(1200)
    return Domains(
        name="stand-in (a third of scikit-learn's digits, transposed), then another third of them",
        source=every.part(0, 600).transposed(),
        source_test=test.transposed(),
        target=every.part(600, 1200),
        target_test=test,
    )


def _read(path: Path) -> tuple[Images, Images]:
    try:
        with np.load(path) as held:
            x_train, y_train, x_test, y_test = (held[key] for key in _KEYS)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"expected a .npz file with {', '.join(_KEYS)} at {path}, got none: {error}; see docs/theory.md"
        ) from error
    for name, x in (("x_train", x_train), ("x_test", x_test)):
        if x.ndim != 3 or x.shape[1] != x.shape[2] or x.dtype != np.uint8:
            raise InputError(f"expected {name} of shape (n, side, side), uint8, in {path}, got {x.shape}, {x.dtype}")
    return _images(x_train, y_train), _images(x_test, y_test)


def _images(x: np.ndarray, y: np.ndarray) -> Images:
    return Images(pixels=torch.from_numpy(x).flatten(1).float() / 255, labels=torch.from_numpy(y).long()).mixed()
