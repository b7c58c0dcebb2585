"""Every setting of MagNet."""

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)
from pydantic.dataclasses import dataclass

Strategy = Literal["coarse", "progressive", "fast"]
Sides = PositiveInt | tuple[PositiveInt, PositiveInt]
"""Side of a square, or (height, width), in px."""
Scale = PositiveFloat | tuple[PositiveInt, PositiveInt]
"""A share of the image's sides, or (height, width) in px."""

Quirk = Literal[
    "least-uncertain",
    "zero-inside",
    "swapped-training",
    "overwritten-overlaps",
    "truncated-grid",
    "first-patch",
    "displaced-crops",
    "sampled-mask",
    "kept-results",
    "corner-crop",
]
"""Behaviours of the released code that this code corrects; each is described where it is used."""


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("A median has a middle where its side is odd")
    return value


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Spec:
    """MagNet and MagNet-Fast (CVPR 2021); the defaults are those of the released code for
    DeepGlobe."""

    encoder: str = "resnet50"
    """Name in segmentation-models-pytorch; any with maps at 1/4 to 1/32."""
    fpn_width: PositiveInt = 256
    smooth_width: PositiveInt = 128
    """Channels of the feature pyramid, and of each level that its classifier sees."""
    refine_width: Annotated[int, Field(ge=2)] = 64
    """Channels of the refinement module's first convolutions; its last maps have twice as many."""
    refinements: Annotated[int, Field(ge=1)] = 1
    """Refinement modules: one for all later scales, or one for each."""
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = (0.25, 0.5, 1.0)
    """At which the image is looked at, growing. At the first the network sees all of it, shrunk to
    `input_px`; at the others patches of `patch_px`."""
    patch_px: Sides = 612
    """Of the image at a later scale; smaller where the image is."""
    input_px: Sides = 508
    """What the whole image, and each patch, is resized to before a network sees it; images that are
    not of this shape are stretched at the first scale."""
    sub_batch: Annotated[int, Field(ge=1)] = 1
    """Patches that go through the networks at once: memory against speed."""
    points: Annotated[float, Field(ge=0)] = 0.75
    """How many pixels of a later scale are refined: up to 1 a share of them, else their number."""
    fast_points: Annotated[float, Field(ge=0)] = 0.9
    """The same of `fast`; a share is of the chosen patches' pixels."""
    fast_patches: Annotated[int, Field(ge=0)] = 3
    """Patches of each later scale that `fast` computes; 0 leaves the scale out."""
    smooth_px: Annotated[int, Field(ge=1), AfterValidator(_odd)] = 11
    """Side of the median that smooths which pixels are worth refining; odd."""
    frame_px: Annotated[int, Field(ge=0)] = 10
    """Of each patch's border `fast` replaces nothing; released: 10."""
    coarse_first: bool = False
    """Give the refinement module the map's crop first and the patch's own probabilities second. The
    released code once did; which order its published weights want is not known."""
    focal_gamma: NonNegativeFloat = 0.0
    """Of the backbone's loss; 0, as published, is cross-entropy."""
    hard_share: Annotated[float, Field(gt=0, le=1)] = 0.7
    """The refinement's loss covers pixels whose true class has a probability below it,"""
    hard_pixels: Annotated[int, Field(ge=1)] = 100_000
    """and from so many of a step's pixels at least: those with the lowest."""
    turn: bool = False
    """Mirror both axes and turn by quarters in both phases, as this suite's other methods do;
    released: the backbone's crops are mirrored left to right alone, the refinement's not."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """(image / 255 - mean) / std goes into the network."""
    official: bool | tuple[Quirk, ...] = False
    """Reproduce the released code: all its quirks, or the named ones."""

    def __post_init__(self) -> None:
        if self.refinements not in (1, max(len(self.scales) - 1, 1)):
            raise ValueError("There is one refinement module, or one for each later scale")

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch."""
        return _size(self.patch_px)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of what a network sees."""
        return _size(self.input_px)

    def scale_sizes(self, height_px: int, width_px: int) -> list[tuple[int, int]]:
        """(height, width) of an image at each scale."""
        return [
            scale
            if isinstance(scale, tuple)
            else (max(round(scale * height_px), 1), max(round(scale * width_px), 1))
            for scale in self.scales
        ]

    def quirk(self, name: Quirk) -> bool:
        """Whether to reproduce this quirk of the released code."""
        return name in self.official if isinstance(self.official, tuple) else self.official


def _size(sides: Sides) -> tuple[int, int]:
    return sides if isinstance(sides, tuple) else (sides, sides)
