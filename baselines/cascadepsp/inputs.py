"""What of an image CascadePSP is given."""

from baselines.cascadepsp.spec import Spec, Strategy
from bench.method import NetworkInput
from bench.tiling import Box


def network_inputs(
    strategy: Strategy, spec: Spec, height_px: int, width_px: int
) -> tuple[NetworkInput, ...]:
    """The whole image, shrunk, for the base network; what the refiner is given depends on the
    labels that come of it."""
    box = Box(0, 0, height_px, width_px)
    return (NetworkInput("whole image (base network)", (box,), (spec.base_px, spec.base_px)),)
