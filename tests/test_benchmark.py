"""`pytest --benchmark-only`: one image through each method; latency, megapixels a second and peak
memory.

Random weights: neither depends on their values. `extra_info` of each case says how much memory the
same call takes by tensors, and for which image."""

from typing import Any

import pytest
import torch

import baselines.spec
import glnet.spec
from bench.memory import Booking, tensors_of
from bench.method import load, network_for

SIZE = (720, 720)
CLASSES = 7
ENCODER = "tu-tf_efficientnet_lite0"
PLAIN = {"encoder": ENCODER, "size_px": 160, "overlap_px": 16, "decoder_width": 64}
GLNET = {
    "encoder": ENCODER,
    "global_px": 160,
    "patch_px": 160,
    "overlap_px": 16,
    "sub_batch": 1,
    "fpn_width": 64,
    "smooth_width": 32,
}


def cases() -> list[Any]:
    found = [
        pytest.param("baselines", {**PLAIN, "network": network, "train_on": "patch"}, strategy)
        for network in ("unet", "fpn", "pspnet", "deeplabv3plus")
        for strategy in ("downsample", "patch", "whole")
    ]
    for strategy in ("global", "local", "global-to-local", "collaborative"):
        phases = {"phases": ["local"]} if strategy == "local" else {}
        found.append(pytest.param("glnet", {**GLNET, **phases}, strategy))
    return [
        pytest.param(*case.values, id=f"{case.values[1].get('network', 'glnet')}-{case.values[2]}")
        for case in found
    ]


@pytest.mark.parametrize(("method", "values", "strategy"), cases())
def test_one_image(benchmark: Any, method: str, values: dict[str, Any], strategy: str) -> None:
    torch.set_num_threads(2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    package = load(method)
    spec = {"baselines": baselines.spec, "glnet": glnet.spec}[method].Spec(**values)
    plan = package.strategies[strategy]
    network = network_for(package, plan, spec, CLASSES).to(device)
    image = torch.randint(0, 255, (3, *SIZE), dtype=torch.uint8)

    with torch.inference_mode(), Booking([*tensors_of(network), image]) as booking:
        plan.predict(network, image, spec)

    def predict() -> torch.Tensor:
        # Labels come back to the host, so that the call ends when the device is done.
        with torch.inference_mode():
            return plan.predict(network, image, spec)

    labels = benchmark.pedantic(predict, rounds=3, warmup_rounds=1)
    assert labels.shape == SIZE
    if benchmark.stats:
        median = benchmark.stats.stats.median
        benchmark.extra_info["megapixels_per_s"] = SIZE[0] * SIZE[1] / 1e6 / median
    benchmark.extra_info["height_px"], benchmark.extra_info["width_px"] = SIZE
    benchmark.extra_info["device"] = device.type
    benchmark.extra_info["allocated_bytes"] = dict(booking.peak)
    benchmark.extra_info["allocated_definition"] = "bytes of tensors alive at the peak, by device"
