"""Repeated calls of a network are traced once and replayed.

A strategy calls a network with thousands of patches of one size. On fake tensors all these calls do
the same. A call with arguments of known shapes is therefore not executed: its blocks are allocated
and freed in the order of the first call, and its results are created directly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from bench.memory.tracker import Script, Tracker

WRITTEN = 4
"""Calls after which further ones no longer record their temporary blocks, unless these raise a peak:
by then a caching allocator holds blocks that fit the call."""


@dataclass
class _Call:
    """The events and results of one call of a module, for arguments of certain shapes."""

    script: Script
    results: list[Any]
    """Leaves of the returned value; tensors as `_Made`."""
    spec: TreeSpec
    flops: int
    times: int = 1


@dataclass(frozen=True)
class _Made:
    """A tensor that a call returned."""

    block: int
    dtype: torch.dtype
    device: torch.device
    bytes: int
    """Of its storage."""
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@contextmanager
def replaying(network: nn.Module, tracker: Tracker) -> Iterator[None]:
    """Inside the block, repeated calls of the network and of its direct children are replayed.

    A call is executed every time if it returns one of its arguments, keeps a tensor or frees an
    older one, because the next call may then behave differently."""
    replay = _Replay(tracker)
    modules = [network, *network.children()]
    for module in modules:
        module.forward = replay.wrapped(module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


class _Replay:
    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._calls: dict[Any, _Call | None] = {}
        self._inside = False

    def wrapped(self, module: nn.Module) -> Callable[..., Any]:
        """`module.forward`, executed at most once for arguments of the same shapes."""
        forward = module.forward

        def called(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return forward(*args, **kwargs)
            leaves, spec = tree_flatten((args, kwargs))
            key = (id(module), spec, tuple(_like(leaf) for leaf in leaves))
            if key not in self._calls:
                self._inside = True
                try:
                    result, self._calls[key] = self._first(forward, args, kwargs)
                finally:
                    self._inside = False
                return result
            call = self._calls[key]
            return forward(*args, **kwargs) if call is None else self._again(call)

        return called

    def _first(self, forward: Any, args: Any, kwargs: Any) -> tuple[Any, _Call | None]:
        tracker = self._tracker
        begun, flops = len(tracker.events), tracker.flops
        result = forward(*args, **kwargs)
        leaves, spec = tree_flatten(result)
        script = tracker.script(begun)
        if script is None:
            return result, None
        results: list[Any] = []
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                results.append(leaf)
                continue
            block = script.left.get(tracker.block_of(leaf))
            if block is None:
                return result, None
            results.append(
                _Made(
                    block,
                    leaf.dtype,
                    leaf.device,
                    leaf.untyped_storage().nbytes(),
                    tuple(leaf.shape),
                    leaf.stride(),
                    int(leaf.storage_offset()),
                )
            )
        returned = {made.block for made in results if isinstance(made, _Made)}
        if returned != set(script.left.values()):
            return result, None
        return result, _Call(script, results, spec, tracker.flops - flops)

    def _again(self, call: _Call) -> Any:
        call.times += 1
        tracker = self._tracker
        tracker.flops += call.flops
        storages: dict[int, Tensor] = {}
        with tracker.unseen():
            for made in call.results:
                if isinstance(made, _Made) and made.block not in storages:
                    storages[made.block] = torch.empty(
                        made.bytes // made.dtype.itemsize, dtype=made.dtype, device=made.device
                    )
            leaves = [
                storages[made.block].as_strided(made.size, made.stride, made.offset)
                if isinstance(made, _Made)
                else made
                for made in call.results
            ]
        tracker.play(call.script, storages, brief=call.times > WRITTEN)
        return tree_unflatten(leaves, call.spec)


def _like(leaf: Any) -> Any:
    """The properties of an argument that decide which operators a call runs, and their layouts."""
    if isinstance(leaf, Tensor):
        return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
    return leaf
