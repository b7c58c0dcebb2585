"""FCtL's network inputs."""

from baselines.fctl.inference import context_of
from baselines.fctl.spec import Spec, Strategy
from bench.method import NetworkInput
from bench.tiling import grid


def network_inputs(
    strategy: Strategy, spec: Spec, height_px: int, width_px: int
) -> tuple[NetworkInput, ...]:
    """Patches and their contexts."""
    boxes = grid(height_px, width_px, spec.patch_size, spec.overlap_px)
    size = boxes[0][2:]
    whole = NetworkInput.whole(height_px, width_px, spec.whole_size)
    patches = NetworkInput("patches", tuple(boxes), size)
    around = tuple(context_of(box, spec.medium) for box in boxes)
    medium = NetworkInput("medium contexts", around, size, context=True)
    around = tuple(context_of(box, spec.large_factor) for box in boxes)
    large = NetworkInput("large contexts", around, size, context=True)
    if spec.variant == "deepglobe":
        return {
            "plain": (patches,),
            "medium": (patches, medium),
            "large": (whole,),
            "contexts": (whole, patches, medium),
        }[strategy]
    return {
        "plain": (patches,),
        "medium": (patches, medium),
        "large": (patches, large),
        "contexts": (patches, medium, large),
    }[strategy]
