"""Every setting of the baselines."""

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

Strategy = Literal["downsample", "patch", "whole"]
Network = Literal["unet", "fpn", "pspnet", "deeplabv3plus", "colour"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Spec:
    """One network of segmentation-models-pytorch (or the colour floor), and what it sees in
    training."""

    network: Network
    """`colour` is the floor: nearest class-mean colour, nothing learnt besides the means."""
    train_on: Literal["downsample", "patch"]
    """`downsample`: the whole image, shrunk; `patch`: crops at the image's own resolution."""
    encoder: str = "resnet50"
    """Any encoder of segmentation-models-pytorch that the network takes."""
    size_px: int = 508
    """Side of the square that the network sees: the shrunk image, or a patch."""
    overlap_px: int = 50
    """Least overlap of neighbouring patches."""
    sub_batch: int = 1
    """Patches at once in inference: memory against speed."""
    decoder_width: int | None = None
    """Channels of the decoder (for `unet` of its coarsest level, halved at each finer one); null:
    smp's default."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """(image / 255 - mean) / std goes into the encoder; the defaults are ImageNet's."""
    focal_gamma: float = 0.0
    """0: cross-entropy."""
