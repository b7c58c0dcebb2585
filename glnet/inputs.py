"""What of an image GLNet is given."""

from bench.method import NetworkInput
from bench.tiling import Box, grid
from glnet.spec import Spec, Strategy


def network_inputs(
    strategy: Strategy, spec: Spec, height_px: int, width_px: int
) -> tuple[NetworkInput, ...]:
    """The shrunk image of the global branch, and the patches of the local one.

    Which patches `coarse-to-fine` takes depends on what the global branch finds, so that they
    cannot be told.
    """
    image = (Box(0, 0, height_px, width_px),)
    boxes = tuple(grid(height_px, width_px, spec.patch_size, spec.overlap_px))
    whole = NetworkInput("whole image", image, spec.global_size)
    patches = NetworkInput("patches", boxes, boxes[0][2:])
    if strategy == "local":
        return (patches,)
    return (whole,) if strategy in ("global", "coarse-to-fine") else (whole, patches)
