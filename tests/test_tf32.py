"""What a card with TF32 takes inside convolutions, held against what one said."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench import record
from bench.experiments.gpu_memory import published_cases
from bench.memory.cuda_allocator import play
from bench.memory.gpu_overhead import BLAS_BYTES, HOPPER_BLAS_BYTES, blas_bytes, has_tf32
from bench.memory.rules.cuda import CUDA, TF32
from bench.memory.runs import predict_run
from bench.memory.tracker import Tracker, tensors_of
from bench.record import Record
from bench.report import figures
from bench.report.memory import gpu_section, gpu_sentences

H100 = record.RESULTS / "card/h100.json"
SIDE = 256
MAP = 4 * 32 * SIDE * SIDE
"""Bytes of a map of 32 channels."""


def copied(make: Callable[[], nn.Module], channels_last: bool = False) -> int:
    """Bytes that a layer takes inside itself on a card with TF32, more than on one without."""
    with FakeTensorMode(), torch.inference_mode():
        with torch.device("cuda"):
            layer = make()
        source = torch.empty(1, 32, SIDE, SIDE, device="cuda")
        if channels_last:
            source = source.to(memory_format=torch.channels_last)
        tracker = Tracker(tensors_of(layer), layer, {"cuda": CUDA}, variant=TF32)
        tracker.add([source], "inputs")
        with tracker:
            layer(source)
    seen = [play(tracker.events, "cuda", variant=variant).allocated_bytes for variant in ("", TF32)]
    return seen[1] - seen[0]


def test_a_convolution_of_nchw_has_source_weights_and_result_once_more() -> None:
    weights = 4 * 32 * 32 * 9
    assert copied(lambda: nn.Conv2d(32, 32, 3, padding=1)) == pytest.approx(
        2 * MAP + weights, abs=1024
    )


@pytest.mark.parametrize(
    ("make", "channels_last"),
    [
        (lambda: nn.Conv2d(32, 32, 3, padding=1), True),
        (lambda: nn.Conv2d(32, 32, 1), False),
        (lambda: nn.Conv2d(32, 32, 3, stride=2), False),
        (lambda: nn.Conv2d(32, 32, 3, groups=4), False),
        (lambda: nn.ConvTranspose2d(32, 32, 2, stride=2), False),
    ],
    ids=["NHWC", "of a pixel", "stride 2", "groups", "transposed"],
)
def test_other_convolutions_copy_nothing(
    make: Callable[[], nn.Module], channels_last: bool
) -> None:
    assert copied(make, channels_last) == 0


def test_what_is_booked_apart_is_booked_on_demand_and_in_no_other_peak() -> None:
    with FakeTensorMode(), torch.inference_mode():
        layer = nn.Conv2d(32, 32, 3, device="cuda")
        source = torch.empty(1, 32, SIDE, SIDE, device="cuda")
        peaks = []
        for variant in ("", TF32):
            with Tracker([source], layer, {"cuda": CUDA}, variant=variant) as tracker:
                layer(source)
            peaks.append(tracker.peak_of("cuda").bytes)
            assert (f"cuda {TF32}" in tracker.peak) == bool(variant)
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize(
    "key",
    [
        "DeepGlobe unet2015-whole",
        "DeepGlobe fcn8s-whole",
        "DeepGlobe pspnet-whole",
        "DeepGlobe deeplabv3plus-whole",
        "DeepGlobe enet-whole",
        "DeepGlobe isdnet as released",
        "DeepGlobe magnet-fast corrected",
    ],
)
def test_an_h100_said_so(key: str) -> None:
    """What torch's allocator said there, within 1 %: of whole images, since images by windows were on
    the host when it was asked."""
    said = next(row for row in record.read(H100).values["rows"] if row["key"] == key)
    case = next(case for case in published_cases() if case.key == key)
    found = predict_run(case.run, case.size, "cuda")
    assert found.tf32_allocated_bytes is not None
    told = found.tf32_allocated_bytes + HOPPER_BLAS_BYTES
    assert told == pytest.approx(said["meters"]["allocated"]["bytes"], rel=0.01)


def test_cublas_has_more_on_hopper() -> None:
    assert blas_bytes("NVIDIA H100 80GB HBM3") == HOPPER_BLAS_BYTES == 32 * 2**20
    assert blas_bytes("NVIDIA A100-SXM4-80GB") == BLAS_BYTES == 8_519_680


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("", True),
        ("NVIDIA A100-SXM4-80GB", True),
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA GeForce RTX 3090", True),
        ("NVIDIA RTX 6000 Ada Generation", True),
        ("NVIDIA L4", True),
        ("GeForce GTX 1080 Ti", False),
        ("NVIDIA GeForce RTX 2080 Ti", False),
        ("Quadro RTX 6000", False),
        ("Tesla V100-SXM2-32GB", False),
        ("Tesla T4", False),
        ("NVIDIA T4", False),
    ],
)
def test_which_cards_have_tf32(name: str, has: bool) -> None:
    assert has_tf32(name) == has


@pytest.fixture
def frame() -> pd.DataFrame:
    """A run that is explained, one that is not, and one that ran out of memory."""
    meters: dict[str, Any] = {
        name: {"bytes": size * 2**20}
        for name, size in (("allocated", 132), ("reserved", 150), ("nvml", 850))
    }
    row = {"dataset": "DeepGlobe", "side_px": 2448, "done": "", "method": "glnet"}
    row |= {"strategy": "collaborative", "published": "GLNet G<->L / collaborative"}
    known = {"device_bytes": 80 * 2**20, "tf32_reserved_bytes": 110 * 2**20}
    good, odd = ({**known, "tf32_allocated_bytes": size * 2**20} for size in (100, 34))
    measured = {**row, "status": "ok", "meters": meters}
    rows = [
        {**measured, "run": "good", "predicted": good, "wall_s": [3.0, 1.0, 2.0]},
        {**measured, "run": "odd", "predicted": odd},
        {**row, "run": "full", "status": "oom", "reason": "CUDA out of memory"},
    ]
    name = "NVIDIA H100 80GB HBM3"
    record = Record("card", "h100", {}, {"rows": rows}, {"device_name": name})
    return gpu_section([record]).rows


def test_a_line_has_what_was_measured_and_predicted(frame: pd.DataFrame) -> None:
    good, odd, full = (frame.iloc[number] for number in range(3))
    assert good.predicted_bytes == good.allocated_bytes == 132 * 2**20
    assert good.predicted_reserved_bytes == 142 * 2**20
    assert (good.ratio, good.wall_s) == (1, 2.0)
    assert good.beside_bytes == 700 * 2**20
    assert good.published_bytes == 1865 * 2**20
    assert odd.ratio == 0.5
    assert pd.isna(full.allocated_bytes)
    assert full.status == "oom"


def test_the_words_count_and_name_what_is_not_explained(frame: pd.DataFrame) -> None:
    counted, named, beside = gpu_sentences(frame)
    assert counted.startswith("Of 2 predictions 1 are within 2%")
    assert "odd (132 MiB, 0.50 of it predicted)" in named
    assert "good" not in named
    assert "700 MiB to 700 MiB" in beside
    assert gpu_sentences(frame.iloc[2:]) == []


def test_the_figure_has_two_points_a_run(frame: pd.DataFrame) -> None:
    drawn = figures.charts.on_gpu(frame)
    points = [one for one in drawn.axes[0].collections if len(one.get_offsets())]
    assert len(points) == 4
