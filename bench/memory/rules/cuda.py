"""Temporary memory inside operators on CUDA, beside their results.

The rules of torch's own operators follow its source, which each rule names. cuDNN's source is not
public: the rule `TF32` was derived from measurements on an H100 (results/card/h100.json). With it,
49 of 50 predictions of inference are within 1 % of the figure of torch's allocator; without it, 18
are within 2 %. Left out: scratch memory of reductions and of cub, a few KiB."""

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from bench.memory.rules.shared import SHARED, Moment, Rules, Use, beside_results, copy_bytes, named

TF32 = "tf32"
"""Variant of a CUDA device (`Moment.variant`): blocks that only GPUs with TF32 allocate."""
_NAMES = (
    "mm addmm bmm baddbmm mv addmv dot vdot linear matmul _scaled_mm "
    "_native_multi_head_attention _transformer_encoder_layer_fwd"
)
PRODUCTS = frozenset(f"aten::{name}" for name in _NAMES.split())
"""Operators that cuBLAS computes: the first one in a thread allocates its workspace."""
WITHOUT_TEMPORARIES = (
    "batch_norm native_batch_norm native_batch_norm_backward max_pool2d_with_indices_backward "
    "upsample_bilinear2d upsample_bilinear2d_backward upsample_nearest2d upsample_nearest2d_backward "
    "_foreach_sqrt _foreach_add _foreach_mul _foreach_div _foreach_sub _foreach_neg _foreach_pow"
)
"""Beside those of every device; a list of tensors is its result."""


def _convolution(use: Use) -> list[Moment]:
    """Beside the copies, where TF32 is allowed (torch's default) and the GPU supports it (Ampere and
    later), cuDNN uses NHWC kernels for convolutions of stride 1, one group and a kernel of more than
    one pixel. For NCHW tensors its workspace then holds copies of source, weights and result. The
    workspace is a block of torch's allocator."""
    source, weight = use.args["input"], use.args["weight"]
    of_a_pixel = set(weight.shape[2:]) == {1}
    one_group = weight.shape[1] == source.shape[1]
    strided = max(use.args["stride"]) > 1
    workspace = []
    if not (_layout(use) == torch.channels_last or strided or of_a_pixel or not one_group):
        workspace = [tensor.nbytes for tensor in (source, weight, use.result)]
    return [*_copied(use), Moment(workspace, results=True, variant=TF32)]


def _copied(use: Use) -> list[Moment]:
    """Source and weights are converted to one layout (ConvShared.cpp, cudnn_convolution:
    contiguous(cudnn_conv_suggest_memory_format(...))). For transposed convolutions no TF32 kernel
    was found that needs more copies."""
    return _copies(_layout(use), use.args["input"], use.args["weight"])


def _convolution_backward(use: Use) -> list[Moment]:
    """As `_copied`, and a copy of the gradient (ConvShared.cpp, cudnn_convolution_backward); beside
    it one copy of source or weights at a time."""
    others = zip((use.args["weight"], use.args["input"]), use.args["output_mask"], strict=False)
    return [
        moment
        for other, wanted in others
        if wanted
        for moment in _copies(_layout(use), use.first, other)
    ]


def _layout(use: Use) -> torch.memory_format:
    """NHWC if source or weights have it (ConvUtils.h, cudnn_conv_suggest_memory_format)."""
    either = [suggest_memory_format(use.args[name]) for name in ("input", "weight")]
    return torch.channels_last if torch.channels_last in either else torch.contiguous_format


def _copies(layout: torch.memory_format, *tensors: Tensor) -> list[Moment]:
    """Copies of those tensors that do not have the layout."""
    return beside_results(*filter(None, (copy_bytes(tensor, layout) for tensor in tensors)))


CUDA: Rules = SHARED | named(
    ("conv2d convolution", _convolution),
    ("conv_transpose2d", _copied),
    ("convolution_backward", _convolution_backward),
    (WITHOUT_TEMPORARIES, lambda _: []),
)
