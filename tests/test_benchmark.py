"""`pytest --benchmark-only`: latency of every run of params.yaml, end to end, of the network alone,
and of one forward pass as papers time it; median, spread and megapixels a second.

Trained weights and the first test image where they are there; else random ones and noise, on which
latency does not depend. The stage `measure` runs these very cases."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import latency
from bench.config import limited_to_avx2, read_suite
from bench.errors import UserError
from bench.memory.meters import allocated_bytes_of
from bench.memory.tracker import tensors_of
from bench.run import Run, clock, open_run, set_up

NOISE_PX = (720, 720)
BRIEF_PX = (180, 200)
"""Of an image that is not there; the second where nothing is timed."""
CLASSES = 7
SUITE = read_suite()
if not limited_to_avx2():  # nothing is timed here: conftest.py limits what is
    SUITE = replace(SUITE, compute=replace(SUITE.compute, isa="native"))


@dataclass(frozen=True)
class Ready:
    """A run that has made its first prediction."""

    network: nn.Module
    image: Tensor
    predict: Callable[[nn.Module, Tensor], Tensor]
    forward: Callable[[nn.Module, Tensor], Tensor]
    """Where the strategy has a forward pass of its own."""
    weights: str
    device: torch.device
    warm_s: float
    allocated_bytes: int
    """Peak of the prediction after the first one."""


@lru_cache(maxsize=1)
def ready(run: str, timed: bool) -> Ready:
    """All parts of a run share it, one after the other."""
    device, opened = set_up(SUITE.compute), open_run(SUITE, run)
    network, image, weights = (timed and trained(opened, device)) or untrained(
        opened, device, NOISE_PX if timed else BRIEF_PX
    )

    def forward(network: nn.Module, image: Tensor) -> Tensor:
        assert opened.strategy.forward is not None
        with torch.inference_mode():
            return opened.strategy.forward(network, image, opened.spec)

    with clock(device) as took:
        opened.predict(network, image)
    peak = timed and allocated_bytes_of(
        lambda: opened.predict(network, image), [*tensors_of(network), image]
    )
    return Ready(network, image, opened.predict, forward, weights, device, took[0], peak)


def trained(run: Run, device: torch.device) -> tuple[nn.Module, Tensor, str] | None:
    try:
        network = run.network(device)
        image, _ = run.dataset.read(run.dataset.ids("test")[0])
    except UserError:
        return None
    return network, image, "trained"


def untrained(
    run: Run, device: torch.device, size: tuple[int, int]
) -> tuple[nn.Module, Tensor, str]:
    network = replace(run, model=replace(run.model, given_classes=CLASSES)).build().to(device)
    return network, torch.randint(0, 255, (3, *size), dtype=torch.uint8), "random"


def cases() -> list[Any]:
    clock = pytest.mark.benchmark(timer=latency.network_clock, disable_gc=True)
    return [
        pytest.param(
            run, part, marks=[clock] if part == "network-alone" else [], id=f"{run}-{part}"
        )
        for run in SUITE.runs
        for part in latency.parts(SUITE, run)
        if not (part == "network-alone" and latency.at_once(set_up(SUITE.compute)))
    ]


@pytest.mark.parametrize(("run", "part"), cases())
def test_latency(benchmark: Any, run: str, part: latency.Part) -> None:
    set_up(SUITE.compute)  # each time: other tests set one thread
    it = ready(run, benchmark.enabled)
    assert torch.get_num_threads() == SUITE.compute.threads
    task, source = it.predict, it.image
    if part == "forward-alone":
        sides = [int(latency.THEIR_SCALE * side) for side in it.image.shape[-2:]]
        task, source = it.forward, torch.randn(1, 3, *sides, device=it.device)
        task(it.network, source)
    found = latency.time_prediction(
        benchmark, part, lambda: task(it.network, source), it.network, it.device, it.warm_s
    )
    height, width = source.shape[-2:]
    assert all(one >= other for one, other in zip(found.shape[-2:], (height, width), strict=True))
    assert found.dim() == (4 if part == "forward-alone" else 2)
    if benchmark.stats:
        benchmark.extra_info |= {
            "megapixels_per_s": height * width / 1e6 / benchmark.stats.stats.median,
            "height_px": height,
            "width_px": width,
            "device": it.device.type,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            **({"allocated_bytes": it.allocated_bytes} if part == "end-to-end" else {}),
            "weights": it.weights,
            "definition": latency.DEFINITIONS[part],
        }
