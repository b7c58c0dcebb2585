"""The meters, each against something whose memory is known."""

import mmap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.memory.rss import PeakResident
from bench.memory.tracker import Tracker, tensors_of
from bench.run import clock

MIB = 2**20


def tracked(work: Callable[[], object], *existing: torch.Tensor) -> Tracker:
    with Tracker(existing) as tracker:
        work()
    return tracker


def test_booking_by_hand() -> None:
    """1 MiB, then 2 more beside it, then all freed, then 1 again: the peak is 3."""

    def work() -> None:
        a = torch.empty(MIB, dtype=torch.uint8)
        b = torch.cat([a, a])
        del a, b
        torch.empty(MIB, dtype=torch.uint8)

    tracker = tracked(work)
    assert tracker.peak["cpu"] == 3 * MIB
    assert tracker.now["cpu"] == 0
    assert tracker.peak_of("cpu").operator == "aten.cat.default"


def test_views_and_in_place_results_count_once() -> None:
    def work() -> None:
        a = torch.zeros(MIB, dtype=torch.uint8)
        a.view(2, -1)[0].add_(1)
        a.t()

    assert tracked(work).peak["cpu"] == MIB


def test_what_exists_counts_from_the_start_and_no_longer_than_it_lives() -> None:
    weight = torch.zeros(MIB, dtype=torch.uint8)
    with Tracker([weight, weight]) as tracker:
        weight.view(-1)
    assert tracker.peak["cpu"] == MIB
    tracker = Tracker([weight])
    del weight
    assert tracker.now["cpu"] == 0


def test_real_and_fake_tensors_are_booked_alike_and_by_device() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1)
    )
    image = torch.rand(1, 3, 40, 50)
    with torch.inference_mode():
        real = tracked(lambda: network(image), *tensors_of(network), image).peak["cpu"]
        with FakeTensorMode():
            fake_image = torch.empty(1, 3, 40, 50)
            weights = [torch.empty(8, 3, 3, 3, device="cuda"), torch.empty(8, device="cuda")]

            def on_a_card() -> None:
                torch.conv2d(fake_image.to("cuda"), *weights)

            fake = tracked(on_a_card, fake_image, *weights)
    by_hand = 4 * (3 * 40 * 50 + 2 * 8 * 38 * 48 + 8 * 27 + 8 + 2 * 8 + 2)
    assert real == by_hand
    assert fake.peak["cpu"] == 4 * 3 * 40 * 50
    assert fake.peak["cuda"] == 4 * (8 * 27 + 8 + 3 * 40 * 50 + 8 * 38 * 48)


def touched(size: int) -> mmap.mmap:
    """Pages of its own, each written to: the heap of a long-lived process may hold room already."""
    block = mmap.mmap(-1, size)
    for page in range(0, size, mmap.PAGESIZE):
        block[page] = 1
    return block


def test_resident_memory_sees_a_short_peak() -> None:
    with PeakResident() as resident:
        touched(64 * MIB).close()
    taken = resident.peak_bytes - resident.base_bytes
    assert 60 * MIB < taken < 90 * MIB


def test_resident_memory_without_the_kernels_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refused)
    with PeakResident() as resident:
        block = touched(64 * MIB)
        time.sleep(0.1)
        block.close()
    assert resident.how == "sampled every 5 ms"
    assert resident.peak_bytes - resident.base_bytes > 60 * MIB


def test_the_clock_measures() -> None:
    with clock(torch.device("cpu")) as took:
        time.sleep(0.02)
    assert took[0] >= 0.02
