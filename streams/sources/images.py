"""Transformations that shift a stream of images."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Pixels = TypeVar("Pixels", np.uint8, np.float32)


def rotate(images: npt.NDArray[Pixels], degrees: float) -> npt.NDArray[Pixels]:
    """Turn images counter-clockwise, keeping their size and dtype.

    Multiples of 90 only move pixels. Other angles interpolate bilinearly; pixels from
    outside the frame are 0.

    Args:
        images: [n, side, side], uint8 or float32.
        degrees: any angle.

    >>> rotate(np.array([[[0, 1], [0, 0]]], dtype=np.uint8), 90).tolist()
    [[[1, 0], [0, 0]]]
    """
    if degrees % 90 == 0:
        return np.rot90(images, k=int(degrees // 90), axes=(1, 2))
    from scipy import ndimage  # slow to import, and seldom needed

    turned = ndimage.rotate(images.astype(np.float32), degrees, axes=(2, 1), order=1, reshape=False)
    if images.dtype == np.uint8:
        turned = np.rint(turned)
    return np.asarray(turned, dtype=images.dtype)


def background_noise(
    images: npt.NDArray[np.float32], rng: np.random.Generator, threshold: float = 1e-2
) -> npt.NDArray[np.float32]:
    """Replace the background by noise: pixels under ``threshold`` become uniform on [0, 1).

    The noise of the paper's §4.1 (arXiv:2202.00145).

    Args:
        images: any shape, float32 in [0, 1]; not changed.
        rng: source of the noise.
    """
    noise = rng.random(images.shape, dtype=np.float32)
    return np.where(images < threshold, noise, images)


def noisy_background(
    images: npt.NDArray[np.uint8], rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Replace the background by noise, as `background_noise` does, in 256 levels of grey.

    Pixels under 1e-2 · 255 become uniform on 0…255, so that an image stays one byte a pixel.

    Args:
        images: any shape; not changed.
        rng: source of the noise.
    """
    noise = rng.integers(256, size=images.shape, dtype=np.uint8)
    return np.where(images < 3, noise, images)
