"""Every setting of GLNet."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

Strategy = Literal[
    "global",
    "local",
    "global-to-local",
    "collaborative",
    "coarse-to-fine",
    "coarse-to-fine-both-ways",
]
PhaseName = Literal["global", "global-to-local", "local-to-global", "local"]
Sides = PositiveInt | tuple[PositiveInt, PositiveInt]
"""Side of a square, or (height, width), in px."""

Quirk = Literal[
    "template-merge",
    "loose-crops",
    "strict-grid",
    "float64-scores",
    "unturned-patches",
    "summed-gradients",
    "last-loss",
    "kept-canvas",
    "no-unlabelled",
    "quarter-sides",
    "equal-images",
]
"""Behaviours of the released code that this code corrects: docs/differences.md describes each."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Spec:
    """GLNet (CVPR 2019, arXiv 1905.06368); the defaults are the paper's and the official code's."""

    encoder: str = "resnet50"
    """Any encoder of segmentation-models-pytorch with maps at 1/4, 1/8, 1/16 and 1/32."""
    phases: tuple[PhaseName, ...] = ("global", "global-to-local", "local-to-global")
    """What is trained, in this order. `local` alone trains a local branch that receives nothing."""
    global_px: Sides = 508
    """Size to which the whole image is shrunk for the global branch."""
    patch_px: Sides = 508
    """Size of the local branch's patches."""
    overlap_px: NonNegativeInt = 50
    """Least overlap of neighbouring patches."""
    blend: Literal["mean", "gaussian"] = "mean"
    """Weights of the scores of overlapping patches: equal, or a Gaussian around each patch's centre
    as in nnU-Net and MONAI."""
    sub_batch: PositiveInt = 6
    """Patches that go through the local branch at once: memory against speed."""
    sharing: Literal["none", "shallow", "deep"] = "deep"
    """Which maps the branches share: none (only the aggregation joins them), the encoder's (the
    paper does not say which layer its `shallow` shares), or every map up to the last."""
    fpn_width: PositiveInt = 256
    """F: channels of the top-down maps."""
    smooth_width: PositiveInt = 128
    """S: channels a level brings to the fused map, which has 4 S."""
    fpn_std: PositiveFloat | None = 0.01
    """Standard deviation of the FPN's first weights; null: torch's default, which suits narrow FPNs
    better."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 1.0, 1.0)
    """(image / 255 - mean) / std goes into the encoder; the official code leaves 0..1 as it is."""
    focal_gamma: NonNegativeFloat = 3.0
    """Of the loss that counters class imbalance: 3 in the official code, 6 in print; 0 is
    cross-entropy."""
    class_weights: tuple[NonNegativeFloat, ...] = ()
    """Factors of the loss by true class, for classes that cover few pixels; none: 1 each."""
    sample_classes: bool = False
    """Whether training draws patches around pixels of classes drawn before, so that rare classes are
    seen as often as frequent ones."""
    regularisation: NonNegativeFloat = 0.15
    """Weight of the feature-map regularisation in the phase `global-to-local` (section 3.3); 0
    leaves it out."""
    patches_per_image: PositiveInt | None = None
    """Patches of one image in a training step, drawn anew each time; null: all."""
    head: Literal["plain", "collapsed"] = "plain"
    """How inference computes what follows the encoders: step by step, as in the paper, or with
    composed convolutions, to the same labels up to rounding (`glnet.fast.collapsed_head`)."""
    test_time: tuple[Literal["flips", "turns"], ...] = ()
    """Sum the scores over the mirrored image (x 2), over the four quarter turns (x 4), or both
    (x 8)."""
    enlarge: Literal["nearest", "bilinear"] = "nearest"
    """How the global branch's scores come to the image's size: `nearest`, in blocks, as in the
    official code, or `bilinear`."""
    foreground: NonNegativeInt = 1
    """`coarse-to-fine`: label index of the foreground class."""
    margin: Annotated[float, Field(ge=0)] = 0.1
    """`coarse-to-fine`: how far the box is enlarged at each end, as a share of its side."""
    learn_in_box: bool = False
    """The local branch is trained on patches of the labels' foreground box only, as in
    `coarse-to-fine`."""
    official: bool | tuple[Quirk, ...] = False
    """Reproduce the released code: all its quirks, or the named ones."""

    def __post_init__(self) -> None:
        if self.overlap_px >= min(self.patch_size):
            raise ValueError("`overlap_px` has to be smaller than `patch_px`")

    @property
    def global_size(self) -> tuple[int, int]:
        """(height, width) of the global branch's input."""
        return _size(self.global_px)

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch."""
        return _size(self.patch_px)

    @property
    def shared_kinds(self) -> int:
        """How many of the four kinds of maps the branches share."""
        return {"none": 0, "shallow": 1, "deep": 4}[self.sharing]

    def quirk(self, name: Quirk) -> bool:
        """Whether to reproduce this quirk of the released code."""
        return name in self.official if isinstance(self.official, tuple) else self.official


def _size(sides: Sides) -> tuple[int, int]:
    return sides if isinstance(sides, tuple) else (sides, sides)
