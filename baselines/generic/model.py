"""Baselines: encoder-decoders of segmentation-models-pytorch, those of networks/ as their papers
define them, and one that learns only mean colours."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.generic.networks import NETWORKS
from baselines.generic.spec import Spec
from baselines.parts import Normalised, start_encoder

# Networks that the library has as published.
ARCHITECTURES = {
    # Ronneberger et al., MICCAI 2015, with a pretrained encoder; with `mobilenet_v2` (Sandler et
    # al., CVPR 2018) it is the paper's MobileNetV2-U-Net: 6,629,815 parameters with 7 classes.
    "unet": "Unet",
    # Kirillov et al., CVPR 2019 (Panoptic FPN's semantic branch): 26,116,807 with ResNet-50.
    "fpn": "FPN",
    # Chen et al., ECCV 2018: 26,679,127 with ResNet-50. Of the two 3 x 3 convolutions that the
    # paper has after the skip, one stands before it.
    "deeplabv3plus": "DeepLabV3Plus",
    # Xie et al., NeurIPS 2021: 3,715,943 with B0 (encoder `mit_b0`), 27,352,007 with B2.
    "segformer": "Segformer",
    # Xiao et al., ECCV 2018; as ConvNeXt's authors use it (Liu et al., CVPR 2022), but without the
    # auxiliary head: 59,245,479 with `tu-convnext_tiny`. The pyramid's coarsest level has batch norm,
    # so that training needs two images a step.
    "upernet": "UPerNet",
    # Ranftl et al., ICCV 2021: 343,292,679 with ViT-Large.
    "dpt": "DPT",
}
DILATED = ("pspnet", "icnet")  # of NETWORKS, those with an encoder of the library
VIT = ("dpt", "linear")  # those with a ViT of timm, whose maps have one size
STRIDE = 32  # every encoder of the library halves five times at most


class Network(Normalised):
    """A network for inputs of any size: bytes in, scores at the same size out."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__(spec.mean, spec.std, divisor=255, dtype=torch.float32)
        self.network = _network(spec, classes)
        stride = getattr(self.network, "stride", STRIDE)
        assert isinstance(stride, int)
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 on any device -> scores (N, K, H, W) on the network's."""
        scores: Tensor = self.network(self._input(images))
        return _cut(scores, images)

    def heads(self, images: Tensor) -> list[tuple[float, Tensor]]:
        """(weight, scores) of every output in the loss: the main one and auxiliary ones."""
        heads: Any = getattr(self.network, "heads", None)
        if heads is None:
            return [(1.0, self(images))]
        return [(weight, _cut(scores, images)) for weight, scores in heads(self._input(images))]

    def _input(self, images: Tensor) -> Tensor:
        """Normalised; the right and lower border is padded to the stride with the mean colour,
        which is 0 to the encoder."""
        x = self.normalise(images)
        height, width = x.shape[-2:]
        return F.pad(x, (0, _padding(width, self.stride), 0, _padding(height, self.stride)))


class Colour(nn.Module):
    """The simplest baseline: each pixel gets the class whose mean colour is nearest."""

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
        KeyError or RuntimeError: segmentation-models-pytorch, or timm, has no such encoder.
        ValueError: the network cannot take it.
    """
    return Colour(classes) if spec.network == "colour" else Network(spec, classes)


def start(network: nn.Module, encoder_state: Mapping[str, Tensor]) -> None:
    """Load start weights into the encoder; `Colour` has none.

    Raises:
        ValueError: the network has no encoder, or another one.
    """
    if not isinstance(network, Network):
        return
    encoder = getattr(network.network, "encoder", None)
    if encoder is None:
        raise ValueError(
            "it has no encoder and is trained from random weights: set the model's `start` to a line "
            "of `weights` with source none."
        )
    assert isinstance(encoder, nn.Module)
    start_encoder(
        encoder,
        encoder_state,
        "the start weights are of another encoder; fcn8s takes those of vgg16, segnet those of "
        "vgg16_bn, every other network those of its spec's `encoder`.",
    )


def _network(spec: Spec, classes: int) -> nn.Module:
    """The network that a spec names, for sides that divide by its stride."""
    if spec.network in VIT and not spec.encoder.startswith("tu-"):
        raise ValueError(f"{spec.network} takes a ViT of timm: tu-vit_base_patch16_224, say.")
    if spec.network == "linear":
        return NETWORKS[spec.network](encoder=spec.encoder.removeprefix("tu-"), classes=classes)
    if spec.network in NETWORKS:
        encoder = {"encoder": _encoder(spec)} if spec.network in DILATED else {}
        width = spec.decoder_width if encoder else spec.width
        more = {} if width is None else {"width": width}
        if spec.network == "fcn8s":
            more["pad_px"] = spec.fcn_pad_px
        return NETWORKS[spec.network](classes=classes, **encoder, **more)
    import segmentation_models_pytorch as smp  # takes seconds to import

    try:
        network: nn.Module = smp.create_model(
            ARCHITECTURES[spec.network],
            encoder_name=spec.encoder,
            encoder_weights=None,
            classes=classes,
            **_decoder(spec),
        )
    except TypeError:  # only a ViT has its settings
        raise ValueError(f"{spec.network} does not take {spec.encoder}.") from None
    if spec.network == "dpt":
        _prune(network.encoder)
    return network


def _encoder(spec: Spec) -> Any:
    """The spec's encoder, dilated from its output stride (default 1/8) on."""
    import segmentation_models_pytorch as smp

    stride = spec.output_stride or 8
    return smp.encoders.get_encoder(spec.encoder, weights=None, output_stride=stride)


def _prune(vit: Any) -> None:
    """Drop what a dense network does not use: the last normalisation and the classifier.

    Raises:
        ValueError: the decoder cannot double its maps.
    """
    if STRIDE % vit.output_stride:
        raise ValueError(
            f"dpt doubles maps from 1/{STRIDE} on, but {vit.name} has patches of "
            f"{vit.output_stride} px: take one with 16 px."
        )
    vit.model.prune_intermediate_layers(1, prune_norm=True, prune_head=True)


def _cut(scores: Tensor, images: Tensor) -> Tensor:
    return scores[..., : images.shape[-2], : images.shape[-1]]


def _padding(side: int, stride: int) -> int:
    """Pixels up to the next multiple of the stride; at least 64 px in all, since normalisation of
    the coarsest map needs more than one value."""
    least = max(side, 2 * STRIDE)
    return least + -least % stride - side


def _decoder(spec: Spec) -> dict[str, Any]:
    """smp's keyword arguments for the width and output stride of each decoder."""
    width = spec.decoder_width
    stride = {"encoder_output_stride": spec.output_stride} if spec.output_stride else {}
    if spec.network == "deeplabv3plus":
        return stride | ({"decoder_channels": width} if width else {})
    if spec.network == "segformer":  # appendix, table 6: B0 and B1 have a narrower decoder
        narrow = spec.encoder in ("mit_b0", "mit_b1")
        return {"decoder_segmentation_channels": width or (256 if narrow else 768)}
    if spec.network == "upernet":
        return {"decoder_channels": width or 512}
    if spec.network == "dpt":
        maps = width or 256
        inner = (maps, 2 * maps, 4 * maps, 4 * maps)
        return {
            "decoder_fusion_channels": maps,
            "decoder_intermediate_channels": inner,
            "dynamic_img_size": True,
        }
    if width is None:
        return {}
    if spec.network == "unet":
        return {"decoder_channels": tuple(max(width >> level, 8) for level in range(5))}
    return {"decoder_pyramid_channels": width, "decoder_segmentation_channels": width // 2}
