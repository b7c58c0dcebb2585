"""Every setting of GLNet."""

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

Strategy = Literal["global", "local", "global-to-local", "collaborative"]
PhaseName = Literal["global", "global-to-local", "local-to-global", "local"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Spec:
    """GLNet (CVPR 2019, arXiv 1905.06368); the defaults are the paper's and the official code's."""

    encoder: str = "resnet50"
    """Any encoder of segmentation-models-pytorch with maps at 1/4, 1/8, 1/16 and 1/32."""
    phases: tuple[PhaseName, ...] = ("global", "global-to-local", "local-to-global")
    """What is trained, in this order. `local` alone trains a local branch to which nothing is
    lent."""
    global_px: int = 508
    """Side of the square that the global branch sees the whole image in."""
    patch_px: int = 508
    """Side of the patches that the local branch sees."""
    overlap_px: int = 50
    """Least overlap of neighbouring patches."""
    sub_batch: int = 6
    """Patches that go through the local branch at once: memory against speed."""
    fpn_width: int = 256
    """F: channels of the top-down maps."""
    smooth_width: int = 128
    """S: channels a level brings to the fused map, which has 4 S."""
    fpn_std: float | None = 0.01
    """Standard deviation of the FPN's first weights; null: torch's default, which suits narrow FPNs
    better."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """(image / 255 - mean) / std goes into the encoder; the official code leaves 0..1 as it is."""
    focal_gamma: float = 3.0
    """3 in the official code, 6 in print."""
    regularisation: float = 0.15
    """Weight of the feature-map regularisation in the phase `global-to-local` (section 3.3)."""
    patches_per_image: int | None = None
    """Patches of one image that a training step learns from, drawn anew each time; null: all."""
