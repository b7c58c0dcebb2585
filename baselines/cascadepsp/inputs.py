"""CascadePSP's network inputs."""

from baselines.cascadepsp.spec import Spec, Strategy
from bench.method import NetworkInput


def network_inputs(
    strategy: Strategy, spec: Spec, height_px: int, width_px: int
) -> tuple[NetworkInput, ...]:
    """The whole image, shrunk, for the base network; the refiner's inputs depend on its labels and
    are left out."""
    size = (spec.base_px, spec.base_px)
    return (NetworkInput.whole(height_px, width_px, size, "whole image (base network)"),)
