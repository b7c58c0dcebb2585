"""Weights, images and labels that anyone can make again, bit for bit, with NumPy alone."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LAST_NORM_GAIN = 0.25
"""Of each residual block's last batch norm: sixteen sums would else double the variance each."""


def weight(key: str, shape: Sequence[int], seed: int) -> NDArray[np.float32] | NDArray[np.int64]:
    """The value of a parameter or buffer of the official network.

    Args:
        key: its official name, without `module.`.
    """
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    values = _generator(f"{key}:{seed}").standard_normal(tuple(shape))
    if key.endswith((".bias", "running_mean")):
        values *= 0.1
    elif key.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif len(shape) == 4:
        fan_in = shape[1] * shape[2] * shape[3]
        values *= np.sqrt((2.0 if key.startswith("resnet_") else 1.0) / fan_in)
    else:  # the factor of a batch norm
        values = (1 + 0.1 * values) * (LAST_NORM_GAIN if key.endswith("bn3.weight") else 1.0)
    return values.astype(np.float32)


def image(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """(H, W, 3): noise in blocks of 16 px and noise in single pixels, three parts to one,
    smoothed; whole numbers throughout."""
    generator = _generator(f"image:{seed}")
    coarse = generator.integers(0, 256, (-(-height // 16), -(-width // 16), 3)).astype(np.int64)
    fine = generator.integers(0, 256, (height, width, 3)).astype(np.int64)
    coarse = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    return _box_mean((3 * coarse + fine) // 4, 2).astype(np.uint8)


def label(height: int, width: int, seed: int, classes: int) -> NDArray[np.uint8]:
    """(H, W): blocks of 20 px, each of some class."""
    shape = (-(-height // 20), -(-width // 20))
    blocks = _generator(f"label:{seed}").integers(0, classes, shape)
    return blocks.repeat(20, 0).repeat(20, 1)[:height, :width].astype(np.uint8)


def _box_mean(values: NDArray[np.int64], radius: int) -> NDArray[np.int64]:
    side = 2 * radius + 1
    padded = np.pad(values, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(0, 1))
    total: NDArray[np.int64] = windows.sum((-2, -1))
    return total // side**2


def _generator(text: str) -> np.random.Generator:
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
