"""Allocations of torch's CPU allocator, the reference for predictions on the CPU.

torch.profiler reports every call of c10's CPU allocator: `at::empty`, scratch space inside an
operator, oneDNN's reordered copies and scratchpads (oneDNN uses torch's allocator). It does not
report blocks that C++ takes from malloc directly (std::vector, MKL's packing buffers), nor calls
from threads outside the profile, such as OpenMP's workers. Sizes are the requested ones, without
malloc's rounding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


@dataclass
class CpuAllocations:
    """Calls of the CPU allocator in a block of code; empty until the block has ended."""

    peak_bytes: int = 0
    """Most bytes alive at once, of those allocated since the block began."""
    operators: tuple[str, ...] = ()
    """The operators at the peak, outermost first."""


@contextmanager
def record_cpu_allocations() -> Iterator[CpuAllocations]:
    """Record the CPU allocator's calls inside the block; earlier allocations do not count."""
    found = CpuAllocations()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    now = 0
    alive: set[int] = set()
    for call, operators in _calls(results.experimental_event_tree()):
        if call.alloc_size > 0:
            alive.add(call.ptr)
        elif call.ptr not in alive:  # allocated before the block
            continue
        else:
            alive.remove(call.ptr)
        now += call.alloc_size
        if now > found.peak_bytes:
            found.peak_bytes, found.operators = now, operators


def _calls(tree: Sequence[Any]) -> list[tuple[Any, tuple[str, ...]]]:
    """The allocator's calls in an event tree by time, each with the enclosing operators, outermost
    first."""
    seen: list[tuple[int, Any, tuple[str, ...]]] = []
    waiting: list[tuple[Any, tuple[str, ...]]] = [(node, ()) for node in tree]
    while waiting:
        node, above = waiting.pop()
        if node.tag == _EventType.Allocation:
            if node.extra_fields.device.type == "cpu":
                seen.append((node.start_time_ns, node.extra_fields, above))
            continue
        inside = (*above, node.name) if node.tag == _EventType.TorchOp else above
        waiting.extend((child, inside) for child in node.children)
    return [(call, operators) for _, call, operators in sorted(seen, key=lambda one: one[0])]
