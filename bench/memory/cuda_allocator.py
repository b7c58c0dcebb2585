"""Simulation of CUDA's caching allocator: its rules, applied to a recorded sequence of events.

Constants are those of the installed torch (include/c10/core/AllocatorConfig.h), and so are the
defaults: no largest split size, no rounding to powers of two, no expandable segments. Rules are
those of c10/cuda/CUDACachingAllocator.cpp: round_size, get_pool, get_allocation_size,
get_free_block, should_split, try_merge_blocks, release_cached_blocks, for one stream. Assumed:
segments lie in the order of their allocation, which decides between free blocks of equal size."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from bench.memory.tracker import Event

MIN_BLOCK = 512
SMALL = 2**20
"""Bytes: the largest request of the pool of small blocks."""
SMALL_SEGMENT = 2 * 2**20
LARGE_SEGMENT = 20 * 2**20
MIN_LARGE = 10 * 2**20
"""Bytes: a larger request gets a segment of its own size."""
ROUND_LARGE = 2 * 2**20


class OutOfMemoryError(Exception):
    """The GPU cannot hold another segment, even after all cached ones are released."""


@dataclass(eq=False)
class Block:
    """A contiguous part of a segment, free or in use."""

    size: int
    address: int
    small: bool
    before: "Block | None" = None
    after: "Block | None" = None
    free: bool = False


@dataclass(frozen=True)
class Held:
    """Peak bytes of one sequence of events."""

    reserved_bytes: int
    """Of segments, as torch.cuda.max_memory_reserved reports."""
    allocated_bytes: int
    """Of blocks in use, as torch.cuda.max_memory_allocated reports: whole blocks, which can be
    larger than the request."""


class CachingAllocator:
    """The allocator of one GPU.

    It chooses a block by best fit within its pool: the smallest free block that is large enough,
    at the lowest address."""

    def __init__(self, capacity_bytes: int | None = None) -> None:
        """`capacity_bytes`: limit for all segments together; None: unlimited."""
        self.capacity_bytes = capacity_bytes
        self.reserved = self.allocated = 0
        self.most_reserved = self.most_allocated = 0
        self._end = 0
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        """By pool (small or not): (size, address, block), sorted."""

    def allocate(self, request: int) -> Block | None:
        """A block of at least `request` bytes; None for a request of 0.

        Raises:
            OutOfMemoryError: the segments would exceed the capacity.
        """
        if request == 0:
            return None
        size = round_size(request)
        small = size <= SMALL
        block = self._cached(size, small) or self._segment(size, small)
        rest = block.size - size
        if rest >= MIN_BLOCK if small else rest > SMALL:
            remainder = Block(rest, block.address + size, small, block, block.after)
            if block.after:
                block.after.before = remainder
            block.size, block.after = size, remainder
            self._keep(remainder)
        self.allocated += block.size
        self.most_allocated = max(self.most_allocated, self.allocated)
        return block

    def release(self, block: Block | None) -> None:
        """Free a block; it is cached, merged with its free neighbours."""
        if block is None:
            return
        self.allocated -= block.size
        for other in (block.before, block.after):
            if other and other.free:
                self._forget(other)
                if other is block.before:
                    block.address, block.before = other.address, other.before
                    if other.before:
                        other.before.after = block
                else:
                    block.after = other.after
                    if other.after:
                        other.after.before = block
                block.size += other.size
        self._keep(block)

    def _cached(self, size: int, small: bool) -> Block | None:
        pool = self._free[small]
        place = bisect_left(pool, (size, -1), key=lambda entry: entry[:2])
        if place == len(pool):
            return None
        block = pool[place][2]
        self._forget(block)
        return block

    def _segment(self, size: int, small: bool) -> Block:
        whole = segment_size(size)
        if self._full(whole):
            self._empty_cache()
            if self._full(whole):
                raise OutOfMemoryError(f"{self.reserved} bytes held, {whole} more asked for")
        block = Block(whole, self._end, small)
        self._end += whole
        self.reserved += whole
        self.most_reserved = max(self.most_reserved, self.reserved)
        return block

    def _full(self, more: int) -> bool:
        return self.capacity_bytes is not None and self.reserved + more > self.capacity_bytes

    def _empty_cache(self) -> None:
        """Release segments that are entirely free."""
        for small, pool in self._free.items():
            whole = [one for one in pool if one[2].before is None and one[2].after is None]
            self.reserved -= sum(size for size, _, _ in whole)
            self._free[small] = [one for one in pool if one not in whole]

    def _keep(self, block: Block) -> None:
        block.free = True
        entry = (block.size, block.address, block)
        insort(self._free[block.small], entry, key=lambda one: one[:2])

    def _forget(self, block: Block) -> None:
        block.free = False
        pool = self._free[block.small]
        place = bisect_left(pool, (block.size, block.address), key=lambda entry: entry[:2])
        assert pool[place][2] is block
        del pool[place]


def round_size(request: int) -> int:
    """Bytes of the block for a request of `request` bytes."""
    return max(-(-request // MIN_BLOCK) * MIN_BLOCK, MIN_BLOCK)


def segment_size(size: int) -> int:
    """Bytes of the new segment when no cached block fits a block of `size` bytes."""
    if size <= SMALL:
        return SMALL_SEGMENT
    if size < MIN_LARGE:
        return LARGE_SEGMENT
    return -(-size // ROUND_LARGE) * ROUND_LARGE


def play(
    events: Iterable[Event], device: str, capacity_bytes: int | None = None, variant: str = ""
) -> Held:
    """Peak bytes of the allocator of `device` over a recorded sequence of events.

    Args:
        variant: also count blocks that only this variant of the device allocates
            (`tracker.Moment.variant`).

    Raises:
        OutOfMemoryError: with `capacity_bytes`, the sequence does not fit.
    """
    allocator = CachingAllocator(capacity_bytes)
    places = {device, f"{device} {variant}".strip()}
    blocks: dict[int, Block | None] = {}
    for event in events:
        if event.device not in places or event.bytes == 0:
            continue
        if event.bytes > 0:
            blocks[event.block] = allocator.allocate(event.bytes)
        else:
            allocator.release(blocks.pop(event.block))
    return Held(allocator.most_reserved, allocator.most_allocated)
