"""What of an image PointRend is given."""

from bench.method import Sight
from bench.tiles import Box
from pointrend.spec import Spec, Strategy


def sights(strategy: Strategy, spec: Spec, height_px: int, width_px: int) -> tuple[Sight, ...]:
    """The whole image as it is."""
    box = Box(0, 0, height_px, width_px)
    return (Sight("whole image", (box,), (height_px, width_px)),)
