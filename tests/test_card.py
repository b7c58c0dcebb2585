"""The card's meter, through the real pynvml on a stand-in for NVIDIA's library whose card does what
the test says."""

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from bench.memory.nvml import OWN_PROCESS, WHOLE_GPU, NvmlSampler, gpu_bytes

MIB = 2**20
IS_LOST, DENIED, UNSUPPORTED, NO_DRIVER, MISMATCH = 15, 4, 3, 9, 18
INVALID, UNKNOWN = 2, 13
V1 = "nvmlDeviceGetMemoryInfo"
V2, V3 = (f"nvmlDeviceGetComputeRunningProcesses_v{n}" for n in (2, 3))


NOBODY = "NVML lists nobody, not even this process: others may have used the card"


def compiled(folder: Path, *options: str) -> Path:
    """A library that calls itself libnvidia-ml.so.1."""
    if sys.platform != "linux":
        pytest.skip("NVML exists on Linux alone")
    library = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml.c")
    name = "-Wl,-soname,libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", name, *options, "-o", library, source], check=True)
    return library


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Loaded, it is what `pynvml` finds by that name."""
    path = compiled(tmp_path_factory.mktemp("nvml"))
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


@pytest.fixture(autouse=True)
def nvml(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """Nothing scripted yet; at the end NVML is as closed as it was."""
    for name in ("USED", "PROCESS", "OTHERS", "GRAPHICS", "SPIN_US", "FAIL", "MIG"):
        monkeypatch.delenv(f"FAKE_{name}", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    before = library.fakeOpenCount()
    yield library
    assert library.fakeOpenCount() == before, "every nvmlInit has its nvmlShutdown"


def script(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"FAKE_{name.upper()}", value)


@pytest.fixture
def sampler() -> NvmlSampler:
    """Samples when told to and at its end, so that every question of it is known: used is asked at
    the start twice, processes once."""
    return NvmlSampler(interval_s=60)


def test_the_card_minus_what_it_held_before(
    sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    # reading the version, total, before, idle, at the end
    script(monkeypatch, used="9,9,100,600,1900", others="0,1")
    with sampler as card:
        card.mark_idle()
    assert (card.before_bytes, card.idle_bytes, card.peak_bytes) == (100, 500, 1800)
    assert (card.how, card.doubt, card.missing, card.lost) == (WHOLE_GPU, "", "", "")


def test_the_own_process_where_nvml_tells(
    sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, used="5000", process="0,300,900", others="3")
    with sampler as card:
        card.mark_idle()
    assert (card.idle_bytes, card.peak_bytes) == (300, 900)
    assert (card.how, card.doubt) == (OWN_PROCESS, "")


def test_losing_sight_of_the_process_adds_no_figure_of_another_kind(
    sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, used="0,0,0,5000", process="0,300,0")
    with sampler as card:
        card.mark_idle()
    assert card.peak_bytes == 300


def test_figures_of_the_card_and_of_the_process_are_never_mixed(
    sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, used="0,0,0,5000", process="0,0,300")
    with sampler as card:
        card._take()
        assert (card.how, card.peak_bytes) == (WHOLE_GPU, 5000)
    assert (card.how, card.peak_bytes) == (OWN_PROCESS, 300)
    with sampler as card:  # the idle context is the card's figure: so is the peak
        card.mark_idle()
    assert (card.how, card.idle_bytes, card.peak_bytes) == (WHOLE_GPU, 5000, 5000)


def test_a_process_with_this_ones_number_from_the_start_is_another(
    sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container counts its processes anew: NVML's number, the host's, may be somebody else's."""
    script(monkeypatch, used="0,0,10,70", process="5555")
    with sampler as card:
        pass
    assert (card.how, card.peak_bytes) == (WHOLE_GPU, 60)
    assert card.doubt == "1 other processes were on the card from the start"


def test_bytes_that_are_not_told_of_a_listed_process(
    sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, used="0,0,10,70", process="0,NA")
    with sampler as card:
        pass
    assert (card.peak_bytes, card.how, card.doubt) == (60, WHOLE_GPU, "")


