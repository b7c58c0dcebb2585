"""CUDA's caching allocator, played by its rules; sizes worked out by hand."""

from typing import Any

import pytest

from bench.memory.cuda_allocator import (
    CachingAllocator,
    OutOfMemoryError,
    play,
    round_size,
    segment_size,
)
from bench.memory.gpu_overhead import BLAS_BYTES, KNOWN_GPUS, gpu_overhead_of
from bench.memory.tracker import Event

KIB, MIB = 2**10, 2**20


@pytest.mark.parametrize(
    ("request_", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 11 * MIB, 12 * MIB),
    ],
)
def test_a_request_is_rounded_and_a_segment_taken_for_it(
    request_: int, block: int, segment: int
) -> None:
    assert round_size(request_) == block
    assert segment_size(round_size(request_)) == segment
    allocator = CachingAllocator()
    allocator.allocate(request_)
    assert allocator.reserved == segment


def test_nothing_is_no_block() -> None:
    allocator = CachingAllocator()
    allocator.release(allocator.allocate(0))
    assert allocator.reserved == allocator.allocated == 0


def test_a_free_block_is_taken_before_a_new_segment_and_the_smallest_that_fits() -> None:
    allocator = CachingAllocator()
    large, middle = allocator.allocate(30 * MIB), allocator.allocate(14 * MIB)
    kept = allocator.allocate(40 * MIB)
    allocator.release(large)
    allocator.release(middle)
    again = allocator.allocate(14 * MIB)
    assert again is middle
    assert allocator.reserved == (30 + 14 + 40) * MIB
    assert kept is not None
    assert allocator.allocated == 54 * MIB


def test_a_block_is_split_only_if_enough_is_left() -> None:
    """Large pool: the rest must be more than 1 MiB; else the whole block is handed out."""
    allocator = CachingAllocator()
    allocator.release(allocator.allocate(20 * MIB))
    close = allocator.allocate(19 * MIB)
    assert allocator.allocated == 20 * MIB
    allocator.release(close)
    first, second = allocator.allocate(12 * MIB), allocator.allocate(8 * MIB)
    assert (allocator.allocated, allocator.reserved) == (20 * MIB, 20 * MIB)
    allocator.release(first)
    allocator.release(second)
    assert allocator.allocate(20 * MIB) is not None, "neighbours were merged again"
    assert allocator.reserved == 20 * MIB


def test_blocks_merge_across_the_middle_one() -> None:
    allocator = CachingAllocator()
    three = [allocator.allocate(600 * KIB) for _ in range(3)]
    for block in (three[0], three[2], three[1]):
        allocator.release(block)
    assert allocator.reserved == 2 * MIB
    allocator.allocate(MIB)
    assert allocator.reserved == 2 * MIB


def test_small_and_large_blocks_do_not_mix() -> None:
    allocator = CachingAllocator()
    allocator.release(allocator.allocate(20 * MIB))
    allocator.allocate(512)
    assert allocator.reserved == 22 * MIB


def test_a_full_card_gives_cached_segments_back_before_it_fails() -> None:
    allocator = CachingAllocator(capacity_bytes=32 * MIB)
    allocator.release(allocator.allocate(20 * MIB))
    held = allocator.allocate(30 * MIB)
    assert (allocator.reserved, allocator.most_reserved) == (30 * MIB, 30 * MIB)
    assert held is not None
    with pytest.raises(OutOfMemoryError, match="held"):
        allocator.allocate(4 * MIB)


def test_a_segment_that_is_partly_in_use_is_not_given_back() -> None:
    allocator = CachingAllocator(capacity_bytes=32 * MIB)
    first, second = allocator.allocate(8 * MIB), allocator.allocate(8 * MIB)  # of 20 MiB
    allocator.release(first)
    with pytest.raises(OutOfMemoryError):
        allocator.allocate(14 * MIB)
    allocator.release(second)
    allocator.allocate(14 * MIB)
    assert allocator.reserved == 20 * MIB, "the whole segment serves it"


def event(block: int, size: int, device: str = "cuda") -> Event:
    return Event(block, size, device, "x", "")


def test_a_sequence_is_played_for_one_device() -> None:
    """Fragmentation: 12 + 12 MiB freed in two segments do not serve 24."""
    sequence = [
        event(0, 12 * MIB),
        event(1, 12 * MIB),
        event(9, 99 * MIB, "cpu"),
        event(0, -12 * MIB),
        event(1, -12 * MIB),
        event(2, 24 * MIB),
    ]
    held = play(sequence, "cuda")
    assert (held.reserved_bytes, held.allocated_bytes) == (48 * MIB, 24 * MIB)
    with pytest.raises(OutOfMemoryError):
        play(sequence, "cuda", capacity_bytes=23 * MIB)
    assert play(sequence, "cuda", capacity_bytes=30 * MIB).reserved_bytes == 24 * MIB


def measured(
    name: str, beside: int, reserved: int, predicted: int | None, doubt: str = ""
) -> dict[str, Any]:
    return {
        "meters": {
            "nvml": {"bytes": reserved + beside, "card": {"name": name}, "doubt": doubt},
            "reserved": {"bytes": reserved},
            "predicted": {"reserved_bytes": 1, "tf32_reserved_bytes": predicted},
        }
    }


def test_a_card_is_taken_from_its_records_or_assumed() -> None:
    held = BLAS_BYTES + 1000
    ours = [
        measured("Card X", 300, held, 900),
        measured("Card X", 320, held, 800),
        measured("Card X", 310, held, None),
        measured("Card Y", 9, 9, 9),
        measured("Card X", 9999, 9999, 1, doubt="2 other processes were on the card"),
        {"meters": {}},
    ]
    card = gpu_overhead_of("Card X", ours)
    assert (card.context_bytes, card.workspace_bytes, card.measured) == (310, 150, True)
    assert card.source == "3 records of this card"
    assert gpu_overhead_of("card x", ours).context_bytes == 310
    assert gpu_overhead_of("Card Z", ours) is KNOWN_GPUS[-1]
    assert gpu_overhead_of("NVIDIA RTX 6000 Ada Generation").family == "RTX 6000 Ada"
    assert gpu_overhead_of("NVIDIA H100 80GB HBM3").measured
    assert gpu_overhead_of("h100").measured
    assert gpu_overhead_of("", ours) is KNOWN_GPUS[-1]
    assert all(card.source for card in KNOWN_GPUS)
