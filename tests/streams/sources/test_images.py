"""Rotations and noise of images."""

import numpy as np
import pytest

from streams.sources.images import background_noise, rotate


def digits() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)


def blob() -> np.ndarray:
    images = np.zeros((1, 28, 28), dtype=np.uint8)
    images[0, 5:10, 16:24] = 255
    return images


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3, 4, -1, 5])
def test_quarter_turns_only_move_pixels(quarter_turns: int) -> None:
    turned = rotate(digits(), 90 * quarter_turns)
    assert np.array_equal(turned, np.rot90(digits(), quarter_turns, axes=(1, 2)))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_other_angles_turn_the_same_way(degrees: int) -> None:
    exact, near = rotate(blob(), degrees).astype(int), rotate(blob(), degrees + 0.01).astype(int)
    assert np.abs(exact - near).max() <= 2


def test_a_turn_and_its_opposite_cancel_except_for_interpolation() -> None:
    back = rotate(rotate(blob(), 45), -45)
    assert np.abs(back.astype(int) - blob()).mean() < 3


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_size_and_dtype_stay(dtype: type) -> None:
    turned = rotate(digits().astype(dtype), 30)
    assert (turned.shape, turned.dtype) == ((3, 28, 28), dtype)


def test_noise_covers_the_background_and_leaves_the_strokes() -> None:
    images = np.array([[[0.0, 0.009], [0.01, 0.8]]], dtype=np.float32)
    noisy = background_noise(images, np.random.default_rng(0))
    assert noisy.dtype == np.float32
    assert noisy[0, 1].tolist() == images[0, 1].tolist()
    assert (noisy[0, 0] != images[0, 0]).all()


def test_noise_is_uniform_and_reproducible() -> None:
    empty = np.zeros((50, 28, 28), dtype=np.float32)
    first, again = (background_noise(empty, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, again)
    assert 0 <= first.min() < first.max() < 1
    assert abs(first.mean() - 0.5) < 0.01