@pytest.mark.parametrize(
    "fail",
    [
        f"{V3}={DENIED}",
        f"{V3}={UNSUPPORTED}",
        f"{V3}={UNKNOWN},{V2}={UNKNOWN}",  # older than either question
    ],
)
def test_processes_that_may_not_be_listed(
    fail: str, sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, used="0,0,10,70", fail=fail)
    with sampler as card:
        pass
    assert card.peak_bytes == 60
    assert card.doubt.startswith("NVML does not list processes here")
    assert not card.lost


@pytest.mark.parametrize(
    ("values", "doubt"),
    [
        ({"others": "2,1"}, "2 other processes were on the card from the start"),
        ({"others": "0,1"}, ""),  # ours, under the host's id
        ({"others": "0,2"}, "1 other processes came to the card meanwhile"),
        ({"others": "0,1", "graphics": "1"}, "1 other processes were on the card from the start"),
        ({"others": "0,1", "graphics": "0,1"}, "1 other processes came to the card meanwhile"),
        (
            {"others": "0"},
            NOBODY,
        ),
        (
            {"others": "0,1", "used": f"0,0,{100 * MIB},{200 * MIB}"},
            f"{100 * MIB} bytes were in use before, by nobody whom NVML lists",
        ),
    ],
)
def test_a_card_that_others_use_is_doubted(
    values: dict[str, str], doubt: str, sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, **{"used": "0,0,10,70", **values})
    with sampler as card:
        pass
    assert card.doubt == doubt


@pytest.mark.parametrize("code", [DENIED, UNSUPPORTED])
def test_who_draws_may_stay_untold(
    code: int, sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = f"nvmlDeviceGetGraphicsRunningProcesses_v3={code}"
    script(monkeypatch, used="0,0,10,70", others="0,1", fail=asked)
    with sampler as card:
        pass
    assert (card.peak_bytes, card.doubt, card.lost) == (60, "", "")


def test_a_card_that_disappears_leaves_what_was_seen(
    sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, used="0,0,100,600,9999", fail=f"{V3}={IS_LOST}@3")
    with sampler as card:
        card.mark_idle()
    assert card.peak_bytes == 500
    assert card.lost == "the card was lost after 1 samples: GPU is lost"


def test_a_card_that_disappears_as_the_context_is_marked_leaves_what_was_seen(
    sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, used="0,0,0,600", fail=f"{V3}={IS_LOST}@4")
    with sampler as card:
        card._take()
        card.mark_idle()
    assert card.peak_bytes == 600
    assert card.lost


def test_a_card_that_disappears_as_the_sampler_ends(
    sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = f"nvmlDeviceGetGraphicsRunningProcesses_v3={IS_LOST}@2"
    script(monkeypatch, used="0,0,10,70", others="0,1", fail=asked)
    with sampler as card:
        pass
    assert card.peak_bytes == 60


def test_a_card_that_disappears_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, used="0,0,10,50", fail=f"nvmlDeviceGetMemoryInfo_v2={IS_LOST}@9")
    with NvmlSampler(interval_s=0.001) as card:
        deadline = time.monotonic() + 10
        while not card.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        thread = card._thread
        assert thread is not None
        thread.join(10)
        assert not thread.is_alive()
    assert card.peak_bytes == 40


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (f"nvmlInitWithFlags={NO_DRIVER}", "Driver Not Loaded"),
        (f"nvmlInitWithFlags={MISMATCH}", "RM has detected an NVML/RM version mismatch."),
        (f"nvmlDeviceGetMemoryInfo_v2={IS_LOST}", "GPU is lost"),
        (f"nvmlDeviceGetMemoryInfo={IS_LOST}", "GPU is lost"),
        (f"{V3}={IS_LOST}", "GPU is lost"),
    ],
)
def test_nvml_that_cannot_begin_is_missing_and_no_error(
    fail: str, reason: str, sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, fail=fail)
    with sampler as card:
        card.mark_idle()
        assert not card.running
    assert (card.missing, card.samples, card.peak_bytes) == (reason, 0, 0)
    assert gpu_bytes() is None or "_v2" in fail or V3 in fail


