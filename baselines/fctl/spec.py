"""Every setting of FCtL."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

Strategy = Literal["plain", "medium", "large", "contexts"]
PhaseName = Literal["plain", "medium", "large", "all"]
Sides = PositiveInt | tuple[PositiveInt, PositiveInt]
"""Side of a square, or (height, width), in px."""

Quirk = Literal[
    "idle-weights",
    "float64-scores",
    "summed-gradients",
    "last-loss",
    "kept-canvas",
]
"""Behaviours of the released code that this code corrects; each is described where it is used."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Spec:
    """FCtL (ICCV 2021); the defaults are those of the released code.

    The paper's contextual semantics refinement was never released, and is not here.
    """

    variant: Literal["inria", "deepglobe"] = "inria"
    """`inria`: what the repository ends with; both contexts are windows around the patch.
    `deepglobe`: what its history has; the large context is the whole image."""
    phases: tuple[PhaseName, ...] = ("plain", "medium", "large", "all")
    """What is trained, in this order; `plain` is "not necessary" in the code's own words."""
    patch_px: Sides = 508
    overlap_px: NonNegativeInt = 50
    """Least overlap of neighbouring patches."""
    blend: Literal["mean", "gaussian"] = "mean"
    """Weights of the scores of overlapping patches: equal, or a Gaussian around each patch's centre
    as in nnU-Net and MONAI."""
    sub_batch: Annotated[int, Field(ge=1)] = 4
    """Patches that go through the networks at once: memory against speed. Released: 6 in the first
    phase, 4 in the others, 16 (`deepglobe` 8) in the test."""
    medium_factor: Annotated[float, Field(ge=1)] | None = None
    """Sides of the medium context in patches; null: as released, 2 for `inria`, 3 for
    `deepglobe`."""
    large_factor: Annotated[float, Field(ge=1)] = 3
    """Of the large context, in `inria` alone."""
    whole_px: Sides = 508
    """Size of the shrunk whole image, the large context of `deepglobe`."""
    width: Annotated[int, Field(ge=4)] = 64
    """Channels of VGG's first stage; the others grow with it. The ImageNet weights fit 64."""
    head_width: Annotated[int, Field(ge=4)] = 4096
    """Channels of VGG's fully connected layers, which are convolutions here."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 1.0, 1.0)
    """(image / 255 - mean) / std goes into the networks; the released code leaves 0..1 as it is,
    although its start weights want ImageNet's."""
    focal_gamma: NonNegativeFloat = 3.0
    """Of the loss that counters class imbalance; 0 is cross-entropy."""
    patches_per_image: PositiveInt | None = None
    """Patches of one image in a training step, drawn anew each time; null: all."""
    test_time: tuple[Literal["flips", "turns"], ...] = ()
    """Sum the scores over the mirrored image (x 2), over the four quarter turns (x 4), or both
    (x 8, as the released test script does)."""
    official: bool | tuple[Quirk, ...] = False
    """Reproduce the released code: all its quirks, or the named ones."""

    def __post_init__(self) -> None:
        if self.overlap_px >= min(self.patch_size):
            raise ValueError("`overlap_px` has to be smaller than `patch_px`")

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch."""
        return _size(self.patch_px)

    @property
    def whole_size(self) -> tuple[int, int]:
        """(height, width) of the shrunk whole image."""
        return _size(self.whole_px)

    @property
    def medium(self) -> float:
        """Sides of the medium context in patches."""
        return self.medium_factor or {"inria": 2, "deepglobe": 3}[self.variant]

    def quirk(self, name: Quirk) -> bool:
        """Whether to reproduce this quirk of the released code."""
        return name in self.official if isinstance(self.official, tuple) else self.official


def _size(sides: Sides) -> tuple[int, int]:
    return sides if isinstance(sides, tuple) else (sides, sides)
