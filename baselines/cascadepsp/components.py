"""Which masks of a label map are refined: whole classes, or as in the released scene parsing scripts
the connected components of each."""

from collections.abc import Iterator

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch._subclasses import FakeTensor

from baselines.cascadepsp.model import STRIDE
from baselines.cascadepsp.spec import Spec
from bench.tiling import Box, Size, bounding_box, relaxed

LEAST_PX = 1024
"""A class or component with no more pixels is not split off."""
REACH_PX = 5
"""Components are joined across gaps that a disc of this radius closes."""


def masks_of(mask: Tensor, spec: Spec) -> Iterator[Tensor]:
    """The masks (H, W) bool to which a class's mask is split: itself, or with `components` its
    connected components, ordered by their first pixel. Small ones are left out."""
    if not spec.components or isinstance(mask, FakeTensor):
        yield mask
        return
    if int(mask.sum()) <= LEAST_PX:
        return
    cells = np.arange(-REACH_PX, REACH_PX)  # of even side, as released
    disc = cells[:, None] ** 2 + cells**2 <= REACH_PX**2
    inside = mask.numpy().astype(np.uint8)
    grown = ndimage.maximum_filter(inside, footprint=disc, mode="constant", cval=0)
    numbers, count = ndimage.label(grown, structure=np.ones((3, 3)))
    for number in range(1, count + 1):
        whole = (numbers == number).astype(np.uint8)
        part = ndimage.minimum_filter(whole, footprint=disc, mode="constant", cval=1)
        if part.sum() > LEAST_PX:
            yield torch.from_numpy(part & inside).bool()


def box_of(mask: Tensor, spec: Spec) -> Box | None:
    """What of the image is seen with a mask (H, W): its bounding box, enlarged; None if the mask is
    empty."""
    found, size = bounding_box(mask), (mask.shape[0], mask.shape[1])
    if found is None:
        return None
    if spec.quirk("open-boxes"):
        return _open(found, size, spec.box_growth / 2)
    return relaxed(found, size, spec.box_growth / 2, (STRIDE, STRIDE))


def _open(box: Box, size: Size, growth: float) -> Box:
    """As released: from the first to the last pixel, which is left out, in whole pixels cut off."""

    def along(first: int, length: int, side: int) -> tuple[int, int]:
        reach = length - 1
        start = int(max(first - growth * reach, 0))
        return start, max(int(min(first + (1 + growth) * reach, side - 1)) - start, 1)

    top, height = along(box.top, box.height, size[0])
    left, width = along(box.left, box.width, size[1])
    return Box(top, left, height, width)
