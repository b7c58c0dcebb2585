"""What of an image MagNet is given."""

from baselines.magnet.patches import boxes_of
from baselines.magnet.spec import Spec, Strategy
from bench.method import NetworkInput
from bench.tiling import Box, scaled


def network_inputs(
    strategy: Strategy, spec: Spec, height_px: int, width_px: int
) -> tuple[NetworkInput, ...]:
    """The whole image, shrunk, and the patches of each later scale.

    Which patches `fast` takes depends on what the first scale finds, so that they cannot be told.
    """
    image = (height_px, width_px)
    found = [NetworkInput("whole image", (Box(0, 0, *image),), spec.input_size)]
    if strategy == "progressive":
        for number, size in enumerate(spec.scale_sizes(*image)[1:], 2):
            boxes = tuple(scaled(box, size, image) for box in boxes_of(size, spec))
            found.append(NetworkInput(f"patches at scale {number}", boxes, spec.input_size))
    return tuple(found)
