"""Which images are the source and which the target, and what is said of files that are none."""

import numpy as np
import pytest
import torch

from mixout.errors import InputError
from mixout.verify.digits import domains


@pytest.fixture
def mnist(tmp_path):
    """20 and 10 images of 4 x 4, sorted by class, whose first pixel of the first row tells which image it is."""
    held = {}
    for part, number in (("train", 20), ("test", 10)):
        x = np.zeros((number, 4, 4), dtype=np.uint8)
        x[:, 0, 0] = np.arange(number)
        x[:, 0, 1] = 255
        held |= {f"x_{part}": x, f"y_{part}": np.arange(number) * 10 // number}
    path = tmp_path / "mnist.npz"
    np.savez(path, **held)
    return path


def numbers(images):
    return (images.pixels[:, 0] * 255).round().int().tolist()


def test_the_stand_in_is_one_half_transposed_and_no_image_is_in_both(mnist):
    found = domains(mnist)
    assert "stand-in" in found.name
    assert sorted(numbers(found.source) + numbers(found.target)) == list(range(20))
    assert sorted(numbers(found.source_test) + numbers(found.target_test)) == list(range(10))
    # Row 0, column 1 of the target is row 1, column 0 of the source.
    assert found.target.pixels[:, 1].eq(1).all()
    assert found.source.pixels[:, 4].eq(1).all()
    assert found.source.pixels[:, 1].eq(0).all()
    # Files sorted by class: each half must see them all.
    assert len(found.target.labels.unique()) > 5
    assert torch.equal(found.target.labels, torch.tensor(numbers(found.target)) * 10 // 20)


def test_emnist_is_the_source_and_all_of_mnist_the_target(mnist):
    found = domains(mnist, mnist)
    assert (len(found.source.labels), len(found.target.labels)) == (20, 20)
    assert found.source.pixels.equal(found.target.pixels)  # as it is oriented in the file
    assert "stand-in" not in found.name


def test_digits_without_files():
    found = domains()
    assert "stand-in" in found.name
    assert [len(part.labels) for part in (found.source, found.target, found.target_test)] == [600, 600, 597]
    assert found.source_test.transposed().pixels.equal(found.target_test.pixels)
    assert float(found.target.pixels.max()) == 1.0


def test_what_is_no_mnist_file_is_said(tmp_path, mnist):
    with pytest.raises(InputError, match="expected --mnist beside --emnist"):
        domains(None, mnist)
    with pytest.raises(InputError, match=r"expected a \.npz file with x_train"):
        domains(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(InputError, match=r"expected a \.npz file with x_train"):
        domains(tmp_path / "text.npz")
    flat = tmp_path / "flat.npz"
    np.savez(flat, **{key: np.zeros((3, 16), dtype=np.uint8) for key in ("x_train", "y_train", "x_test", "y_test")})
    with pytest.raises(InputError, match=r"expected x_train of shape \(n, side, side\), uint8"):
        domains(flat)
