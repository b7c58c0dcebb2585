"""PointRend's network inputs."""

from baselines.pointrend.spec import Spec, Strategy
from bench.method import NetworkInput


def network_inputs(
    strategy: Strategy, spec: Spec, height_px: int, width_px: int
) -> tuple[NetworkInput, ...]:
    """The whole image at its own size."""
    return (NetworkInput.whole(height_px, width_px, (height_px, width_px)),)
