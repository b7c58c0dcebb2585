"""What of an image ISDNet is given."""

from bench.method import Sight
from bench.tiles import Box
from isdnet.inference import LEAST_PX
from isdnet.model import DEEP_SCALE
from isdnet.spec import Spec, Strategy


def sights(strategy: Strategy, spec: Spec, height_px: int, width_px: int) -> tuple[Sight, ...]:
    """The whole image twice: shrunk for the deep branch, and as it is for the shallow one."""
    image = (Box(0, 0, height_px, width_px),)
    height, width = (max(int(side * spec.test_scale), LEAST_PX) for side in (height_px, width_px))
    deep = (max(height // DEEP_SCALE, 1), max(width // DEEP_SCALE, 1))
    return (
        Sight("whole image (deep branch)", image, deep),
        Sight("whole image (shallow branch)", image, (height, width)),
    )
