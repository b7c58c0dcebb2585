"""Allocations of torch's CPU allocator, the reference for predictions on the CPU.

torch.profiler reports every call of c10's CPU allocator: `at::empty`, scratch space inside an
operator, oneDNN's reordered copies and scratchpads (oneDNN uses torch's allocator). It does not
report blocks that C++ takes from malloc directly (std::vector, MKL's packing buffers), nor calls
from threads outside the profile, such as OpenMP's workers. Sizes are the requested ones, without
malloc's rounding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Call:
    """One call of the CPU allocator."""

    bytes: int
    """Bytes allocated; negative for a free."""
    operators: tuple[str, ...]
    """The enclosing operators, outermost first."""


@dataclass
class CpuAllocations:
    """Calls of the CPU allocator in a block of code; empty until the block has ended."""

    calls: list[Call] = field(default_factory=list)
    """In order of time. Frees of blocks that were allocated before the profile are left out."""

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive at once, of those allocated since the block began."""
        return peak(self.calls)[0]

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators at the peak, outermost first."""
        return peak(self.calls)[1]


def peak(calls: Sequence[Call]) -> tuple[int, tuple[str, ...]]:
    """(most bytes alive at once, the operators of the call that reached them)."""
    now = most = 0
    at: tuple[str, ...] = ()
    for call in calls:
        now += call.bytes
        if now > most:
            most, at = now, call.operators
    return most, at


@contextmanager
def record_cpu_allocations() -> Iterator[CpuAllocations]:
    """Record the CPU allocator's calls inside the block; earlier allocations do not count."""
    found = CpuAllocations()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    found.calls.extend(_calls(results.experimental_event_tree()))


def _calls(tree: Sequence[Any]) -> list[Call]:
    """The allocator's calls in an event tree, by time; frees without an allocation are left out."""
    seen: list[tuple[int, int, Any, tuple[str, ...]]] = []
    waiting: list[tuple[Any, tuple[str, ...]]] = [(node, ()) for node in tree]
    while waiting:
        node, above = waiting.pop()
        if node.tag == _EventType.Allocation:
            if node.extra_fields.device.type == "cpu":
                seen.append((node.start_time_ns, len(seen), node.extra_fields, above))
            continue
        inside = (*above, node.name) if node.tag == _EventType.TorchOp else above
        waiting.extend((child, inside) for child in node.children)
    alive: set[int] = set()
    calls: list[Call] = []
    for _, _, fields, above in sorted(seen, key=lambda one: one[:2]):
        if fields.alloc_size > 0:
            alive.add(fields.ptr)
        elif fields.ptr not in alive:
            continue
        else:
            alive.remove(fields.ptr)
        calls.append(Call(fields.alloc_size, above))
    return calls
