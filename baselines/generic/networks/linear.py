"""Linear head on a vision transformer, as DINOv2's authors judge features: Oquab et al., TMLR 2024,
arXiv 2304.07193, section 7.4.

The last layer's patch tokens become scores of their patch, which are enlarged to the image.
22,058,887 parameters with ViT-S/14 and 7 classes, 2,695 of them in the head; the paper trains these
alone (`frozen_encoder`). Takes any ViT of timm, such as DINOv2's or SAM's (Kirillov et al., ICCV
2023, arXiv 2304.02643). Differs from the paper: no batch norm before the head."""

from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Module):
    """A ViT and one 1 x 1 convolution."""

    def __init__(self, encoder: str, classes: int) -> None:
        """`encoder`: name of a ViT in timm; its position embedding is resized to the image.

        Raises:
            ValueError: it is no ViT.
        """
        super().__init__()
        # takes seconds to import
        from segmentation_models_pytorch.encoders.timm_vit import TimmViTEncoder

        sized = {} if "sam" in encoder else {"dynamic_img_size": True}  # SAM's always is
        try:
            self.encoder = TimmViTEncoder(encoder, False, depth=1, num_classes=0, **sized)
        except TypeError:
            raise ValueError(f"linear takes a ViT of timm, and {encoder} is none.") from None
        self.stride = self.encoder.output_stride
        self.classify = nn.Conv2d(self.encoder.model.num_features, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> scores (N, K, H, W)."""
        model = self.encoder.model
        (tokens,) = model.forward_intermediates(x, 1, norm=True, intermediates_only=True)
        return F.interpolate(self.classify(tokens), x.shape[-2:], mode="bilinear")
