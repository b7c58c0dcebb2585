"""MagNet's network inputs."""

from baselines.magnet.patches import boxes_of
from baselines.magnet.spec import Spec, Strategy
from bench.method import NetworkInput
from bench.tiling import scaled


def network_inputs(
    strategy: Strategy, spec: Spec, height_px: int, width_px: int
) -> tuple[NetworkInput, ...]:
    """The whole image, shrunk, and the patches of each later scale.

    The patches of `fast` depend on the result of the first scale and are left out.
    """
    image = (height_px, width_px)
    found = [NetworkInput.whole(*image, spec.input_size)]
    if strategy == "progressive":
        for number, size in enumerate(spec.scale_sizes(*image)[1:], 2):
            boxes = tuple(scaled(box, size, image) for box in boxes_of(size, spec))
            found.append(NetworkInput(f"patches at scale {number}", boxes, spec.input_size))
    return tuple(found)
