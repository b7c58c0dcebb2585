"""Temporary memory inside operators on the CPU, beside their results.

Each rule was measured with `bench.memory.cpu_allocator` on the operator alone: torch 2.14 with
oneDNN 3.12 on x86-64 with AVX-512, one and two threads. Rules that are assumed instead say so.
Sizes are bytes; scratch memory below a few KiB is left out."""

from functools import partial

import torch
from torch import Tensor

from bench.memory.rules.convolution import convolution, convolution_backward
from bench.memory.rules.shared import SHARED, Moment, Rules, Use, beside_results, copy_bytes, named


def _resize(use: Use, bilinear: bool = False) -> list[Moment]:
    """torch's NHWC kernel works on NHWC copies of source and result. It is also used for small NCHW
    results (UpSampleKernel.cpp, _use_vectorized_kernel_cond_2d: height + width <= 128) and, if
    bilinear, for exactly three channels (measured)."""
    source, result = use.first, use.result
    channels = source.shape[1]
    suits = (_channels_last(source) and channels > 3) or (bilinear and channels == 3)
    if not suits and sum(result.shape[-2:]) > 128:
        return []
    return beside_results(*(copy_bytes(map, torch.channels_last) for map in (source, result)))


def _resize_backward(use: Use) -> list[Moment]:
    """Copies of gradient and result in the kernel's layout: NHWC if the gradient has it, else NCHW."""
    layout = _layout_of(use.first)
    return beside_results(*(copy_bytes(map, layout) for map in (use.first, use.result)))


def _shrink(use: Use) -> list[Moment]:
    """uint8 images are resized along rows, then columns; RGB gets a fourth channel first."""
    source, result = use.first, use.result
    if source.dtype != torch.uint8:
        return []
    height, width = source.shape[-2:]
    channels = 4 if source.is_contiguous() and source.shape[1] == 3 else source.shape[1]
    rows = channels * height * result.shape[-1]
    return beside_results(rows, channels * height * width, channels * result[0, 0].numel())


def _batch_norm(use: Use) -> list[Moment]:
    """A factor and an offset of each channel (batch_norm_kernel.cpp)."""
    return beside_results(2 * use.first.shape[1] * 4)


def _attention(use: Use) -> list[Moment]:
    """Blocks of scores and results of each thread, and the sums of rows where they are discarded
    (FlashAttentionKernel.cpp)."""
    rows, columns, width = _attention_block(use.args["query"], use.args["key"])
    sums = 4 * use.result[..., 0].numel() if isinstance(use.result, Tensor) else 0
    return beside_results(torch.get_num_threads() * 4 * rows * (columns + 2 + width), sums)


def _attention_backward(use: Use) -> list[Moment]:
    """Two blocks of scores and one column of sums of each thread, and the gradient made
    contiguous (FlashAttentionKernel.cpp)."""
    rows, columns, _ = _attention_block(use.args["query"], use.args["key"])
    scores = torch.get_num_threads() * 4 * rows * (2 * columns + 1)
    return beside_results(scores, use.args["grad_out"].nbytes)


def _whole_attention(use: Use) -> list[Moment]:
    """Query, key and value twice, with their bias and without; then once, with all scores
    (attention.cpp, native_multi_head_attention_cpu)."""
    source = use.first  # (N, L, C)
    heads = use.args.get("num_head") or use.args["num_heads"]
    scores = len(source) * heads * source.shape[1] ** 2 * source.element_size()
    return [Moment([3 * source.nbytes, 3 * source.nbytes]), Moment([3 * source.nbytes, scores])]


def _encoder_layer(use: Use) -> list[Moment]:
    """Attention, then a hidden layer beside its source (transformer.cpp)."""
    source, hidden = use.first, use.args["ffn_weight_1"].shape[0]
    inside = source.nbytes // source.shape[-1] * hidden
    return [*_whole_attention(use), *beside_results(source.nbytes, inside)]


def _attention_block(query: Tensor, key: Tensor) -> tuple[int, int, int]:
    """Rows, columns and width of the block that a thread works on."""
    length = query.shape[-2]
    rows = 256 if length >= 768 else 64 if length >= 192 else 32
    return min(rows, length), min(512, key.shape[-2]), query.shape[-1]


def _batch_norm_backward(use: Use) -> list[Moment]:
    """One more map if gradient and source have the same layout; the other kernel needs none."""
    source = use.args["input"]
    alike = any(
        all(one.is_contiguous(memory_format=layout) for one in (use.first, source))
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    return beside_results(source.nbytes) if alike and use.result[0] is not None else []


def _pool_backward(use: Use) -> list[Moment]:
    """Indices and result are copied where their layout differs from the gradient's."""
    layout = _layout_of(use.first)
    copies = (copy_bytes(map, layout) for map in (use.result, use.args["indices"]))
    return beside_results(*filter(None, copies))


def _sum(use: Use) -> list[Moment]:
    """Integers are converted to 64 bits first."""
    source = use.first
    widened = not source.is_floating_point() and source.dtype != torch.int64
    return beside_results(source.numel() * 8 if widened else 0)


def _mean(use: Use) -> list[Moment]:
    """Half precision is added up in float32, into which the source is converted (ReduceOps.cpp); of
    adaptive pooling that to one pixel (AdaptiveAveragePooling.cpp)."""
    source, result = use.first, use.result
    pooled = use.args.get("output_size") not in (None, [1, 1], 1)
    if pooled or source.dtype not in (torch.bfloat16, torch.float16):
        return []
    return beside_results(4 * source.numel(), 4 * result.numel())


def _mixed(use: Use) -> list[Moment]:
    """Elementwise operators copy operands that do not have the common type (TensorIterator.cpp,
    promote_inputs_to_common_dtype; only on the CPU)."""
    tensors = [one for one in use.args.values() if isinstance(one, Tensor) and one.dim()]
    if len(tensors) < 2:
        return []
    common = torch.result_type(tensors[0], tensors[1])
    copies = [one.numel() * common.itemsize for one in tensors[:2] if one.dtype != common]
    return beside_results(*copies) if copies else []


def _channels_last(map: Tensor) -> bool:
    return map.is_contiguous(memory_format=torch.channels_last)


def _layout_of(map: Tensor) -> torch.memory_format:
    return torch.channels_last if _channels_last(map) else torch.contiguous_format


CPU: Rules = SHARED | named(
    ("conv2d convolution conv_transpose2d", convolution),
    ("convolution_backward", convolution_backward),
    ("upsample_nearest2d _upsample_nearest_exact2d", _resize),
    ("upsample_bilinear2d", partial(_resize, bilinear=True)),
    ("upsample_nearest2d_backward _upsample_nearest_exact2d_backward", _resize_backward),
    ("upsample_bilinear2d_backward", _resize_backward),
    ("_upsample_bilinear2d_aa", _shrink),
    ("batch_norm native_batch_norm", _batch_norm),
    ("native_batch_norm_backward", _batch_norm_backward),
    ("_scaled_dot_product_flash_attention_for_cpu scaled_dot_product_attention", _attention),
    ("_scaled_dot_product_flash_attention_for_cpu_backward", _attention_backward),
    ("_native_multi_head_attention", _whole_attention),
    ("_transformer_encoder_layer_fwd", _encoder_layer),
    ("max_pool2d_with_indices_backward", _pool_backward),
    ("sum", _sum),
    ("mean adaptive_avg_pool2d", _mean),
    ("add sub mul div", _mixed),
)
