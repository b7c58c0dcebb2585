"""What of an image CascadePSP is given."""

from bench.method import Sight
from bench.tiles import Box
from cascadepsp.spec import Spec, Strategy


def sights(strategy: Strategy, spec: Spec, height_px: int, width_px: int) -> tuple[Sight, ...]:
    """The whole image, shrunk, for the base network; what the refiner is given depends on the
    labels that come of it."""
    box = Box(0, 0, height_px, width_px)
    return (Sight("whole image (base network)", (box,), (spec.base_px, spec.base_px)),)
