"""Repeated calls of a network are traced once and replayed.

A strategy calls a network with thousands of patches of one size. On fake tensors all these calls do
the same. A call with arguments of known shapes is therefore not executed: its blocks are allocated
and freed in the order of the first call, and its results are created directly."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from bench.memory.tracker import Script, Tracker

WRITTEN = 4
"""Calls after which further ones no longer record their temporary blocks, unless these raise a peak:
by then a caching allocator holds blocks that fit the call."""


class _Made(NamedTuple):
    """A tensor that a call returned."""

    block: int
    storage_bytes: int
    dtype: torch.dtype
    device: torch.device
    view: tuple[Sequence[int], Sequence[int], int]
    """Size, strides and offset in the storage."""


@dataclass
class _Call:
    """The events and results of one call of a module, for arguments of certain shapes."""

    script: Script
    results: list[Any]
    """Leaves of the returned value; tensors as `_Made`."""
    spec: TreeSpec
    flops: int
    times: int = 1


@contextmanager
def replaying(network: nn.Module, tracker: Tracker) -> Iterator[None]:
    """Inside the block, repeated calls of the network and of its direct children are replayed.

    A call is executed every time if it returns one of its arguments, keeps a tensor or frees an
    older one, because the next call may then behave differently."""
    calls: dict[Any, _Call | None] = {}
    under_way: list[nn.Module] = []

    def replayed(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if under_way:
            return forward(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        key = (id(module), spec, tuple(map(_like, leaves)))
        if call := calls.get(key):
            return _again(call, tracker)
        if key in calls:
            return forward(*args, **kwargs)
        under_way.append(module)
        try:
            begun, flops = len(tracker.events), tracker.flops
            result = forward(*args, **kwargs)
            calls[key] = _recorded(result, tracker, begun, flops)
        finally:
            under_way.pop()
        return result

    modules = [network, *network.children()]
    for module in modules:
        module.forward = partial(replayed, module, module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _recorded(result: Any, tracker: Tracker, begun: int, flops: int) -> _Call | None:
    """A call that returned `result`; None if it cannot be replayed.

    Args:
        begun: number of events before it.
        flops: those before it.
    """
    leaves, spec = tree_flatten(result)
    script = tracker.script(begun)
    blocks = {tracker.block_of(leaf) for leaf in leaves if isinstance(leaf, Tensor)}
    if script is None or blocks != script.left.keys():
        return None
    results = [
        _Made(
            script.left[tracker.block_of(leaf)],
            leaf.untyped_storage().nbytes(),
            leaf.dtype,
            leaf.device,
            (tuple(leaf.shape), leaf.stride(), int(leaf.storage_offset())),
        )
        if isinstance(leaf, Tensor)
        else leaf
        for leaf in leaves
    ]
    return _Call(script, results, spec, tracker.flops - flops)


def _again(call: _Call, tracker: Tracker) -> Any:
    """The results of a call that is not executed."""
    call.times += 1
    tracker.flops += call.flops
    storages: dict[int, Tensor] = {}
    with tracker.unseen():
        for one in call.results:
            if isinstance(one, _Made) and one.block not in storages:
                count = one.storage_bytes // one.dtype.itemsize
                storages[one.block] = torch.empty(count, dtype=one.dtype, device=one.device)
        leaves = [
            storages[one.block].as_strided(*one.view) if isinstance(one, _Made) else one
            for one in call.results
        ]
    tracker.play(call.script, storages, brief=call.times > WRITTEN)
    return tree_unflatten(leaves, call.spec)


def _like(leaf: Any) -> Any:
    """The properties of an argument that decide which operators a call runs, and their layouts."""
    if isinstance(leaf, Tensor):
        return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
    return leaf
