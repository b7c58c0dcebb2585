"""Every setting of F2Net."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat
from pydantic.dataclasses import dataclass

Strategy = Literal["whole"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Spec:
    """F2Net (CVPR 2026). Its released code has the modules and losses; how they are joined, and every
    setting but the weights of the losses, is chosen here."""

    low_scale: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Sides of the low-frequency map that both its branches see, over those of the image."""
    crop_px: Annotated[int, Field(ge=32)] = 512
    """Side of the square training crop."""
    alignment_weight: NonNegativeFloat = 0.1
    """Of the loss that draws the features of both frequencies together (CFAL)."""
    balance_weight: NonNegativeFloat = 0.1
    """Of the loss that draws the gradients of the three branches to one norm (CFBL); 0 saves the
    second derivatives."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of images for which the last block of the high-frequency branch is left out in training;
    it grows linearly from 0 in the first."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.12, 57.375)
    """(image - mean) / std goes into the network, the image in 0..255."""
