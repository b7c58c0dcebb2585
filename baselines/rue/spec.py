"""Every setting of RUE."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat
from pydantic.dataclasses import dataclass

Strategy = Literal["whole"]

Quirk = Literal[
    "select-all",
    "truncated-grid",
    "centre-scores",
    "unbounded-weights",
    "unnormalised-loss",
    "nearest-input",
    "ignored-in-mean",
    "any-angle",
    "idle-weights",
    "kept-maps",
]
"""Behaviours of the released code that this code corrects; each is described where it is used."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Spec:
    """RUE (CVPR 2025); the defaults are those of the released configuration for DeepGlobe."""

    patches: Annotated[int, Field(ge=1)] = 20
    """Patches along the longer side of an image that is predicted; 1: the shallow stream sees the
    image in one piece."""
    train_patches: Annotated[int, Field(ge=1)] = 10
    """Patches along the side of a training crop."""
    selected: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the patches that the shallow stream sees. The released configuration takes all
    (`select-all`); which other share its authors tried is not known."""
    crop_px: Annotated[int, Field(ge=32)] = 1224
    """Side of the square training crop: half of DeepGlobe's images, 2500 for Inria."""
    rotate: bool = True
    """Turn half of the training crops about their centre: between 90 and 270 degrees as released,
    by 90, 180 or 270 otherwise."""
    distort: bool = True
    """Change brightness, contrast, saturation and hue of training crops."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Of whole channels, before the classifiers of the deep stream."""
    auxiliary_weight: NonNegativeFloat = 0.4
    """Of the loss at the backbone's third stage."""
    class_weights: tuple[NonNegativeFloat, ...] = ()
    """Factors of the loss by true class, for classes that cover few pixels; none: 1 each."""
    sample_classes: bool = False
    """Whether crops are drawn around pixels of classes drawn before."""
    mean: tuple[float, float, float] = (103.275, 95.888, 70.868)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (17.122, 11.602, 11.299)
    """(image - mean) / std goes into the network, the image in 0..255."""
    official: bool | tuple[Quirk, ...] = False
    """Reproduce the released code: all its quirks, or the named ones."""

    def quirk(self, name: Quirk) -> bool:
        """Whether to reproduce this quirk of the released code."""
        return name in self.official if isinstance(self.official, tuple) else self.official
