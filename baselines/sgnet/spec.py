"""Every setting of SGNet."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat
from pydantic.dataclasses import dataclass

Strategy = Literal["surround"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Spec:
    """SGNet (NeurIPS 2024), ours after its text: no code is public. The sizes of patch and
    surroundings, the backbone and the weights of the losses are the paper's; the last four settings
    of the context module are chosen here."""

    encoder: str = "resnet50"
    """Of the local network, a DeepLabv3+; by its name in segmentation-models-pytorch."""
    patch_px: Annotated[int, Field(ge=1)] = 512
    context_px: Annotated[int, Field(ge=1)] = 1024
    """Side of the surroundings, which the network sees at their own resolution; at an edge of the
    image they are moved inside it."""
    overlap_px: Annotated[int, Field(ge=0)] = 0
    """Of patches: at least so many pixels."""
    blend: Literal["mean", "gaussian"] = "mean"
    """Weights of the scores of overlapping patches: equal, or a Gaussian around each patch's centre
    as in nnU-Net and MONAI."""
    sub_batch: Annotated[int, Field(ge=1)] = 1
    """Patches that pass the network together."""
    context_weight: NonNegativeFloat = 0.4
    """Of the loss of the surroundings' own prediction."""
    agreement_weight: NonNegativeFloat = 0.1
    """Of the mean absolute difference of both predictions on the patch."""
    width: Annotated[int, Field(ge=1)] = 128
    """Channels of the context module."""
    depth: Annotated[int, Field(ge=1)] = 1
    """Its blocks."""
    window: Annotated[int, Field(ge=1)] = 8
    """Side of its attention windows, in cells of 16 px."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Of its attention."""
    decoder_width: Annotated[int, Field(ge=1)] = 256
    """Channels of DeepLabv3+'s decoder."""

    def __post_init__(self) -> None:
        if self.overlap_px >= self.patch_px:
            raise ValueError("`overlap_px` has to be smaller than `patch_px`")
        if self.context_px < self.patch_px:
            raise ValueError("`context_px` has to be at least `patch_px`")
        if self.width % self.heads:
            raise ValueError("`heads` has to divide `width`")
