"""The meters, each against something whose memory is known."""

import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.memory import Booking, CardSampler, PeakResident, clock, tensors_of

MIB = 2**20


def booked(work: Callable[[], object], *existing: torch.Tensor) -> Booking:
    with Booking(existing) as booking:
        work()
    return booking


def test_booking_by_hand() -> None:
    """1 MiB, then 2 more beside it, then all freed, then 1 again: the peak is 3."""

    def work() -> None:
        a = torch.empty(MIB, dtype=torch.uint8)
        b = torch.cat([a, a])
        del a, b
        torch.empty(MIB, dtype=torch.uint8)

    booking = booked(work)
    assert booking.peak["cpu"] == 3 * MIB
    assert booking.now["cpu"] == 0
    assert booking.at["cpu"] == "aten.cat.default"


def test_views_and_in_place_results_count_once() -> None:
    def work() -> None:
        a = torch.zeros(MIB, dtype=torch.uint8)
        a.view(2, -1)[0].add_(1)
        a.t()

    assert booked(work).peak["cpu"] == MIB


def test_what_exists_counts_from_the_start_and_no_longer_than_it_lives() -> None:
    weight = torch.zeros(MIB, dtype=torch.uint8)
    with Booking([weight, weight]) as booking:
        weight.view(-1)
    assert booking.peak["cpu"] == MIB
    booking = Booking([weight])
    del weight
    assert booking.now["cpu"] == 0


def test_real_and_fake_tensors_are_booked_alike_and_by_device() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1)
    )
    image = torch.rand(1, 3, 40, 50)
    with torch.inference_mode():
        real = booked(lambda: network(image), *tensors_of(network), image).peak["cpu"]
        with FakeTensorMode():
            fake_image = torch.empty(1, 3, 40, 50)
            weights = [torch.empty(8, 3, 3, 3, device="cuda"), torch.empty(8, device="cuda")]

            def on_a_card() -> None:
                torch.conv2d(fake_image.to("cuda"), *weights)

            fake = booked(on_a_card, fake_image, *weights)
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


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that calls itself libnvidia-ml.so.1; loaded, it is what `pynvml` finds by that
    name."""
    if sys.platform != "linux":
        pytest.skip("NVML exists on Linux alone")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml.c")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", library, source],
        check=True,
    )
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return library


def set_card(monkeypatch: pytest.MonkeyPatch, **script: str) -> None:
    """Through the C library's own environment, which the stand-in reads."""
    for name in ("FAKE_USED", "FAKE_PROCESS", "FAKE_DENIED", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in script.items():
        monkeypatch.setenv(name, value)
    assert os.environ.get("FAKE_USED") == script.get("FAKE_USED")


@pytest.fixture
def slow_sampler() -> CardSampler:
    """Samples at its start and end and when told to, so that every question of it is known."""
    return CardSampler(interval_s=60)


def test_the_card_minus_what_it_held_before(
    nvml: Path, monkeypatch: pytest.MonkeyPatch, slow_sampler: CardSampler
) -> None:
    # asked for: total at the start, before, idle, and at the end
    set_card(monkeypatch, FAKE_USED="100,100,600,1900")
    with slow_sampler as card:
        card.mark_idle()
    assert (card.idle_bytes, card.peak_bytes) == (500, 1800)
    assert card.how == "card, minus used before"
    assert card.card == {"name": "Stand-in 1000", "driver": "1.2.3", "total_bytes": 8000}


def test_the_own_process_where_nvml_tells(
    nvml: Path, monkeypatch: pytest.MonkeyPatch, slow_sampler: CardSampler
) -> None:
    # each sample asks twice: once for the number of processes
    set_card(monkeypatch, FAKE_USED="5000", FAKE_PROCESS="300,300,900,900")
    with slow_sampler as card:
        card.mark_idle()
    assert (card.idle_bytes, card.peak_bytes) == (300, 900)
    assert card.how == "this process"


def test_losing_sight_of_the_process_adds_no_figure_of_another_kind(
    nvml: Path, monkeypatch: pytest.MonkeyPatch, slow_sampler: CardSampler
) -> None:
    set_card(monkeypatch, FAKE_USED="0,0,5000", FAKE_PROCESS="300,300,0")
    with slow_sampler as card:
        card.mark_idle()
    assert card.peak_bytes == 300


def test_processes_that_may_not_be_listed(
    nvml: Path, monkeypatch: pytest.MonkeyPatch, slow_sampler: CardSampler
) -> None:
    set_card(monkeypatch, FAKE_USED="10,10,70", FAKE_DENIED="1")
    with slow_sampler as card:
        pass
    assert card.peak_bytes == 60


def test_the_thread_samples_and_ends_with_the_block(
    nvml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_card(monkeypatch, FAKE_USED="0,0,10,4000,20", CUDA_VISIBLE_DEVICES="GPU-stand-in")
    card = CardSampler(interval_s=0.001)

    def work() -> None:
        time.sleep(0.1)
        raise KeyError

    with pytest.raises(KeyError), card:
        work()
    assert card.peak_bytes == 4000
    assert card.samples > 3
    assert not card._thread.is_alive()


def test_the_meters_of_a_card(nvml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of things on a card, with the stand-in for NVML and torch's counters replaced."""
    from bench import meters

    set_card(monkeypatch, FAKE_USED="100,100,600,2600")
    calls: list[str] = []
    monkeypatch.setattr(meters, "CardSampler", lambda: CardSampler(interval_s=60))
    monkeypatch.setattr(meters, "_warm_up", lambda device: calls.append("context"))
    for name, value in {
        "reset_peak_memory_stats": None,
        "synchronize": None,
        "max_memory_allocated": 1000,
        "max_memory_reserved": 1500,
    }.items():

        def called(device: torch.device, name: str = name, value: int | None = value) -> int | None:
            calls.append(name)
            return value

        monkeypatch.setattr(torch.cuda, name, called)

    def first() -> tuple[torch.nn.Module, torch.Tensor]:
        calls.append("predict")
        return torch.nn.Identity(), torch.zeros(3)

    found, _, _ = meters.on_card(first, torch.device("cuda"))
    assert calls[:4] == ["context", "reset_peak_memory_stats", "predict", "synchronize"]
    assert found["allocated"]["bytes"] == 1000
    assert found["reserved"]["bytes"] == 1500
    assert (found["nvml"]["idle_bytes"], found["nvml"]["bytes"]) == (500, 2500)
    assert found["nvml"]["card"]["name"] == "Stand-in 1000"
    assert found["rss"]["base_bytes"] > 0


@pytest.mark.gpu
def test_meters_on_a_card() -> None:
    """Order of the meters on real hardware: tensors <= reserved <= what the card saw."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    with CardSampler() as card:
        torch.zeros(1, device="cuda")
        card.mark_idle()
        torch.cuda.reset_peak_memory_stats()
        block = torch.zeros(256 * MIB, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        del block
    assert 256 * MIB <= torch.cuda.max_memory_allocated() <= torch.cuda.max_memory_reserved()
    assert card.peak_bytes - card.idle_bytes >= 250 * MIB
