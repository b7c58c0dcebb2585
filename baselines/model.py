"""The rivals: encoder-decoders of segmentation-models-pytorch, and one floor that learns nothing
but mean colours."""

from collections.abc import Mapping
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.spec import Spec

ARCHITECTURES = {
    "unet": "Unet",  # Ronneberger et al., MICCAI 2015, with a pretrained encoder
    "fpn": "FPN",  # Kirillov et al., CVPR 2019 (Panoptic FPN's semantic branch)
    "pspnet": "PSPNet",  # Zhao et al., CVPR 2017
    "deeplabv3plus": "DeepLabV3Plus",  # Chen et al., ECCV 2018
}
STRIDE = 32  # every encoder halves five times at most


class Network(nn.Module):
    """An smp network for inputs of any size: bytes in, scores at the same size out."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__()
        try:
            self.network: nn.Module = smp.create_model(
                ARCHITECTURES[spec.network],
                encoder_name=spec.encoder,
                encoder_weights=None,
                classes=classes,
                **_decoder(spec),
            )
        except (KeyError, RuntimeError):  # RuntimeError: timm has no such model
            raise ValueError(
                f"segmentation-models-pytorch has no encoder {spec.encoder!r}; "
                "its documentation lists them all."
            ) from None
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 on any device -> scores (N, K, H, W) on the network's.

        The right and lower border is padded to the stride with the mean colour, which is 0 to the
        encoder."""
        x = (images.to(self.mean.device).float() / 255 - self.mean) / self.std
        height, width = x.shape[-2:]
        x = F.pad(x, (0, _padding(width), 0, _padding(height)))
        scores: Tensor = self.network(x)
        return scores[..., :height, :width]


class Colour(nn.Module):
    """The floor: each pixel gets the class whose mean colour is nearest."""

    sums: Tensor
    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(classes, 3, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.float64))

    def observe(self, images: Tensor, labels: Tensor) -> None:
        """Take the labelled pixels of (N, 3, H, W) and (N, H, W) into the means."""
        colours = images.permute(0, 2, 3, 1).double()  # (N, H, W, 3)
        for k in range(len(self.counts)):
            inside = labels == k
            self.counts[k] += inside.sum()
            self.sums[k] += colours[inside].sum(0)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> minus the squared distance to each class's mean (N, K, H, W).

        A class that was never seen has no mean: its score is below every other one.
        """
        x = images.to(self.counts.device).float()
        means = (self.sums / self.counts.clamp(min=1)[:, None]).float()
        unseen = (self.counts == 0) * 1e9
        scores = [
            -((x - mean[:, None, None]) ** 2).sum(1) - far
            for mean, far in zip(means, unseen.float(), strict=True)
        ]
        return torch.stack(scores, 1)


def build(spec: Spec, classes: int) -> nn.Module:
    """The network of a spec with random weights.

    Raises:
        ValueError: segmentation-models-pytorch has no such encoder, or the network cannot take it.
    """
    return Colour(classes) if spec.network == "colour" else Network(spec, classes)


def start(network: nn.Module, encoder_state: Mapping[str, Tensor]) -> None:
    """Give the encoder its start weights; the floor has none."""
    if isinstance(network, Network):
        encoder = network.network.encoder
        assert isinstance(encoder, nn.Module)
        # An encoder that a decoder uses only in part (PSPNet) lacks the weights of the rest.
        own = encoder.state_dict()
        encoder.load_state_dict({key: encoder_state[key] for key in own})


def _padding(side: int) -> int:
    """Pixels up to the next multiple of the stride; at least two strides in all, since group
    normalisation of the coarsest map needs more than one value."""
    return max(side + -side % STRIDE, 2 * STRIDE) - side


def _decoder(spec: Spec) -> dict[str, Any]:
    """smp's names for the width of each decoder."""
    width = spec.decoder_width
    if width is None:
        return {}
    if spec.network == "unet":
        return {"decoder_channels": tuple(max(width >> level, 8) for level in range(5))}
    if spec.network == "fpn":
        return {"decoder_pyramid_channels": width, "decoder_segmentation_channels": width // 2}
    if spec.network == "pspnet":
        return {"psp_out_channels": width}
    return {"decoder_channels": width}
