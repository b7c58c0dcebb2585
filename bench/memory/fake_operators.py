"""Results of operators on fake tensors where FakeTensorMode has none, other strides, or is slow."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    FakeTensor,
    in_kernel_invocation_manager,
    unset_fake_temporarily,
)
from torch.utils._pytree import tree_leaves, tree_map

_ATEN = torch.ops.aten
VIEWS = (_ATEN.slice.Tensor, _ATEN.select.int, _ATEN.unsqueeze.default)
"""Those of which most calls are: a part of an image or a map."""
DIRECT = (
    *VIEWS,
    _ATEN.unbind.int,
    _ATEN.as_strided.default,
    _ATEN.stack.default,
    _ATEN.cat.default,
    _ATEN.add_.Tensor,
    _ATEN.to.dtype,
)
"""Operators whose C++ meta kernel is called without FakeTensorMode, which takes up to 30 times as long
for each offset that it has not seen: a strategy that cuts patches has thousands."""


def called(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operator; directly where it is one of `DIRECT` and all operands are fake."""
    if func not in DIRECT:
        return func(*args, **kwargs)
    leaves = tree_leaves((args, kwargs))
    tensors: list[Any] = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    devices = {getattr(one, "fake_device", None) for one in tensors}
    if len(devices) != 1 or None in devices:
        return func(*args, **kwargs)
    mode = tensors[0].fake_mode
    with in_kernel_invocation_manager(mode):
        made = func(*args, **kwargs)
    device = devices.pop()
    return tree_map(lambda t: t if isinstance(t, FakeTensor) else FakeTensor(mode, t, device), made)


def in_nchw_if_both(result: Tensor) -> None:
    """Give the result of batch normalisation on the CPU the strides of NCHW where its layout is
    both NCHW and NHWC, as that of one pixel is (Normalization.cpp, suggest_memory_format_contig);
    the fake operator keeps those of its source."""
    if result.is_contiguous():
        result.as_strided_(result.shape, torch.empty(result.shape, device="meta").stride())


def with_torchs_strides(view: Tensor, source: Tensor) -> None:
    """Layouts depend on them, and the fake operator gives sides of 1 others."""
    with unset_fake_temporarily():
        own = torch.empty_strided(source.shape, source.stride(), device="meta").reshape(view.shape)
    if own.stride() != view.stride() and view is not source:
        view.as_strided_(view.shape, own.stride())


def without_values(func: Any, args: Any) -> Any:
    """Result of an operator that depends on values, which fake tensors lack: a number is read as 1,
    and a mask selects all elements, the upper bound. None for any other operator."""
    # In inference mode the latter two are not decomposed into the first.
    aten = torch.ops.aten
    reads = (aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default)
    if func in reads and isinstance(args[0], FakeTensor):
        return 1.0 if args[0].dtype.is_floating_point else 1
    if func is aten.index.Tensor and isinstance(args[0], FakeTensor):
        masks = [one for one in args[1] if one is not None and one.dtype == torch.bool]
        if len(masks) == 1 and args[1][0] is masks[0]:
            return args[0].new_empty(masks[0].numel(), *args[0].shape[masks[0].dim() :])
    return None
