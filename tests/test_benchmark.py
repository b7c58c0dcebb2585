"""`pytest --benchmark-only`: latency of every run of params.yaml, end to end and of the network
alone; median, spread and megapixels a second.

Trained weights and the first test image where they are there; else random ones and noise, on which
latency does not depend. The stage `measure` runs these very cases."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from bench import latency
from bench.config import read_suite
from bench.errors import Refusal
from bench.memory import clock
from bench.method import check_strategy, load, network_for, spec_of
from bench.trained import open_run, set_up

NOISE_PX = (720, 720)
BRIEF_PX = (180, 200)
"""Of an image that is not there; the second where nothing is timed."""
CLASSES = 7
SUITE = read_suite()


@dataclass(frozen=True)
class Ready:
    """A run that has made its first prediction."""

    network: nn.Module
    image: Tensor
    predict: Callable[[nn.Module, Tensor], Tensor]
    weights: str
    device: torch.device
    warm_s: float


@lru_cache(maxsize=1)
def ready(run: str, timed: bool) -> Ready:
    """Both parts of a run share it, one after the other."""
    device = set_up(SUITE.compute)
    network, image, predict, weights = (timed and trained(run, device)) or untrained(
        run, device, NOISE_PX if timed else BRIEF_PX
    )
    with clock(device) as took:
        predict(network, image)
    return Ready(network, image, predict, weights, device, took[0])


def trained(run: str, device: torch.device) -> tuple[nn.Module, Tensor, Any, str] | None:
    try:
        line = open_run(SUITE, run)
        network = line.network(device)
        image, _ = line.dataset.read(line.dataset.ids("test")[0])
    except Refusal:
        return None
    return network, image, line.predict, "trained"


def untrained(
    run: str, device: torch.device, size: tuple[int, int]
) -> tuple[nn.Module, Tensor, Any, str]:
    line = SUITE.runs[run]
    model = SUITE.models[line.model]
    check_strategy(run, line, model)
    method, spec = load(model.method), spec_of(line.model, model, line)
    strategy = method.strategies[line.strategy]
    network = network_for(method, strategy, spec, CLASSES)
    network = strategy.prepare(network, spec).to(device)

    def predict(network: nn.Module, image: Tensor) -> Tensor:
        with torch.inference_mode():
            return strategy.predict(network, image, spec)

    return network, torch.randint(0, 255, (3, *size), dtype=torch.uint8), predict, "random"


def parts() -> list[Any]:
    clock = pytest.mark.benchmark(timer=latency.network_clock, disable_gc=True)
    return [
        pytest.param(part, marks=[clock] if part == "network-alone" else [], id=part)
        for part in get_args(latency.Part)
    ]


@pytest.mark.parametrize("part", parts())
@pytest.mark.parametrize("run", list(SUITE.runs))
def test_latency(benchmark: Any, part: latency.Part, run: str) -> None:
    set_up(SUITE.compute)  # each time: other tests set one thread
    it = ready(run, benchmark.enabled)
    assert torch.get_num_threads() == SUITE.compute.threads
    height, width = it.image.shape[-2:]
    labels = latency.time_prediction(
        benchmark, part, lambda: it.predict(it.network, it.image), it.network, it.device, it.warm_s
    )
    assert labels.shape == (height, width)
    if benchmark.stats:
        benchmark.extra_info |= {
            "megapixels_per_s": height * width / 1e6 / benchmark.stats.stats.median,
            "height_px": height,
            "width_px": width,
            "device": it.device.type,
            "weights": it.weights,
            "definition": latency.DEFINITIONS[part],
        }
