"""Temporary memory inside convolutions on the CPU, measured as `bench.memory.rules.cpu` says."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.memory.rules.direct import (
    Sizes,
    cache_bytes,
    even,
    refuses_forward,
    refuses_source,
    refuses_weights,
)
from bench.memory.rules.shared import Moment, Use, beside_results, copy_bytes


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
        self.stride, self.padding, self.dilation, output_padding = (
            _all(arguments.get(name, 0), len(sides))
            for name in ("stride", "padding", "dilation", "output_padding")
        )
        self.backend = torch._C._select_conv_backend(
            self.source,
            self.weight,
            arguments.get("bias"),
            self.stride,
            self.padding,
            self.dilation,
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
        self.inputs: int = self.source.shape[1]
        self.outputs = self.weight.shape[1] * self.groups if self.transposed else len(self.weight)
        self.dilated, self.strided = max(self.dilation) > 1, max(self.stride) > 1
        self.depthwise = self.groups > 1 and self.inputs == self.groups == self.outputs
        self.narrow = not self.dilated and max(self.weight.shape[2:]) <= min(3, *sides)
        """Whether the weights' gradient has a depthwise kernel."""
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

    def weights(self, inputs: bool = True, outputs: bool = True, few: bool = False) -> int:
        """Bytes of the weights in oneDNN's own layout, with these sides padded to whole blocks;
        `few`: also where the inputs fill none."""
        if self.plain:
            return 0
        if self.depthwise:
            return padded(self.groups) * self.kernel * self.element_bytes
        each_in, each_out = self.inputs // self.groups, self.outputs // self.groups
        if inputs and (few or each_in >= block() or self.groups > 1):
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

    def sizes(self, result: Tensor) -> Sizes:
        """What oneDNN's direct kernels look at; a line counts as an image of one row."""
        (source, kernel, stride, padding, dilation, made) = (
            [*missing, *values][-2:]
            for missing, values in (
                ([1], self.source.shape[2:]),
                ([1], self.weight.shape[2:]),
                ([1], self.stride),
                ([0], self.padding),
                ([1], self.dilation),
                ([1], result.shape[2:]),
            )
        )
        return Sizes(
            batch=len(self.source),
            inputs=self.inputs // self.groups,
            outputs=self.outputs // self.groups,
            source=source,
            result=made,
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            block=block(),
        )

    def gathered(self, result: Tensor) -> int:
        """Bytes that all threads gather: for a strided 1 x 1 convolution the pixels that it reads,
        for a transposed one the padded source (assumed: as large as the source)."""
        if self.transposed:
            return self.threads * self.source.nbytes // len(self.source)
        if self.kernel > 1 or not self.strided or self.groups > 1:
            return 0
        return self.threads * self.inputs * result[0, 0].nbytes

    def slow_columns(self, result: Tensor) -> int:
        """Bytes that torch's own kernels unfold, one group after another (Convolution.cpp): all
        images, of a dilated convolution one (ConvolutionMM2d.cpp, NaiveDilatedConvolution.cpp)."""
        images = 1 if "Dilated" in self.backend.name else len(self.source)
        return self.columns(result, images) // self.groups

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
        else:
            columns = shape.slow_columns(result)
        if shape.groups > 1 and not shape.transposed:  # the groups' results, which are joined
            return [
                Moment([*copies, columns, source.nbytes // shape.groups, result.nbytes]),
                *beside_results(*copies, result.nbytes),
            ]
        return beside_results(*copies, columns)
    copies.append(shape.copy(shape.weight))
    gathered = shape.gathered(result)
    if not shape.channels_last and not shape.transposed and _refuses(shape, result):
        # Up to a core's L2 cache at a time: at least three quarters of it.
        most = cache_bytes("SC_LEVEL2_CACHE_SIZE", 2**20)
        columns = shape.threads * min(shape.columns(result, 1) // shape.groups, most)
        return [
            Moment([*copies, columns, result.nbytes]),
            *beside_results(*copies, result.nbytes),
        ]
    if shape.channels_last:
        weights = shape.weights(inputs=shape.groups > 1 or shape.transposed)
        if shape.depthwise and block() == 16:
            sizes = shape.sizes(result)
            if sizes.padding[1] > 6 and not refuses_forward(
                sizes
            ):  # no depthwise kernel (measured)
                weights = shape.unblocked()
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
        columns = shape.slow_columns(gradient)
        return [Moment([*copies, to_source, weight.nbytes, columns])]
    if shape.channels_last:
        first, second = _backward_channels_last(shape, gradient)
        copies += [shape.copy(weight), to_source]
        moments = [Moment([*copies, first])] if to_source else []
        if unfolded := _unfolded(shape, gradient):
            return [*moments, Moment([*copies, unfolded, weight.nbytes])]
        return [
            *moments,
            Moment([*copies, second, _inside_bfloat16(shape, gradient, second)]),
            Moment([*copies, second, weight.nbytes, weight.nbytes]),
        ]
    moments = []
    if wanted[0]:
        moments = _source_gradient(shape, gradient, copies)
    weights = shape.weights()
    inside = [shape.blocked(gradient), shape.blocked_source(), shape.gathered(gradient)]
    inside.append(_inside_bfloat16(shape, gradient, weights))
    if unfolded := _unfolded(shape, gradient):
        inside, weights = [unfolded], weight.nbytes
    return [
        *moments,
        Moment([*copies, to_source, *inside, weights]),
        Moment([*copies, to_source, weights, weight.nbytes]),
    ]


def _source_gradient(shape: Shape, gradient: Tensor, copies: Sequence[int]) -> list[Moment]:
    """In NCHW: the gradient in oneDNN's layout, then as torch has it."""
    source = shape.source
    ungrouped = shape.groups == 1 and not shape.transposed
    if ungrouped and refuses_source(shape.sizes(gradient)):
        reordered = source.nbytes
        threads = _threads(shape, gradient, 512)
        columns = shape.columns(gradient, threads)
        if shape.bfloat16:  # in float32, and so is what they are added to
            columns = 2 * columns + 4 * threads * source[0].numel()
        inside = [columns, reordered]
    else:
        reordered = shape.blocked(source)
        inside = [shape.blocked(gradient), shape.weights(few=True), reordered]
    moments = [Moment([*copies, *inside]), Moment([*copies, reordered, source.nbytes])]
    if shape.kernel == 1 and shape.strided:  # no blocked kernel: a second copy
        moments.append(Moment([*copies, reordered, source.nbytes, source.nbytes]))
    return moments


def _backward_channels_last(shape: Shape, gradient: Tensor) -> tuple[int, int]:
    """Bytes of the weights in NHWC: for the source's gradient, and the weights'.

    In NHWC oneDNN has a depthwise kernel for the source's gradient without dilation; others, and the
    weights' gradient without such a kernel, pad the groups. With both stride and dilation above 1
    neither pads (measured)."""
    first = shape.weights(outputs=shape.groups > 1)
    second = shape.weights()
    if shape.depthwise and not (shape.dilated and shape.strided):
        if shape.dilated and not refuses_source(shape.sizes(gradient)):
            first = shape.unblocked()
        if not shape.narrow:
            second = shape.unblocked()
    return first, second


def _inside_bfloat16(shape: Shape, gradient: Tensor, weights: int) -> int:
    """Bytes inside the weights' gradient in bfloat16, beside reordered `weights` of so many bytes: their
    sum in float32 and both maps of an image with pixels in pairs, for each thread that sums (measured).

    Threads are assumed to sum on their own where a map is larger than the weights."""
    if not shape.bfloat16 or has_amx() or shape.plain or shape.transposed:
        return 0
    total = 2 * weights
    if shape.depthwise and shape.narrow:
        return total
    sizes = shape.sizes(gradient)
    rows, columns = sizes.result
    inputs, outputs = padded(shape.inputs), padded(shape.outputs)
    if shape.depthwise:  # each channel fills a block
        inputs = outputs = shape.groups * block()
    if shape.kernel == 1:
        channels = _at_once(inputs, 8) + _at_once(outputs, 24)
        maps = channels * rows * columns if shape.channels_last else 0
    else:
        maps = outputs * rows * even(columns)
        first = shape.inputs < block()  # an image, which is read as it is in NCHW
        if shape.channels_last or not first:
            read = shape.inputs if first else inputs
            maps += read * sizes.source[0] * sizes.paired
    total += maps * shape.element_bytes
    alone = shape.kernel == 1 or shape.source[0].nbytes > weights
    return (shape.threads if alone else 1) * total


def _at_once(channels: int, most: int) -> int:
    """Channels in the largest number of whole blocks that divides theirs, of at most `most`."""
    blocks = channels // block()
    return block() * max(n for n in range(1, min(blocks, most) + 1) if blocks % n == 0)


def _refuses(shape: Shape, result: Tensor) -> bool:
    """Whether im2col does the forward pass in NCHW; of bfloat16 and of groups only a part of the
    condition is known."""
    sizes = shape.sizes(result)
    if shape.kernel == 1:
        return False
    if shape.depthwise:
        return sizes.outside or sizes.padding[1] > sizes.result[1]
    known = shape.groups == 1 and not shape.bfloat16
    return refuses_forward(sizes) if known else sizes.outside


def _by_columns(shape: Shape, gradient: Tensor) -> bool:
    """Whether im2col does the weights' gradient. In NCHW no kernel pads groups."""
    if shape.transposed or shape.kernel == 1 or (shape.depthwise and shape.narrow):
        return False
    if shape.depthwise and not shape.channels_last:
        return True
    return (shape.depthwise or shape.groups == 1) and refuses_weights(shape.sizes(gradient))


def _unfolded(shape: Shape, gradient: Tensor) -> int:
    """Bytes for im2col of the weights' gradient, 0 without: columns of one image and group, in NHWC
    its source too, and 16 bytes a weight (gemm_convolution_utils.cpp, init_conf). Above a limit
    fewer pixels are unfolded at once, in NHWC none."""
    if not _by_columns(shape, gradient):
        return 0
    source, weight, last = shape.source, shape.weight, shape.channels_last
    threads = _threads(shape, gradient, 256)
    pixels = gradient[0, 0].numel()
    each = shape.columns(gradient, 1) // shape.groups
    image = source[0].nbytes // shape.groups if last else 0
    image += 16 * weight.numel()
    limit = min(2**30, 15 * shape.threads * (source.nbytes + weight.nbytes + gradient.nbytes))
    left = limit - threads * image
    if threads * each > left:
        if last:
            return 0
        each = each // pixels * max(64 // shape.element_bytes, left // (each // pixels) // 20)
    return threads * (each + image)


def _threads(shape: Shape, gradient: Tensor, pixels: int) -> int:
    """Threads that unfold images of their own: all where a map has fewer than so many pixels for
    each, and there is more than one image or group, else one at a time."""
    several = len(gradient) > 1 or shape.groups > 2
    small = gradient[0, 0].numel() // shape.threads < pixels
    return shape.threads if several and small else 1


def convolution(use: Use) -> list[Moment]:
    return forward(Shape(use.args), use.result)


def convolution_backward(use: Use) -> list[Moment]:
    return backward(Shape(use.args), use.args["grad_output"], use.args["output_mask"])


def _all(value: int | Sequence[int], dimensions: int) -> list[int]:
    """One number per dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values
