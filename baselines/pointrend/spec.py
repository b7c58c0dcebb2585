"""Every setting of PointRend."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat
from pydantic.dataclasses import dataclass

Strategy = Literal["whole"]

Quirk = Literal["ignored-in-mean"]
"""Behaviours of mmsegmentation's code that this code corrects; each is described where it is
used."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Spec:
    """PointRend (CVPR 2020) in its form for semantic segmentation.

    The defaults are those of its published Cityscapes setting, but for `crop_px`. What the row of
    that name in the tables of ultra-high-resolution methods was made with is not known.
    """

    encoder: str = "tu-resnet50c"
    """Any encoder of segmentation-models-pytorch; the default is a ResNet-50 with three 3 x 3
    convolutions as stem ("v1c")."""
    fpn_width: Annotated[int, Field(ge=4)] = 256
    """Channels of the feature pyramid."""
    head_width: Annotated[int, Field(ge=4)] = 128
    """Channels of the head that makes the coarse scores."""
    point_width: Annotated[int, Field(ge=4)] = 256
    """Channels of the three layers that a point goes through."""
    crop_px: Annotated[int, Field(ge=32)] = 1224
    """Side of the square training crop."""
    points: Annotated[int, Field(ge=1)] = 2048
    """Points of an image in the loss of a training step."""
    oversampling: Annotated[float, Field(ge=1)] = 3.0
    """So many times `points` are drawn, and the least certain of them kept."""
    uncertain: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Share of `points` that are kept for being uncertain; the rest is drawn anew."""
    subdivisions: Annotated[int, Field(ge=0)] = 2
    """Times that scores, at 1/4 of the image at first, are doubled and corrected in the test."""
    subdivision_points: Annotated[int, Field(ge=1)] = 8196
    """Points that each correction predicts again."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """(image / 255 - mean) / std goes into the encoder; the defaults are ImageNet's."""
    focal_gamma: NonNegativeFloat = 0.0
    """0: cross-entropy, as published."""
    official: bool | tuple[Quirk, ...] = False
    """Reproduce mmsegmentation's code: all its quirks, or the named ones."""

    def quirk(self, name: Quirk) -> bool:
        """Whether to reproduce this quirk of mmsegmentation's code."""
        return name in self.official if isinstance(self.official, tuple) else self.official
