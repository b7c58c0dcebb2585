"""What of an image PointRend is given."""

from baselines.pointrend.spec import Spec, Strategy
from bench.method import NetworkInput
from bench.tiling import Box


def network_inputs(
    strategy: Strategy, spec: Spec, height_px: int, width_px: int
) -> tuple[NetworkInput, ...]:
    """The whole image as it is."""
    box = Box(0, 0, height_px, width_px)
    return (NetworkInput("whole image", (box,), (height_px, width_px)),)
