"""Every setting of ISDNet."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat
from pydantic.dataclasses import dataclass

Strategy = Literal["whole"]

Quirk = Literal[
    "nearest-input",
    "kept-maps",
    "idle-classifier",
    "crossed-classifiers",
    "small-norm",
    "ignored-in-mean",
    "any-angle",
]
"""Behaviours of the released code that this code corrects; each is described where it is used."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Spec:
    """ISDNet (CVPR 2022); the defaults are those of the released configuration for DeepGlobe."""

    depth: Literal[18, 50] = 18
    """Layers of the deep branch's ResNet. With 50 its feature is reduced to 128 channels before it
    is fused."""
    crop_px: Annotated[int, Field(ge=32)] = 1224
    """Side of the square training crop: half of DeepGlobe's images, 2000 for Inria."""
    train_scale: Annotated[float, Field(gt=0)] = 1.0
    """Sides of a training image are multiplied by this before it is cropped: .8 for Inria."""
    test_scale: Annotated[float, Field(gt=0)] = 1.0
    """Sides of an image that is predicted; scores are enlarged to its own size. The released code
    trains Inria at .8 and tests it at 1; its speed is taken at .8."""
    test_flip: bool = False
    """Add the probabilities of the mirrored image."""
    rotate: bool = True
    """Turn half of the training crops about their centre: between 90 and 270 degrees as released,
    by 90, 180 or 270 otherwise."""
    distort: bool = True
    """Change brightness, contrast, saturation and hue of training crops."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Of whole channels, before the classifiers."""
    auxiliary_weight: NonNegativeFloat = 0.4
    """Of the loss at the backbone's third stage."""
    detail_weight: NonNegativeFloat = 0.1
    """Of the loss of the restored residuals (super-resolution)."""
    affinity_weight: NonNegativeFloat = 1.0
    """Of the loss that draws the deep feature's similarities to those of the restoring decoder."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.12, 57.375)
    """(image - mean) / std goes into the network, the image in 0..255."""
    official: bool | tuple[Quirk, ...] = False
    """Reproduce the released code: all its quirks, or the named ones."""

    def quirk(self, name: Quirk) -> bool:
        """Whether to reproduce this quirk of the released code."""
        return name in self.official if isinstance(self.official, tuple) else self.official
