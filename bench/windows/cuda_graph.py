"""Repeated calls of a network, captured once per shape as CUDA graphs and replayed: one launch in
place of hundreds, each of which takes Python longer than a GPU.

The first call of a shape is plain, the second is captured. A call stays plain on another device, on fake
tensors, and if it cannot be captured. A network's graphs keep the memory of its largest call until the
network is freed; predicted memory does not count it."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

Work = Callable[[], Any]
Capture = Callable[[Work], tuple[Any, Work]]
"""Records what a function computes: its results, and what computes them again in place."""
MOST = 16
"""Shapes of a module's arguments that are captured; others stay plain."""


def graph_capture() -> Capture:
    """A `Capture` by CUDA; its graphs share their memory, since results are read at once."""
    pool: list[Any] = []

    def capture(work: Work) -> tuple[Any, Work]:
        graph, cached = torch.cuda.CUDAGraph(), torch.is_autocast_cache_enabled()
        pool[:] = pool or [torch.cuda.graph_pool_handle()]
        # What autocast has converted would be freed before the graph is replayed.
        torch.set_autocast_cache_enabled(False)
        try:
            with torch.cuda.graph(graph, pool=pool[0]):
                results = work()
        finally:
            torch.set_autocast_cache_enabled(cached)
        return results, graph.replay

    return capture


def with_graphs(
    network: nn.Module, capture: Capture | None = None, device: str = "cuda"
) -> nn.Module:
    """The network, whose calls, and those of its children from outside, are replayed on a device."""
    within: list[nn.Module] = []
    record = capture or graph_capture()

    def wrapped(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        seen: set[Any] = set()
        graphs: dict[Any, tuple[list[Any], Any, Work] | None] = {}
        """None: what cannot be captured."""

        def plain(*args: Any, **kwargs: Any) -> Any:
            within.append(module)
            try:
                return forward(*args, **kwargs)
            finally:
                within.pop()

        def call(*args: Any, **kwargs: Any) -> Any:
            leaves, spec = tree_flatten((args, kwargs))
            if within or not all(_is_on(leaf, device) for leaf in leaves):
                return plain(*args, **kwargs)
            lowered = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
            key = (spec, lowered, torch.backends.cudnn.allow_tf32, *map(_like, leaves))
            if key not in seen or (key not in graphs and len(graphs) == MOST):
                seen.add(key)
                return plain(*args, **kwargs)
            if key not in graphs:
                kept = tree_map_only(Tensor, Tensor.clone, leaves)
                own, named = tree_unflatten(kept, spec)
                graphs[key] = None
                with contextlib.suppress(RuntimeError):  # needs the host, or too much memory
                    graphs[key] = (kept, *record(lambda: plain(*own, **named)))
            if not (found := graphs[key]):
                return plain(*args, **kwargs)
            kept, results, replay = found
            for place, leaf in zip(kept, leaves, strict=True):
                if isinstance(leaf, Tensor):
                    place.copy_(leaf)
            replay()
            return tree_map_only(Tensor, Tensor.clone, results)

        return call

    for module in (network, *network.children()):
        module.forward = wrapped(module, module.forward)
    return network


def _is_on(leaf: Any, device: str) -> bool:
    real = isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor)
    return not isinstance(leaf, Tensor) or (real and leaf.device.type == device)


def _like(leaf: Any) -> Any:
    return (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf
