"""Temporary memory inside operators on the CPU, beside their results.

Each rule was measured with `bench.memory.cpu_allocator` on the operator alone: torch 2.14 with
oneDNN 3.12 on x86-64 with AVX-512, one and two threads. Rules that are assumed instead say so.
Sizes are bytes; scratch memory below a few KiB is left out."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.memory.tracker import Moment, Rule, Rules, Use

FLOAT = 4
"""Bytes of a float32, which oneDNN computes in here."""
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

    def __init__(
        self,
        source: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
        bias_sizes: Sequence[int] | None = None,
    ) -> None:
        dimensions = weight.dim() - 2
        self.source, self.weight, self.groups = source, weight, groups
        self.stride = _all(stride, dimensions)
        self.backend = torch._C._select_conv_backend(
            source,
            weight,
            bias,
            self.stride,
            _all(padding, dimensions),
            _all(dilation, dimensions),
            transposed,
            _all(output_padding, dimensions),
            groups,
            bias_sizes,
        )
        layout = torch._C._conv_determine_backend_memory_format(source, weight, self.backend)
        self.layout: torch.memory_format = layout
        self.channels_last = layout == torch.channels_last
        self.kernel = 1
        for side in weight.shape[2:]:
            self.kernel *= side
        self.transposed = transposed
        # Some taps read only padding: oneDNN then gathers (measured for sides 1 to 20).
        self.overhanging = any(
            one > side
            for one, side in zip(_all(padding, dimensions), source.shape[2:], strict=True)
        )
        self.inputs = source.shape[1]
        self.outputs = weight.shape[1] * groups if transposed else weight.shape[0]
        self.dilated = any(step > 1 for step in _all(dilation, dimensions))
        self.strided = any(step > 1 for step in self.stride)
        self.depthwise = groups > 1 and self.inputs == groups == self.outputs
        self.threads = torch.get_num_threads()

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
            return _bytes(map)
        return map.numel() // channels * padded(channels) * self.source.element_size()

    def weights(self, inputs: bool = True, outputs: bool = True) -> int:
        """Bytes of the weights in oneDNN's own layout, with these sides padded to whole blocks."""
        if self.plain:
            return 0
        if self.depthwise:
            return padded(self.groups) * self.kernel * self.source.element_size()
        each_in, each_out = self.inputs // self.groups, self.outputs // self.groups
        if inputs and (each_in >= block() or self.groups > 1):
            each_in = padded(each_in)
        if outputs:
            each_out = padded(each_out)
        return self.groups * each_in * each_out * self.kernel * self.source.element_size()

    def copy(self, map: Tensor) -> int:
        """Bytes of the copy of a tensor that has another layout than the convolution's."""
        right = map.is_contiguous(memory_format=self.layout)
        return 0 if right else map.numel() * map.element_size()

    def unblocked(self) -> int:
        """Bytes of the weights of a depthwise convolution that oneDNN has no kernel for in NHWC:
        each channel is a group that fills a block on both sides."""
        return self.groups * block() ** 2 * self.kernel * self.source.element_size()

    def gathered(self, result: Tensor) -> int:
        """Bytes that all threads gather: for a strided 1 x 1 convolution the pixels that it reads,
        for a transposed one the padded source (assumed: as large as the source)."""
        if self.transposed:
            return self.threads * _bytes(self.source) // self.source.shape[0]
        if self.kernel > 1 or not self.strided or self.groups > 1:
            return 0
        return self.threads * self.inputs * result[0, 0].numel() * self.source.element_size()


