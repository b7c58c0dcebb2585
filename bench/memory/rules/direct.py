"""Convolutions that oneDNN's direct float32 kernels refuse, and unfolded pixels (im2col) do instead.

From oneDNN's source: `init_conf` of the three passes in jit_avx512_common_conv_kernel.cpp and in
jit_avx2_conv_kernel_f32.cpp. A kernel computes so many pixels of a row at once, and pads with no
more than as many: large dilations, whose padding is as large, are what it refuses in practice."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

PIXELS = 28  # of a row at once: a register each
WIDEST = 14
"""Kernel up to which the weights' gradient has a direct kernel."""


@dataclass(frozen=True)
class Sizes:
    """What the kernels look at; pairs are of height and width."""

    batch: int
    inputs: int
    """Channels of a group, and below."""
    outputs: int
    source: Sequence[int]
    result: Sequence[int]
    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    block: int
    """Channels of a block: 16 with AVX-512, 8 without."""

    @property
    def extent(self) -> list[int]:
        """Pixels from the kernel's first to its last."""
        return [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]

    def end(self, side: int, results: int) -> int:
        """Padding behind the last pixel that `results` pixels of a row or column read."""
        reach = (results - 1) * self.stride[side] + self.extent[side]
        return reach - self.source[side] - self.padding[side]

    @property
    def ends(self) -> list[int]:
        return [self.end(side, results) for side, results in enumerate(self.result)]

    @property
    def outside(self) -> bool:
        """Whether some result reads nothing but padding."""
        most = map(max, self.padding, self.ends)
        return any(one >= extent for one, extent in zip(most, self.extent, strict=True))

    @property
    def paired(self) -> int:
        """Columns of the source with padding, an even number of them for each stride, as bfloat16's
        gradient of the weights reads them (measured)."""
        stride, padding = self.stride[1], max(self.padding[1], self.ends[1] + 1, 1)
        return even(-(-self.source[1] // stride) + even(padding)) * stride


def even(number: int) -> int:
    """The next even number."""
    return number + number % 2


def cache_bytes(name: str, otherwise: int) -> int:
    """A core's cache by its name in `os.sysconf`; `otherwise` where the system does not tell."""
    return (os.sysconf(name) if name in getattr(os, "sysconf_names", ()) else 0) or otherwise


def refuses_forward(sizes: Sizes) -> bool:
    at_once = _at_once(sizes)
    whole = sizes.result[1] // at_once * at_once
    return sizes.outside or max(sizes.padding[1], sizes.end(1, whole)) > at_once


def refuses_source(sizes: Sizes) -> bool:
    """The gradient of the source."""
    width, stride, at_once = sizes.source[1], sizes.stride[1], _gradient_at_once(sizes)
    before, behind = sizes.padding[1], sizes.ends[1] + width % at_once
    overflow = [max(0, sizes.extent[1] - 1 - pad) // stride * stride for pad in (before, behind)]
    return sizes.outside or max(overflow) > at_once


def refuses_weights(sizes: Sizes) -> bool:
    """The gradient of the weights."""
    dilated = max(sizes.dilation) > 1
    ends, extent = sizes.ends, sizes.extent
    if sizes.block < 16:
        larger = sizes.kernel[0] > sizes.source[0] or sizes.kernel[1] >= WIDEST
        return sizes.outside or dilated or larger
    larger = sizes.kernel[1] > WIDEST or (dilated and extent[0] > sizes.source[0])
    far = max(sizes.padding[0], ends[0]) > extent[0] // 2
    strided = dilated and max(sizes.stride) > 1
    return sizes.outside or larger or far or strided or max(sizes.padding[1], ends[1]) > PIXELS


def _gradient_at_once(sizes: Sizes) -> int:
    """Pixels of a row of the source's gradient that the kernel computes at once."""
    width, stride, kernel = sizes.source[1], sizes.stride[1], sizes.kernel[1]
    if sizes.block < 16:
        return min(width, stride * (15 // (stride + 1)))
    blocks = math.ceil(sizes.inputs / sizes.block)
    rows = 2 * width * sizes.kernel[0] + sizes.result[1]
    used = 4 * sizes.block * (rows + 2 * math.prod(sizes.kernel) * sizes.block)
    fits = used <= cache_bytes("SC_LEVEL1_DCACHE_SIZE", 2**15)
    short = width <= 5 or 8 < width <= 13 or not fits
    several = kernel == 1 or (kernel == 5 and width < 8) or (kernel < 5 and short)
    if several and sizes.stride[0] == 1:
        held = max(number for number in range(1, 5) if blocks % number == 0)
        return min(width, 31 // (held + 1))
    alone = kernel > 3 or (kernel == 3 and fits and sizes.result[1] > 8) or sizes.stride[0] > 1
    return min(width, PIXELS if alone or blocks % 2 else 10)


def _at_once(sizes: Sizes) -> int:
    """Pixels of a row that the forward kernel computes at once: more where it holds one block of
    results at a time than where it holds up to five."""
    height, width = sizes.result
    if sizes.block < 16:
        return min(width, 3)
    blocks = math.ceil(sizes.outputs / sizes.block)
    narrow = sizes.kernel[1] == 3 and width <= PIXELS
    narrow &= (width, sizes.inputs >= 192) != (13, True)
    narrow &= (width, sizes.inputs >= 512) != (28, True)
    if max(sizes.stride) > 1:
        narrow &= sizes.batch <= 16 and (sizes.outputs <= 192 or height <= 10)
    alone = sizes.batch == 1 and (
        width <= PIXELS or sizes.inputs <= 3 or (width <= 147 and sizes.outputs <= 96)
    )
    if sizes.kernel[1] > 3 or narrow or alone:
        return min(width, PIXELS)
    held = max(number for number in range(1, 6) if blocks % number == 0)
    return min(width, 31 // (held + 1))
