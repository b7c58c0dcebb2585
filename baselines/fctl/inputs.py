"""What of an image FCtL is given."""

from baselines.fctl.spec import Spec, Strategy
from bench.method import NetworkInput
from bench.tiling import Box, grid


def network_inputs(
    strategy: Strategy, spec: Spec, height_px: int, width_px: int
) -> tuple[NetworkInput, ...]:
    """Patches, and what stands around each of them, as `baselines.fctl.inference` cuts it."""
    boxes = grid(height_px, width_px, spec.patch_size, spec.overlap_px)
    size = boxes[0][2:]
    whole = NetworkInput("whole image", (Box(0, 0, height_px, width_px),), spec.whole_size)
    patches = NetworkInput("patches", tuple(boxes), size)
    around = tuple(_around(box, spec.medium) for box in boxes)
    medium = NetworkInput("medium contexts", around, size, context=True)
    around = tuple(_around(box, spec.large_factor) for box in boxes)
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


def _around(box: Box, factor: float) -> Box:
    """The window of a context: `factor` times the patch's sides, the patch in its middle."""
    return Box(
        box.top - int((factor - 1) * box.height / 2),
        box.left - int((factor - 1) * box.width / 2),
        int(factor * box.height),
        int(factor * box.width),
    )
