"""Temporary memory inside operators, the same on every device: what torch's own code, common to all
devices or alike, allocates beside the results."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Moment(NamedTuple):
    """Temporary blocks that exist at the same time inside an operator."""

    blocks: Sequence[int]
    """Bytes of each block; all are freed before the operator returns."""
    results: bool = False
    """Whether the operator's results exist at that time."""
    variant: str = ""
    """For blocks that only some devices of the type allocate: they are tracked if this variant is
    requested, under the device name `TYPE VARIANT`."""


class Use(NamedTuple):
    """One call of an operator, as a rule gets it. A rule reads sizes and layouts, never values."""

    args: Mapping[str, Any]
    """By name, in the order of the operator's schema, defaults included."""
    result: Any

    @property
    def first(self) -> Any:
        """The first argument, whose name differs between the variants of an operator."""
        return next(iter(self.args.values()))


Rule = Callable[[Use], list[Moment]]
Rules = Mapping[str, Rule]
"""By the operator's name without its overload, for instance `aten::convolution`; of operators that
are missing, elementwise ones and views apart, no temporaries are known."""


def copy_bytes(map: Tensor, layout: torch.memory_format) -> int:
    """Bytes of a copy in a layout; 0 if the tensor has it."""
    return 0 if map.is_contiguous(memory_format=layout) else map.nbytes


def beside_results(*blocks: int) -> list[Moment]:
    """Blocks that exist at the same time as the operator's results."""
    return [Moment(blocks, results=True)]


def contiguous(use: Use) -> list[Moment]:
    """The source is made contiguous first."""
    return beside_results(copy_bytes(use.first, torch.contiguous_format))


def pool(use: Use) -> list[Moment]:
    """Indices of the maxima, of 8 bytes, which are discarded (Pooling.cpp, max_pool2d: the first
    result of max_pool2d_with_indices)."""
    return beside_results(use.result.numel() * 8)


def elementwise_loss(use: Use) -> list[Moment]:
    """The loss of each element before the mean (Loss.cpp, mse_loss_out)."""
    return beside_results(use.first.nbytes) if use.args["reduction"] else []


def masked(use: Use) -> list[Moment]:
    """A mask becomes 64-bit indices, one per dimension (IndexingUtils.h, expandTensors)."""
    masks = [one for one in use.args["indices"] if one is not None and one.dtype == torch.bool]
    return beside_results(*(8 * mask.dim() * len(use.result) for mask in masks))


def layer_norm(use: Use) -> list[Moment]:
    """The source is made contiguous; without gradients mean and deviation of each row are
    discarded (layer_norm.cpp)."""
    source = use.first
    discarded = 0
    if isinstance(use.result, Tensor):
        rows = source.numel() // math.prod(use.args["normalized_shape"])
        discarded = 2 * rows * source.element_size()
    return beside_results(copy_bytes(source, torch.contiguous_format), discarded)


def layer_norm_backward(use: Use) -> list[Moment]:
    """Gradient and source are made contiguous; on the CPU each thread sums the gradients of weight
    and bias (layer_norm.cpp)."""
    copies = [copy_bytes(use.args[name], torch.contiguous_format) for name in ("grad_out", "input")]
    weight = use.args["weight"]
    sums = 0 if weight is None else 2 * torch.get_num_threads() * weight.nbytes
    return beside_results(*copies, sums)


def _matmul(use: Use) -> list[Moment]:
    """Stacks of matrices become one stack, copied unless a view can be (LinearAlgebra.cpp,
    _matmul_impl: expand, reshape). With gradients the operator is not called as a whole."""
    first, second = use.args["self"], use.args["other"]
    if min(first.dim(), second.dim()) < 3:
        return []
    stack = use.result.shape[:-2]
    return beside_results(*(_stacked(one, stack) for one in (first, second)))


def _stacked(matrices: Tensor, stack: Any) -> int:
    wide = matrices.expand(*stack, *matrices.shape[-2:])
    try:
        wide.view(-1, *wide.shape[-2:])
    except (RuntimeError, ValueError):
        return wide.numel() * wide.element_size()
    return 0


def _roll(use: Use) -> list[Moment]:
    """One dimension after another (TensorTransformations.h, roll_common)."""
    return beside_results(use.result.nbytes) if len(use.args["dims"]) > 1 else []


def _cumulated(use: Use) -> list[Moment]:
    """The source is converted to the type of the result."""
    return beside_results(use.result.nbytes if use.first.dtype != use.result.dtype else 0)


def _safe_softmax(use: Use) -> list[Moment]:
    """Masks of elements and of rows that are minus infinity (SoftMax.cpp)."""
    result = use.result
    return beside_results(result.numel(), result.numel() // result.shape[-1])


def _nothing(_: Use) -> list[Moment]:
    return []


def named(*rules: tuple[str, Rule]) -> dict[str, Rule]:
    """A table of rules: names of operators in one string, and their rule."""
    return {f"aten::{name}": rule for names, rule in rules for name in names.split()}


WITHOUT_TEMPORARIES = (
    "_local_scalar_dense _softmax_backward_data _log_softmax_backward_data _to_copy _unsafe_view "
    "adaptive_avg_pool2d _adaptive_avg_pool2d _adaptive_avg_pool2d_backward addmm as_strided_ avg_pool2d "
    "avg_pool2d_backward baddbmm bernoulli_ bmm cat clone constant_pad_nd copy_ dropout "
    "dropout_ embedding empty empty_like empty_strided feature_dropout feature_dropout_ fill_ full "
    "full_like gather group_norm hardsigmoid_backward hardswish_ hardswish_backward index_put "
    "index_select linear max_pool2d_with_indices max mean mm native_dropout native_dropout_backward "
    "native_group_norm native_group_norm_backward new_empty new_empty_strided new_full new_ones "
    "hardtanh_backward linalg_vector_norm masked_fill_ linspace grid_sampler upsample_bicubic2d detach_ "
    "meshgrid prod "
    "new_zeros nll_loss2d_forward nll_loss2d_backward nll_loss_forward nll_loss_backward normal_ ones "
    "ones_like pad rand rand_like randn repeat scalar_tensor select_backward slice_backward stack sum "
    "uniform_ zero_ zeros zeros_like arange"
)
"""Operators that allocate their results alone, or a few KiB beside them: measured on the CPU one by one
for networks of torchvision, smp and torch.nn, and so in torch's source for CUDA. Elementwise operators
and views need no entry."""
SHARED = named(
    (WITHOUT_TEMPORARIES, _nothing),
    ("_log_softmax log_softmax _softmax softmax", contiguous),
    ("_safe_softmax", _safe_softmax),
    ("cumsum", _cumulated),
    ("max_pool2d", pool),
    ("mse_loss", elementwise_loss),
    ("index", masked),
    ("layer_norm native_layer_norm", layer_norm),
    ("native_layer_norm_backward", layer_norm_backward),
    ("matmul", _matmul),
    ("roll", _roll),
)
