"""Every setting of the baselines."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

Strategy = Literal["downsample", "patch", "whole"]
Network = Literal[
    "unet",
    "unet2015",
    "fpn",
    "fcn8s",
    "segnet",
    "enet",
    "icnet",
    "pspnet",
    "deeplabv3plus",
    "segformer",
    "upernet",
    "dpt",
    "linear",
    "colour",
]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Spec:
    """One network and its training input."""

    network: Network
    """`colour` is the baseline of all: the class with the nearest mean colour."""
    train_on: Literal["downsample", "patch"]
    """`downsample`: the whole image, shrunk; `patch`: crops at the image's own resolution."""
    encoder: str = "resnet50"
    """Any encoder of segmentation-models-pytorch that the network takes: for `icnet` a ResNet.
    `fcn8s` and `segnet` have VGG-16 of their own, `unet2015` and `enet` none; `dpt` and `linear` take
    a ViT of timm. Published are `mit_b0` to `mit_b5` with `segformer`."""
    size_px: PositiveInt = 508
    """Side of the square input: the shrunk image, or a patch."""
    overlap_px: NonNegativeInt = 50
    """Least overlap of neighbouring patches."""
    blend: Literal["mean", "gaussian"] = "mean"
    """Weights of the scores of overlapping patches: equal, or a Gaussian around each patch's centre
    as in nnU-Net and MONAI."""
    sub_batch: PositiveInt = 1
    """Patches at once in inference: memory against speed."""
    decoder_width: PositiveInt | None = None
    """Channels of the decoder (for `unet` of its coarsest level, halved at each finer one; for
    `icnet` and `dpt` of the fused maps; `linear` has none); null: as published."""
    frozen_encoder: bool = False
    """Whether the encoder keeps its start weights, as the published linear heads do."""
    width: Annotated[int, Field(ge=4)] | None = None
    """Channels of the first stage of `unet2015`, `fcn8s`, `segnet` (64 as published) and `enet`
    (16); the others grow with it. The ImageNet weights fit 64."""
    output_stride: Literal[8, 16] | None = None
    """Of the dilated encoders; null: as published, 16 for `deeplabv3plus`, 8 for `pspnet` and
    `icnet`."""
    fcn_pad_px: NonNegativeInt = 100
    """Zeros around the image in `fcn8s`: 100 as published, or 0."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """(image / 255 - mean) / std goes into the encoder; the defaults are ImageNet's."""
    focal_gamma: NonNegativeFloat = 0.0
    """0: cross-entropy."""
    class_weights: tuple[NonNegativeFloat, ...] = ()
    """Factors of the loss by true class, for classes that cover few pixels; none: 1 each."""
    sample_classes: bool = False
    """Whether training draws patches around pixels of classes drawn before, so that rare classes are
    seen as often as frequent ones."""

    def __post_init__(self) -> None:
        if self.overlap_px >= self.size_px:
            raise ValueError("`overlap_px` has to be smaller than `size_px`")
