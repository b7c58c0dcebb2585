"""Weights, images and labels that anyone can make again, bit for bit, with NumPy alone."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LAST_NORM_GAIN = 0.25
"""Of each residual block's last batch norm: sixteen sums would otherwise double the variance
each."""
Weight = NDArray[np.float32] | NDArray[np.int64]


def generator(text: str) -> np.random.Generator:
    """The random numbers that a name stands for."""
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))


def weight(
    key: str,
    shape: Sequence[int],
    seed: int,
    gain: float | None = None,
    norm_gain: float | None = None,
) -> Weight:
    """The value of a parameter or buffer of a released network.

    Args:
        key: its official name, without `module.`.
        gain: of a convolution's variance; None: 2 in encoders (`resnet_`), else 1.
        norm_gain: of a batch norm's factor; None: small in a bottleneck's last one.
    """
    if key.endswith("num_batches_tracked"):
        return np.zeros(tuple(shape), np.int64)
    values = generator(f"{key}:{seed}").standard_normal(tuple(shape))
    if key.endswith((".bias", "running_mean")):
        values *= 0.1
    elif key.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif len(shape) > 1:
        gain = gain or (2.0 if key.startswith("resnet_") else 1.0)
        values *= np.sqrt(gain / np.prod(shape[1:]))
    else:
        last = LAST_NORM_GAIN if key.endswith("bn3.weight") else 1.0
        values = (1 + 0.1 * values) * (norm_gain or last)
    return values.astype(np.float32)


def image(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """(H, W, 3): noise in blocks of 16 px and noise in single pixels, three parts to one,
    smoothed; whole numbers throughout."""
    draw = generator(f"image:{seed}")
    coarse = draw.integers(0, 256, (-(-height // 16), -(-width // 16), 3)).astype(np.int64)
    fine = draw.integers(0, 256, (height, width, 3)).astype(np.int64)
    coarse = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    return _box_mean((3 * coarse + fine) // 4, 5).astype(np.uint8)


def label(height: int, width: int, seed: int, classes: int) -> NDArray[np.uint8]:
    """(H, W): blocks of 20 px, each of some class."""
    shape = (-(-height // 20), -(-width // 20))
    blocks = generator(f"label:{seed}").integers(0, classes, shape)
    return blocks.repeat(20, 0).repeat(20, 1)[:height, :width].astype(np.uint8)


def feature(name: str, shape: Sequence[int], seed: int) -> NDArray[np.float32]:
    """A smooth map (N, C, H, W): thirds of sums of noise over 3 x 3 cells, edges repeated."""
    draw = generator(f"feature:{name}:{seed}").standard_normal(tuple(shape))
    padded = np.pad(draw, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    found: NDArray[np.float32] = (windows.sum((-2, -1)) / 3).astype(np.float32)
    return found


def mask(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """(H, W): 0 or 255, by blocks of 20 px."""
    return label(height, width, seed, 2) * np.uint8(255)


def blob(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """(H, W): 0 or 255, in rounded shapes: `mask`, smoothed twice."""
    smooth = _box_mean(_box_mean(mask(height, width, seed).astype(np.int64), 15), 15)
    return np.where(smooth > 127, np.uint8(255), np.uint8(0))


def _box_mean(values: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """Means of whole numbers (H, W, ...) over squares, rounded down; edges are repeated."""
    margin = (side // 2, side // 2)
    padded = np.pad(values, (margin, margin, *[(0, 0)] * (values.ndim - 2)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(0, 1))
    found: NDArray[np.int64] = windows.sum((-2, -1)) // side**2
    return found