@pytest.mark.parametrize("visible", ["0:1", "GPU-stand", "-1", "GPU-stand-in"])
def test_a_card_that_nobody_has_is_missing(
    visible: str, sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible == "GPU-stand-in":
        script(monkeypatch, fail=f"nvmlDeviceGetHandleByUUID={INVALID}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with sampler as card:
        pass
    assert card.missing == (
        f"CUDA_VISIBLE_DEVICES begins with {visible!r}, which NVML does not know: name a GPU by "
        "its index or its whole UUID, a MIG instance by its whole UUID."
    )
    assert gpu_bytes() is None


def test_memory_without_the_drivers_part_may_be_unsupported(
    sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver has the question and does not answer it."""
    script(monkeypatch, used="0,10,70", fail=f"nvmlDeviceGetMemoryInfo_v2={UNSUPPORTED}")
    with sampler as card:
        pass
    assert (card.missing, card.gpu["used_bytes_from"], card.peak_bytes) == ("", V1, 60)


def test_what_the_record_says_of_a_card(sampler: NvmlSampler) -> None:
    with sampler as card:
        pass
    assert card.gpu == {
        "name": "Stand-in 1000",
        "uuid": "GPU-stand-in",
        "driver": "1.2.3",
        "total_bytes": 8000,
        "used_bytes_from": "nvmlDeviceGetMemoryInfo_v2",
        "sm_clock_mhz": 1001,
        "sm_clock_max_mhz": 2001,
        "memory_clock_mhz": 1002,
        "memory_clock_max_mhz": 2002,
        "ecc": True,
        "power_limit_w": 250.0,
        "mig_instance": False,
    }
    assert gpu_bytes() == 8000


def test_what_a_driver_does_not_tell_is_left_open(
    sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = ("Clock", "MaxClock")
    fails = [f"nvmlDeviceGet{name}Info={UNSUPPORTED}" for name in silent]
    fails += [
        f"nvmlDeviceGet{n}={DENIED}" for n in ("Name", "UUID", "EccMode", "EnforcedPowerLimit")
    ]
    script(monkeypatch, fail=",".join(fails))
    with sampler as card:
        pass
    open_ = {name for name, value in card.gpu.items() if value is None}
    assert open_ == {
        "name",
        "uuid",
        "ecc",
        "power_limit_w",
        *(f"{kind}_clock{most}_mhz" for kind in ("sm", "memory") for most in ("", "_max")),
    }
    assert not card.missing


@pytest.mark.parametrize("visible", ["0", "MIG-stand-in"])
def test_an_instance_of_a_card_is_looked_at_alone(
    visible: str, sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, mig="1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with sampler as card:
        pass
    assert (card.gpu["total_bytes"], card.gpu["mig_instance"]) == (4000, True)
    assert gpu_bytes() == 4000


def test_the_thread_samples_and_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, used="0,0,10,4000,20")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-stand-in")
    card = NvmlSampler(interval_s=0.001)
    before = threading.active_count()

    def work() -> None:
        time.sleep(0.1)
        raise KeyError

    with pytest.raises(KeyError), card:
        work()
    assert card.peak_bytes == 3990
    assert card.samples > 3
    assert threading.active_count() == before


def test_start_and_stop_in_any_order(sampler: NvmlSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, used="0,0,10,70")
    sampler.stop()
    sampler.mark_idle()
    assert sampler.idle_bytes == 0
    sampler.start()
    with pytest.raises(RuntimeError, match="runs already"):
        sampler.start()
    sampler.stop()
    sampler.stop()
    assert sampler.peak_bytes == 60
    sampler.start()  # once more, from the beginning
    assert (sampler.peak_bytes, sampler.samples) == (0, 0)
    sampler.stop()
    assert sampler.peak_bytes == 60
    sampler.mark_idle()  # too late: what was measured stays
    assert (sampler.idle_bytes, sampler.peak_bytes) == (0, 60)


@pytest.mark.parametrize("spin_us", [0, 100, 1000])
@pytest.mark.parametrize("values", [{"process": "0,900"}, {"used": "0", "others": "8"}])
def test_sampling_takes_less_than_two_hundredths_of_a_core(
    values: dict[str, str], spin_us: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both ways of asking: of the process, and of the card, where both questions are put; and
    however long NVML itself takes to answer."""
    script(monkeypatch, spin_us=str(spin_us), **values)
    with NvmlSampler() as card:
        time.sleep(1.0)
    assert card.samples > (2 if spin_us > 100 else 10)
    assert 0 < card.cpu_share < 0.02
    assert card.longest_interval_s >= card.interval_s


TELL = """
import json, os
from bench.memory.nvml import NvmlSampler
with NvmlSampler(interval_s=60) as card:
    pass
print(json.dumps([card.missing, card.how, card.peak_bytes, card.gpu.get("used_bytes_from")]))
"""


def told(environment: dict[str, str]) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", TELL],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("process", ["0,500", "0"])
def test_an_old_driver_without_the_newer_questions(process: str, tmp_path: Path) -> None:
    """In a process of its own: pynvml loads one library for good."""
    compiled(tmp_path, "-DOLD")
    environment = {
        "LD_LIBRARY_PATH": str(tmp_path),
        "FAKE_PROCESS": process,
        "FAKE_USED": "0,10,70",
    }
    own = process != "0"
    assert told(environment) == ["", OWN_PROCESS if own else WHOLE_GPU, 500 if own else 60, V1]


def test_a_machine_without_nvml() -> None:
    if any(Path(path).exists() for path in ("/dev/nvidiactl", "/proc/driver/nvidia")):
        pytest.skip("this machine has NVML")
    assert told({})[0] == "NVML Shared Library Not Found"


def replace_counters(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """torch's own counters of a card that is not there."""
    from bench.memory import meters

    monkeypatch.setattr(meters, "NvmlSampler", lambda: NvmlSampler(interval_s=60))
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


def test_the_meters_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of things on a card."""
    from bench.memory import meters

    calls: list[str] = []
    replace_counters(monkeypatch, calls)
    script(monkeypatch, used="9,9,100,600,2600", others="0,2")

    def first() -> tuple[torch.nn.Module, torch.Tensor]:
        calls.append("predict")
        return torch.nn.Identity(), torch.zeros(3)

    found = meters.measure_first_on_gpu(first, torch.device("cuda"))
    assert calls[:4] == ["context", "reset_peak_memory_stats", "predict", "synchronize"]
    assert found.meters["allocated"]["bytes"] == 1000
    assert found.meters["reserved"]["bytes"] == 1500
    nvml = found.meters["nvml"]
    assert (nvml["idle_bytes"], nvml["bytes"]) == (500, 2500)
    assert nvml["card"]["name"] == "Stand-in 1000"
    assert "came to the card" in nvml["doubt"]
    assert found.meters["rss"]["base_bytes"] > 0
    assert found.missing == {}


def test_a_card_lost_on_the_way_is_told_beside_its_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.memory import meters

    replace_counters(monkeypatch, [])
    script(monkeypatch, used="0,0,0,600", others="0,1", fail=f"{V3}={IS_LOST}@4")
    found = meters.measure_first_on_gpu(
        lambda: (torch.nn.Identity(), torch.zeros(3)), torch.device("cuda")
    )
    nvml = found.meters["nvml"]
    assert (nvml["bytes"], nvml["idle_bytes"]) == (600, 600)
    assert nvml["doubt"] == "the card was lost after 1 samples: GPU is lost"


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (f"nvmlInitWithFlags={NO_DRIVER}", "Driver Not Loaded"),
        (f"{V3}={IS_LOST}@2", "the card was lost after 0 samples: GPU is lost"),
    ],
)
def test_a_card_without_nvml_has_its_other_meters(
    fail: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.memory import meters

    replace_counters(monkeypatch, [])
    script(monkeypatch, fail=fail)
    found = meters.measure_first_on_gpu(
        lambda: (torch.nn.Identity(), torch.zeros(3)), torch.device("cuda")
    )
    assert set(found.meters) == {"allocated", "reserved", "rss"}
    assert found.missing == {"nvml": reason}
