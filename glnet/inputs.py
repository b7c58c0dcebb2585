"""GLNet's network inputs."""

from bench.method import NetworkInput
from bench.tiling import grid
from glnet.spec import Spec, Strategy


def network_inputs(
    strategy: Strategy, spec: Spec, height_px: int, width_px: int
) -> tuple[NetworkInput, ...]:
    """The shrunk image of the global branch, and the patches of the local one.

    The patches of `coarse-to-fine` depend on the global branch's labels and are left out.
    """
    boxes = tuple(grid(height_px, width_px, spec.patch_size, spec.overlap_px))
    whole = NetworkInput.whole(height_px, width_px, spec.global_size)
    patches = NetworkInput("patches", boxes, boxes[0][2:])
    if strategy == "local":
        return (patches,)
    return (whole,) if strategy in ("global", "coarse-to-fine") else (whole, patches)
