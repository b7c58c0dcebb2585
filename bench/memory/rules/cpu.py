"""Temporary memory inside operators on the CPU, beside their results.

Each rule was measured with `bench.memory.cpu_allocator` on the operator alone: torch 2.14 with
oneDNN 3.12 on x86-64 with AVX-512, one and two threads. Rules that are assumed instead say so.
Sizes are bytes; scratch memory below a few KiB is left out."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.memory.rules.shared import SHARED, Moment, Rules, Use, beside_results, copy_bytes, named

WIDEST = 14  # kernel whose weights' gradient in NHWC needs no im2col (16 does)
GATHERED = 2**20
"""Bytes that a thread gathers at once (assumed; 0.8 MB of 11 were measured)."""


def block() -> int:
    """Channels of a block of oneDNN's layout: 16 with AVX-512 (measured); 8 with AVX2 and below
    (assumed from oneDNN's documentation of nChw8c)."""
    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8


def padded(channels: int) -> int:
    """Channels, rounded up to whole blocks."""
    return -(-channels // block()) * block()


class Shape:
    """The sizes of one convolution of (N, C, H, W), and the backend that torch selects for it."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """`arguments`: by name, of any of torch's convolutions or of their backward pass."""
        self.source: Tensor = arguments["input"]
        self.weight: Tensor = arguments["weight"]
        self.groups: int = arguments["groups"]
        # Only transposed convolutions of an operator without that argument pad their output.
        self.transposed: bool = arguments.get("transposed", "output_padding" in arguments)
        sides = self.source.shape[2:]
        stride, padding, dilation, output_padding = (
            _all(arguments.get(name, 0), len(sides))
            for name in ("stride", "padding", "dilation", "output_padding")
        )
        self.backend = torch._C._select_conv_backend(
            self.source,
            self.weight,
            arguments.get("bias"),
            stride,
            padding,
            dilation,
            self.transposed,
            output_padding,
            self.groups,
            arguments.get("bias_sizes"),
        )
        self.layout: torch.memory_format = torch._C._conv_determine_backend_memory_format(
            self.source, self.weight, self.backend
        )
        self.channels_last = self.layout == torch.channels_last
        self.kernel: int = math.prod(self.weight.shape[2:])
        # Some taps read only padding: oneDNN then gathers (measured for sides 1 to 20).
        self.overhanging = any(one > side for one, side in zip(padding, sides, strict=True))
        extents = (d * (k - 1) + 1 for d, k in zip(dilation, self.weight.shape[2:], strict=True))
        self.wider = any(one > side for one, side in zip(extents, sides, strict=True))
        """Whether the dilated kernel is wider than its source."""
        self.inputs: int = self.source.shape[1]
        self.outputs = self.weight.shape[1] * self.groups if self.transposed else len(self.weight)
        self.dilated, self.strided = max(dilation) > 1, max(stride) > 1
        self.depthwise = self.groups > 1 and self.inputs == self.groups == self.outputs
        self.threads = torch.get_num_threads()
        self.element_bytes: int = self.source.element_size()

    @property
    def onednn(self) -> bool:
        # torch 2.14 gives no name to oneDNN's backend of transposed convolutions.
        return "Mkldnn" in self.backend.name or (self.transposed and self.backend.name == "???")

    @property
    def plain(self) -> bool:
        """Grouped convolutions whose groups fill no block stay in NCHW and go through im2col."""
        each = self.inputs // self.groups, self.outputs // self.groups
        return (
            self.groups > 1
            and not self.depthwise
            and any(channels % block() for channels in each)
            and not self.channels_last
        )

    def blocked_source(self) -> int:
        """Bytes of the source in oneDNN's own layout; 0 where it is read without conversion."""
        first = self.inputs < block() and self.groups == 1
        return 0 if first or self.plain else self.blocked(self.source)

    def blocked(self, map: Tensor) -> int:
        """Bytes of a map (N, C, H, W) in oneDNN's own layout."""
        channels = map.shape[1]
        if self.plain or (self.transposed and self.groups == 1):  # NHWC without padding
            return map.nbytes
        return map.numel() // channels * padded(channels) * self.element_bytes

    def weights(self, inputs: bool = True, outputs: bool = True) -> int:
        """Bytes of the weights in oneDNN's own layout, with these sides padded to whole blocks."""
        if self.plain:
            return 0
        if self.depthwise:
            return padded(self.groups) * self.kernel * self.element_bytes
        each_in, each_out = self.inputs // self.groups, self.outputs // self.groups
        if inputs and (each_in >= block() or self.groups > 1):
            each_in = padded(each_in)
        if outputs:
            each_out = padded(each_out)
        return self.groups * each_in * each_out * self.kernel * self.element_bytes

    def copy(self, map: Tensor) -> int:
        """Bytes of the copy of a tensor that has another layout than the convolution's."""
        return copy_bytes(map, self.layout)

    def unblocked(self) -> int:
        """Bytes of the weights of a depthwise convolution that oneDNN has no kernel for in NHWC:
        each channel is a group that fills a block on both sides."""
        return self.groups * block() ** 2 * self.kernel * self.element_bytes

    def gathered(self, result: Tensor) -> int:
        """Bytes that all threads gather: for a strided 1 x 1 convolution the pixels that it reads,
        for a transposed one the padded source (assumed: as large as the source)."""
        if self.transposed:
            return self.threads * self.source.nbytes // len(self.source)
        if self.kernel > 1 or not self.strided or self.groups > 1:
            return 0
        return self.threads * self.inputs * result[0, 0].nbytes

    def columns(self, result: Tensor, images: int) -> int:
        """Bytes of the unfolded input (im2col)."""
        if self.kernel == 1:
            return 0
        return images * self.inputs * self.kernel * result[0, 0].numel() * self.element_bytes


def forward(shape: Shape, result: Tensor) -> list[Moment]:
    """Temporaries of a convolution."""
    source = shape.source
    copies = [shape.copy(source)]
    if not shape.onednn:
        if shape.transposed:
            # slow_conv_transpose2d expands one image at a time into columns.
            columns = shape.outputs * shape.kernel * source[0, 0].nbytes
        else:  # _slow_conv2d expands all images into columns, unless the kernel is 1 x 1.
            columns = shape.columns(result, len(source))
        return beside_results(*copies, columns)
    copies.append(shape.copy(shape.weight))
    gathered = shape.gathered(result)
    if shape.overhanging and not shape.channels_last and not shape.transposed:
        columns = shape.threads * min(shape.columns(result, 1), GATHERED)
        return [
            Moment([*copies, columns, result.nbytes]),
            *beside_results(*copies, result.nbytes),
        ]
    if shape.channels_last:
        weights = shape.weights(inputs=shape.groups > 1 or shape.transposed)
        return beside_results(*copies, weights, gathered)
    reordered = shape.blocked(result)
    inside = [shape.blocked_source(), shape.weights(), reordered, gathered]
    if shape.plain:
        inside.append(shape.columns(result, shape.threads) // shape.groups)
    beside = [reordered, result.nbytes] if shape.transposed else [reordered]
    return [Moment([*copies, *inside]), *beside_results(*copies, *beside)]


def backward(shape: Shape, gradient: Tensor, wanted: Sequence[bool]) -> list[Moment]:
    """Temporaries of a convolution's backward pass: gradient of the source, then of the weights."""
    source, weight = shape.source, shape.weight
    to_source = source.nbytes if wanted[0] else 0
    copies = [shape.copy(source), shape.copy(gradient)]
    if not shape.onednn:
        columns = shape.columns(gradient, len(source))
        return [Moment([*copies, to_source, weight.nbytes, columns])]
    if shape.channels_last:
        first, second = _backward_channels_last(shape, gradient)
        copies += [shape.copy(weight), to_source]
        moments = [Moment([*copies, first])] if to_source else []
        if not shape.transposed and shape.groups == 1 and weight.shape[-1] > WIDEST:  # im2col
            return [*moments, Moment([*copies, _column_bytes(shape, gradient), weight.nbytes])]
        return [*moments, Moment([*copies, second, weight.nbytes, weight.nbytes])]
    moments = []
    blocked_source, blocked_gradient = shape.blocked_source(), shape.blocked(gradient)
    if wanted[0]:
        reordered = shape.blocked(source)
        moments += [
            Moment([*copies, blocked_gradient, shape.weights(), reordered]),
            Moment([*copies, reordered, to_source]),
        ]
        if shape.kernel == 1 and shape.strided:  # no blocked kernel: a second copy
            moments.append(Moment([*copies, reordered, to_source, to_source]))
    inside = [blocked_gradient, blocked_source, shape.weights(), shape.gathered(gradient)]
    if _by_columns(shape):
        inside = [_column_bytes(shape, gradient), weight.nbytes]
    return [
        *moments,
        Moment([*copies, to_source, *inside]),
        Moment([*copies, to_source, shape.weights(), weight.nbytes]),
    ]


def _backward_channels_last(shape: Shape, gradient: Tensor) -> tuple[int, int]:
    """Bytes of the weights, or for im2col, in NHWC: for the source's gradient, and the weights'.

    Measured for depthwise convolutions with kernels of 3, 5 and 7, strides and dilations of 1
    and 2. In NHWC oneDNN has a depthwise kernel for the source's gradient without dilation, and for
    the weights' gradient up to 3 x 3 without dilation; with both stride and dilation above 1
    neither pads. Without AVX-512 the weights' gradient of a dilated convolution, or of one whose
    kernel is larger than its source, uses im2col."""
    first = shape.weights(outputs=shape.groups > 1)
    second = shape.weights()
    if shape.depthwise and not (shape.dilated and shape.strided):
        if shape.dilated:
            first = shape.unblocked()
        if shape.dilated or shape.kernel > 9:
            second = shape.unblocked()
    return first, _column_bytes(shape, gradient) if _by_columns(shape) else second


def _by_columns(shape: Shape) -> bool:
    """Whether the weights' gradient uses im2col (measured): in NCHW for a dilated kernel that is
    wider than its source, without AVX-512 for either; in NHWC without AVX-512 for a dilated
    convolution, and for a depthwise kernel that is larger than its source."""
    avx512 = block() > 8
    if shape.transposed:
        return False
    if not shape.channels_last:
        both = shape.dilated and shape.wider if avx512 else shape.dilated or shape.wider
        return both and shape.groups == 1
    if avx512 or (shape.groups > 1 and not shape.depthwise):
        return False
    smaller = min(shape.source.shape[-2:]) < max(shape.weight.shape[-2:])
    return shape.dilated or (shape.depthwise and smaller)


def _column_bytes(shape: Shape, gradient: Tensor) -> int:
    """Bytes for im2col (measured): columns of one image, in NHWC its source, and four times the
    weights; a depthwise convolution takes those of one channel per thread."""
    weights, image = 4 * shape.weight.nbytes, shape.source[0].nbytes
    columns = shape.columns(gradient, 1)
    if shape.depthwise:
        return shape.threads * (weights + (columns + image) // shape.inputs)
    return weights + columns + (image if shape.channels_last else 0)


def _convolution(use: Use) -> list[Moment]:
    return forward(Shape(use.args), use.result)


def _convolution_backward(use: Use) -> list[Moment]:
    return backward(Shape(use.args), use.args["grad_output"], use.args["output_mask"])


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


def _all(value: int | Sequence[int], dimensions: int) -> list[int]:
    """One number per dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values


CPU: Rules = SHARED | named(
    ("conv2d convolution conv_transpose2d", _convolution),
    ("convolution_backward", _convolution_backward),
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
    ("add sub mul div", _mixed),
)
