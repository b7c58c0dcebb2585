"""What of an image a plain network is given."""

from baselines.generic.spec import Spec, Strategy
from bench.method import NetworkInput
from bench.tiling import Box, grid


def network_inputs(
    strategy: Strategy, spec: Spec, height_px: int, width_px: int
) -> tuple[NetworkInput, ...]:
    """The image, shrunk or not, or its patches."""
    side = spec.size_px
    if strategy == "patch":
        boxes = grid(height_px, width_px, side, spec.overlap_px)
        return (NetworkInput("patches", tuple(boxes), boxes[0][2:]),)
    size = (side, side) if strategy == "downsample" else (height_px, width_px)
    return (NetworkInput("whole image", (Box(0, 0, height_px, width_px),), size),)
