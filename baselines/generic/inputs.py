"""Network inputs of the single-network baselines."""

from baselines.generic.spec import Spec, Strategy
from bench.method import NetworkInput
from bench.tiling import grid


def network_inputs(
    strategy: Strategy, spec: Spec, height_px: int, width_px: int
) -> tuple[NetworkInput, ...]:
    """The image, shrunk or not, or its patches."""
    side = spec.size_px
    if strategy == "patch":
        boxes = grid(height_px, width_px, side, spec.overlap_px)
        return (NetworkInput("patches", tuple(boxes), boxes[0][2:]),)
    size = (side, side) if strategy == "downsample" else (height_px, width_px)
    return (NetworkInput.whole(height_px, width_px, size),)