def forward(shape: Shape, result: Tensor) -> list[Moment]:
    """Temporaries of a convolution."""
    source = shape.source
    copies = [shape.copy(source)]
    if not shape.onednn:
        if shape.transposed:
            # slow_conv_transpose2d expands one image at a time into columns.
            columns = shape.outputs * shape.kernel * source[0, 0].numel() * source.element_size()
            return [Moment([*copies, columns], results=True)]
        # _slow_conv2d expands all images into columns, unless the kernel is 1 x 1.
        return [Moment([*copies, _columns(shape, result, source.shape[0])], results=True)]
    copies.append(shape.copy(shape.weight))
    gathered = shape.gathered(result)
    if shape.overhanging and not shape.channels_last and not shape.transposed:
        columns = shape.threads * min(_columns(shape, result, 1), GATHERED)
        plain = _bytes(result)
        return [Moment([*copies, columns, plain]), Moment([*copies, plain], results=True)]
    if shape.channels_last:
        weights = shape.weights(inputs=shape.groups > 1 or shape.transposed)
        return [Moment([*copies, weights, gathered], results=True)]
    reordered = shape.blocked(result)
    inside = [shape.blocked_source(), shape.weights(), reordered, gathered]
    if shape.plain:
        inside.append(_columns(shape, result, shape.threads) // shape.groups)
    beside = [reordered, _bytes(result)] if shape.transposed else [reordered]
    return [Moment([*copies, *inside]), Moment([*copies, *beside], results=True)]


def backward(shape: Shape, gradient: Tensor, wanted: Sequence[bool]) -> list[Moment]:
    """Temporaries of a convolution's backward pass: gradient of the source, then of the weights."""
    source, weight = shape.source, shape.weight
    to_source = _bytes(source) if wanted[0] else 0
    to_weight = _bytes(weight)
    copies = [shape.copy(source), shape.copy(gradient)]
    if not shape.onednn:
        columns = _columns(shape, gradient, source.shape[0])
        return [Moment([*copies, to_source, to_weight, columns])]
    if shape.channels_last:
        copies.append(shape.copy(weight))
        return _backward_channels_last(shape, gradient, copies, to_source, to_weight)
    moments: list[Moment] = []
    blocked_source, blocked_gradient = shape.blocked_source(), shape.blocked(gradient)
    reordered = shape.blocked(source)
    if wanted[0]:
        moments += [
            Moment([*copies, blocked_gradient, shape.weights(), reordered]),
            Moment([*copies, reordered, to_source]),
        ]
        if shape.kernel == 1 and shape.strided:  # no blocked kernel: a second copy
            moments.append(Moment([*copies, reordered, to_source, to_source]))
    inside = [blocked_gradient, blocked_source, shape.weights(), shape.gathered(gradient)]
    if _by_columns(shape):
        inside = [_column_bytes(shape, gradient)]
    moments += [
        Moment([*copies, to_source, *inside]),
        Moment([*copies, to_source, shape.weights(), to_weight]),
    ]
    return moments


def _backward_channels_last(
    shape: Shape, gradient: Tensor, copies: Sequence[int], to_source: int, to_weight: int
) -> list[Moment]:
    """Measured for depthwise convolutions with kernels of 3, 5 and 7, strides and dilations of 1
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
    if _by_columns(shape):
        second = _column_bytes(shape, gradient)
    moments = [Moment([*copies, to_source, second, to_weight, to_weight])]
    if to_source:
        moments.insert(0, Moment([*copies, to_source, first]))
    return moments


def _by_columns(shape: Shape) -> bool:
    """Whether the weights' gradient uses im2col: without AVX-512 for a dilated convolution, and in
    NHWC for a depthwise kernel that is larger than its source."""
    if shape.transposed or block() > 8:
        return False
    if shape.groups > 1 and not (shape.depthwise and shape.channels_last):
        return False
    smaller = min(shape.source.shape[-2:]) < max(shape.weight.shape[-2:])
    return shape.dilated or (shape.depthwise and smaller)


def _column_bytes(shape: Shape, gradient: Tensor) -> int:
    """Bytes for im2col (measured): columns of one image, in NHWC its source, and four times the
    weights; a depthwise convolution takes those of one channel per thread."""
    weights, image = 4 * _bytes(shape.weight), _bytes(shape.source[0])
    columns = _columns(shape, gradient, 1)
    if shape.depthwise:
        return shape.threads * (weights + (columns + image) // shape.inputs)
    return weights + columns + (image if shape.channels_last else 0)


def _resize(use: Use, bilinear: bool = False) -> list[Moment]:
    """torch's NHWC kernel works on NHWC copies of source and result. It is also used for small NCHW
    results (UpSampleKernel.cpp, _use_vectorized_kernel_cond_2d: height + width <= 128) and, if
    bilinear, for exactly three channels (measured)."""
    source, result = use.args[0], use.result
    channels = source.shape[1]
    suits = (_channels_last(source) and channels > 3) or (bilinear and channels == 3)
    if not suits and result.shape[-2] + result.shape[-1] > 128:
        return []
    inside = [0 if _channels_last(map) else _bytes(map) for map in (source, result)]
    return [Moment(inside, results=True)]


def _resize_backward(use: Use) -> list[Moment]:
    """Copies of gradient and result in the kernel's layout: NHWC if the gradient has it, else NCHW."""
    gradient, result = use.args[0], use.result
    layout = torch.channels_last if _channels_last(gradient) else torch.contiguous_format
    inside = [
        0 if map.is_contiguous(memory_format=layout) else _bytes(map) for map in (gradient, result)
    ]
    return [Moment(inside, results=True)]


def _shrink(use: Use) -> list[Moment]:
    """uint8 images are resized along rows, then columns; RGB gets a fourth channel first."""
    source, result = use.args[0], use.result
    if source.dtype != torch.uint8:
        return []
    height, width = source.shape[-2:]
    channels = 4 if source.is_contiguous() and source.shape[1] == 3 else source.shape[1]
    rows = channels * height * result.shape[-1]
    whole = channels * height * width
    return [Moment([rows, whole, channels * result[0, 0].numel()], results=True)]


def _batch_norm_backward(use: Use) -> list[Moment]:
    """One more map if gradient and source have the same layout; the other kernel needs none."""
    gradient, source = use.args[:2]
    alike = any(
        gradient.is_contiguous(memory_format=layout) and source.is_contiguous(memory_format=layout)
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    return [Moment([_bytes(source)], results=True)] if alike and use.result[0] is not None else []


def _contiguous(use: Use) -> list[Moment]:
    """The source is made contiguous first."""
    source = use.args[0]
    return [Moment([0 if source.is_contiguous() else _bytes(source)], results=True)]


def _pool(use: Use) -> list[Moment]:
    """Indices of the maxima, which are discarded."""
    return [Moment([use.result.numel() * 8], results=True)]


def _pool_backward(use: Use) -> list[Moment]:
    """Indices and result are copied where their layout differs from the gradient's."""
    gradient, places, result = use.args[0], use.args[-1], use.result
    layout = torch.channels_last if _channels_last(gradient) else torch.contiguous_format
    copied = [one for one in (result, places) if not one.is_contiguous(memory_format=layout)]
    return [Moment([_bytes(one) for one in copied], results=True)]


def _elementwise_loss(use: Use) -> list[Moment]:
    """The loss of each element before the mean."""
    source, reduction = use.args[0], use.args[2] if len(use.args) > 2 else 1
    return [Moment([_bytes(source)], results=True)] if reduction else []


def _sum(use: Use) -> list[Moment]:
    """Integers are converted to 64 bits first."""
    source = use.args[0]
    widened = not source.is_floating_point() and source.dtype != torch.int64
    return [Moment([source.numel() * 8 if widened else 0], results=True)]


def _mixed(use: Use) -> list[Moment]:
    """Elementwise operators copy operands that do not have the common type (TensorIterator.cpp,
    promote_inputs_to_common_dtype; only on the CPU)."""
    tensors = [one for one in use.args if isinstance(one, Tensor) and one.dim()]
    if len(tensors) < 2:
        return []
    common = torch.result_type(tensors[0], tensors[1])
    copies = [one.numel() * common.itemsize for one in tensors[:2] if one.dtype != common]
    return [Moment(copies, results=True)] if copies else []


def _masked(use: Use) -> list[Moment]:
    """A mask becomes 64-bit indices, one per dimension."""
    masks = [one for one in use.args[1] if one is not None and one.dtype == torch.bool]
    chosen = use.result.shape[0]
    return [Moment([8 * mask.dim() * chosen for mask in masks], results=True)]


def _conv2d(use: Use) -> list[Moment]:
    source, weight, bias, stride, padding, dilation, groups = _filled(
        use, (None, None, None, 1, 0, 1, 1)
    )
    shape = Shape(source, weight, bias, stride, padding, dilation, False, [0], groups)
    return forward(shape, use.result)


def _conv_transpose2d(use: Use) -> list[Moment]:
    source, weight, bias, stride, padding, output_padding, groups, dilation = _filled(
        use, (None, None, None, 1, 0, 0, 1, 1)
    )
    shape = Shape(source, weight, bias, stride, padding, dilation, True, output_padding, groups)
    return forward(shape, use.result)


def _convolution(use: Use) -> list[Moment]:
    source, weight, bias, *rest = use.args[:9]
    return forward(Shape(source, weight, bias, *rest), use.result)


def _convolution_backward(use: Use) -> list[Moment]:
    gradient, source, weight, bias_sizes, *rest, wanted = use.args
    stride, padding, dilation, transposed, output_padding, groups = rest
    shape = Shape(
        source,
        weight,
        None,
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
        bias_sizes,
    )
    return backward(shape, gradient, wanted)


def _filled(use: Use, defaults: Sequence[Any]) -> list[Any]:
    return [*use.args, *defaults[len(use.args) :]]


def _columns(shape: Shape, result: Tensor, images: int) -> int:
    """Bytes of the unfolded input (im2col)."""
    if shape.kernel == 1:
        return 0
    pixels = result[0, 0].numel()
    return images * shape.inputs * shape.kernel * pixels * shape.source.element_size()


def _channels_last(map: Tensor) -> bool:
    return map.is_contiguous(memory_format=torch.channels_last)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _all(value: int | Sequence[int], dimensions: int) -> list[int]:
    """One number per dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values


_RULES: dict[str, Rule] = {
    "aten::conv2d": _conv2d,
    "aten::convolution": _convolution,
    "aten::conv_transpose2d": _conv_transpose2d,
    "aten::convolution_backward": _convolution_backward,
    "aten::upsample_nearest2d": _resize,
    "aten::_upsample_nearest_exact2d": _resize,
    "aten::upsample_bilinear2d": partial(_resize, bilinear=True),
    "aten::upsample_nearest2d_backward": _resize_backward,
    "aten::_upsample_nearest_exact2d_backward": _resize_backward,
    "aten::upsample_bilinear2d_backward": _resize_backward,
    "aten::_upsample_bilinear2d_aa": _shrink,
    "aten::native_batch_norm_backward": _batch_norm_backward,
    "aten::_log_softmax": _contiguous,
    "aten::log_softmax": _contiguous,
    "aten::_softmax": _contiguous,
    "aten::softmax": _contiguous,
    "aten::max_pool2d": _pool,
    "aten::max_pool2d_with_indices_backward": _pool_backward,
    "aten::mse_loss": _elementwise_loss,
    "aten::sum": _sum,
    "aten::add": _mixed,
    "aten::sub": _mixed,
    "aten::mul": _mixed,
    "aten::div": _mixed,
    "aten::index": _masked,
}
CPU: Rules = _RULES
