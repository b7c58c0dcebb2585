"""ISDNet's network inputs."""

from baselines.isdnet.inference import LEAST_PX
from baselines.isdnet.model import DEEP_SCALE
from baselines.isdnet.spec import Spec, Strategy
from bench.method import NetworkInput


def network_inputs(
    strategy: Strategy, spec: Spec, height_px: int, width_px: int
) -> tuple[NetworkInput, ...]:
    """The whole image twice: shrunk for the deep branch, and as it is for the shallow one."""
    height, width = (max(int(side * spec.test_scale), LEAST_PX) for side in (height_px, width_px))
    deep = (max(height // DEEP_SCALE, 1), max(width // DEEP_SCALE, 1))
    return (
        NetworkInput.whole(height_px, width_px, deep, "whole image (deep branch)"),
        NetworkInput.whole(height_px, width_px, (height, width), "whole image (shallow branch)"),
    )
