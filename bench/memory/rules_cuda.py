"""Temporary memory inside operators on CUDA, beside their results.

The rules of torch's own operators follow its source, which each rule names. cuDNN's source is not
public: the rule `TF32` was derived from measurements on an H100 (results/card/h100.json). With it,
49 of 50 predictions of inference are within 1 % of the figure of torch's allocator; without it, 18
are within 2 %. Left out: scratch memory of reductions and of cub, a few KiB."""

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from bench.memory.tracker import Moment, Rule, Rules, Use


def _convolution(use: Use) -> list[Moment]:
    """Source and weights are converted to one layout, NHWC if either has it (ConvShared.cpp,
    cudnn_convolution: contiguous(cudnn_conv_suggest_memory_format(...)))."""
    source, weight = use.args[:2]
    layout = _layout(source, weight)
    copies = Moment(_copies(layout, source, weight), results=True)
    return [copies, Moment(_tf32(use, layout), results=True, variant=TF32)]


def _tf32(use: Use, layout: torch.memory_format) -> list[int]:
    """Where TF32 is allowed (torch's default) and the GPU supports it (Ampere and later), cuDNN uses
    NHWC kernels for convolutions of stride 1, one group and a kernel of more than one pixel. For
    NCHW tensors its workspace then holds copies of source, weights and result. The workspace is a
    block of torch's allocator."""
    source, weight = use.args[:2]
    stride = [*use.args[3]] if len(use.args) > 3 else [1]
    of_a_pixel = set(weight.shape[2:]) == {1}
    one_group = weight.shape[1] == source.shape[1]
    if layout == torch.channels_last or max(stride) > 1 or of_a_pixel or not one_group:
        return []
    return [tensor.numel() * tensor.element_size() for tensor in (source, weight, use.result)]


def _transposed(use: Use) -> list[Moment]:
    """As `_convolution`, but no TF32 kernel was found that needs copies."""
    source, weight = use.args[:2]
    return [Moment(_copies(_layout(source, weight), source, weight), results=True)]


def _convolution_backward(use: Use) -> list[Moment]:
    """As `_convolution`, and a copy of the gradient (ConvShared.cpp, cudnn_convolution_backward);
    beside it one copy of source or weights at a time."""
    gradient, source, weight = use.args[:3]
    layout = _layout(source, weight)
    return [
        Moment(_copies(layout, gradient, other), results=True)
        for other, wanted in zip((weight, source), use.args[-1], strict=False)
        if wanted
    ]


def _contiguous(use: Use) -> list[Moment]:
    """SoftMax.cu, host_softmax: `input_.contiguous()`."""
    return [Moment(_copies(torch.contiguous_format, use.args[0]), results=True)]


def _pool(use: Use) -> list[Moment]:
    """Pooling.cpp, max_pool2d: the first result of max_pool2d_with_indices; indices have 8 bytes."""
    return [Moment([use.result.numel() * 8], results=True)]


def _mse_loss(use: Use) -> list[Moment]:
    """Loss.cpp, mse_loss_out: the loss of each element before the mean."""
    source, reduction = use.args[0], use.args[2] if len(use.args) > 2 else 1
    return [Moment([source.numel() * source.element_size()], results=True)] if reduction else []


def _masked(use: Use) -> list[Moment]:
    """IndexingUtils.h, expandTensors: a mask becomes 64-bit indices, one per dimension."""
    masks = [one for one in use.args[1] if one is not None and one.dtype == torch.bool]
    chosen = use.result.shape[0]
    return [Moment([8 * mask.dim() * chosen for mask in masks], results=True)]


def _layout(source: Tensor, weight: Tensor) -> torch.memory_format:
    """ConvUtils.h, cudnn_conv_suggest_memory_format."""
    either = (suggest_memory_format(source), suggest_memory_format(weight))
    return torch.channels_last if torch.channels_last in either else torch.contiguous_format


def _copies(layout: torch.memory_format, *tensors: Tensor) -> list[int]:
    """Bytes of those tensors that do not have the layout."""
    return [
        tensor.numel() * tensor.element_size()
        for tensor in tensors
        if not tensor.is_contiguous(memory_format=layout)
    ]


TF32 = "tf32"
"""Variant of a CUDA device (`Moment.variant`): blocks that only GPUs with TF32 allocate."""
_RULES: dict[str, Rule] = {
    "aten::conv2d": _convolution,
    "aten::convolution": _convolution,
    "aten::conv_transpose2d": _transposed,
    "aten::convolution_backward": _convolution_backward,
    "aten::log_softmax": _contiguous,
    "aten::_log_softmax": _contiguous,
    "aten::softmax": _contiguous,
    "aten::_softmax": _contiguous,
    "aten::max_pool2d": _pool,
    "aten::mse_loss": _mse_loss,
    "aten::index": _masked,
}
CUDA: Rules = _RULES
