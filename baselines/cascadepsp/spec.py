"""Every setting of CascadePSP."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

Strategy = Literal["base", "cascade"]
Phase = Literal["base", "refiner"]
Quirk = Literal[
    "floored-sides", "both-sides-padded", "aligned-corners", "open-boxes", "grey-levels"
]
"""Behaviours of the released code that this code corrects; each is described where it is used."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Spec:
    """CascadePSP (CVPR 2020), and the base network whose labels it refines.

    The refiner's defaults are those of the released code. Nothing says which base network, whose
    refiner and which sizes the row of that name in the tables of ultra-high-resolution methods has.
    """

    encoder: str = "resnet50"
    """Of the base network, a feature pyramid: any encoder of segmentation-models-pytorch."""
    base_px: Annotated[int, Field(ge=32)] = 508
    """Side of the square to which the whole image is shrunk for the base network."""
    base_width: Annotated[PositiveInt, Field(multiple_of=64)] | None = None
    """Channels of the base network's pyramid, twice those of its head; null: as published."""
    width: Annotated[int, Field(ge=4, multiple_of=2)] = 64
    """Channels of the refiner's first layer; all others grow with it. ImageNet weights fit 64."""
    side_px: Annotated[int, Field(ge=16)] = 900
    """Longer side of the refiner's input: the shrunk mask, and then crops of it."""
    enlarged_px: PositiveInt = 1
    """A mask with a smaller longer side is enlarged to this one at first; the released package has
    `side_px` here, the released scene parsing scripts 224 without crops, and with them nothing."""
    by_crops: bool = True
    """Refine crops at full resolution after the whole mask."""
    stride_px: Annotated[int, Field(ge=1)] = 450
    """Crops are so far apart, less `margin_px` at both ends."""
    margin_px: Annotated[int, Field(ge=0)] = 16
    """Margin that is dropped at a crop's edges inside the mask."""
    least_share: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """A crop with less foreground than this, or less background, is not refined."""
    components: bool = False
    """Refine each connected component of a class by itself, as the released scene parsing scripts
    do."""
    doubtful: tuple[int, ...] = ()
    """Classes that replace a label only where their probability is above 0.98. The released list is
    of ADE20K's classes."""
    box_growth: Annotated[float, Field(ge=0)] = 0.25
    """Relative enlargement of a class's bounding box."""
    crop_px: Annotated[int, Field(ge=32)] = 224
    """Side of the refiner's square training crop."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """(image / 255 - mean) / std goes into both networks; the defaults are ImageNet's."""
    focal_gamma: NonNegativeFloat = 0.0
    """Of the base network's loss; 0: cross-entropy."""
    official: bool | tuple[Quirk, ...] = False
    """Reproduce the released code: all its quirks, or the named ones."""

    def quirk(self, name: Quirk) -> bool:
        """Whether to reproduce this quirk of the released code."""
        return name in self.official if isinstance(self.official, tuple) else self.official

    @property
    def step_px(self) -> int:
        """From one crop to the next."""
        return max(self.stride_px - 2 * self.margin_px, 1)
