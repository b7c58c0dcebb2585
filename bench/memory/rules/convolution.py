"""Temporary memory inside convolutions on the CPU, measured as `bench.memory.rules.cpu` says."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.memory.rules.shared import Moment, Use, beside_results, copy_bytes

WIDEST = 14  # kernel whose weights' gradient in NHWC needs no im2col (16 does)
GATHERED = 2**20
"""Bytes that a thread gathers at once (assumed; 0.8 MB of 11 were measured)."""


def block() -> int:
    """Channels of a block of oneDNN's layout: 16 with AVX-512 (measured); 8 with AVX2 and below
    (assumed from oneDNN's documentation of nChw8c)."""
    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8


def has_amx() -> bool:
    """Whether oneDNN uses AMX for bfloat16, in kernels that work in NHWC."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    return torch.cpu._is_amx_tile_supported() and (limit in ("ALL", "DEFAULT") or "AMX" in limit)


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
        self.bfloat16 = self.source.dtype == torch.bfloat16

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
    if shape.bfloat16 and has_amx() and not (shape.depthwise or shape.transposed):
        # The way back to NCHW takes the result once more; workspaces of kernels are not known.
        inside = [source.nbytes, shape.weights(), result.nbytes]
        return [Moment([*copies, *inside]), *beside_results(*copies, *2 * [result.nbytes])]
    reordered = shape.blocked(result)
    inside = [shape.blocked_source(), shape.weights(), reordered, gathered]
    if shape.bfloat16 and shape.kernel == 1 and shape.groups == 1:
        inside.append(reordered)
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


def convolution(use: Use) -> list[Moment]:
    return forward(Shape(use.args), use.result)


def convolution_backward(use: Use) -> list[Moment]:
    return backward(Shape(use.args), use.args["grad_output"], use.args["output_mask"])


def _all(value: int | Sequence[int], dimensions: int) -> list[int]:
    """One number per dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values
