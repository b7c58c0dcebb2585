"""Peak memory of the suite's runs on one image, and of its models in one training step."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.memory.prediction import Building, Prediction, fake_copy, trace
from bench.memory.replay import replaying
from bench.memory.tracker import Tracker, bytes_of
from bench.method import Phase, View, network_for
from bench.run import Model, Run
from bench.training_step import enter_phase, training_step

PREDICTED = (
    "as allocated, worked out on fake tensors without weights, data or a device: bytes of all "
    "tensors alive at the peak on the device that the network is on, and by rule what "
    "operators take inside themselves"
)
"""The definition that records keep beside the number."""
LEARNING_RATE = 1e-6
STEPS = 2
"""Steps traced per phase: the first one creates the optimiser's state, the second one has it."""


def predict_run(run: Run, size: tuple[int, int], device: str) -> Prediction:
    """Peak memory of one prediction, on fake tensors.

    Args:
        size: (H, W) of the image in pixels.
        device: `cpu` or `cuda`; no GPU needs to be present.
    """
    with Building():
        network = network_for(run.method, run.strategy, run.spec, run.model.classes)
    parameters = sum(p.numel() for p in network.parameters())
    mode = FakeTensorMode()
    network = fake_copy(network, mode, device)
    with mode, torch.inference_mode():
        network = run.strategy.prepare(network, run.spec)
        image = torch.empty(3, *size, dtype=torch.uint8, device="cpu")

        def work(tracker: Tracker) -> None:
            with replaying(network, tracker):
                run.strategy.predict(network, image, run.spec)

        found = trace(work, network, [image], device)
    if run.config.precision == "ieee":
        reserved, allocated = found.reserved_bytes, found.allocated_bytes
        found = replace(found, tf32_reserved_bytes=reserved, tf32_allocated_bytes=allocated)
    return replace(found, parameters=parameters)


def predict_steps(
    model: Model, size: tuple[int, int], batch: Mapping[str, int], device: str
) -> dict[str, Prediction]:
    """Peak memory of an optimiser step of each phase, on fake tensors, by the phase's name.

    The step is `bench.training_step.training_step` in float32 with weights in NHWC; the second
    step of a phase, which has the optimiser's state from its start.

    Args:
        size: (H, W) of each training image in pixels.
        batch: images a step, by phase.
        device: `cpu` or `cuda`; no GPU needs to be present.
    """
    method, spec = model.method, model.spec
    with Building():
        network = model.build().to(memory_format=torch.channels_last)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    network = fake_copy(network, mode, "cpu")
    phases = method.phases(network, spec)
    seen = [views_of(model, phase, size, batch[phase.name]) for phase in phases]
    found = {}
    for phase, real in zip(phases, seen, strict=True):
        with mode:
            views = [
                {
                    name: value if name in READ else mode.from_tensor(value)
                    for name, value in view.items()
                }
                for view in real
            ]
            training = enter_phase(method, spec, network, phase, model.config.training)
            if training.optimizer and device == "cuda":  # `adam` takes the fused one for the CPU
                for group in training.optimizer.param_groups:
                    group["fused"] = None
            phase.begin()

            def work(tracker: Tracker, training: Any = training, views: Any = views) -> None:
                for _ in range(STEPS):
                    training_step(training, views, LEARNING_RATE)

            inputs = [value for view in views for value in view.values()]
            found[phase.name] = trace(work, network, inputs, device, stands_for=True)
        if device != "cpu":  # the host holds the views that were copied from it
            on_host = bytes_of(value for view in real for value in view.values())
            found[phase.name] = replace(found[phase.name], host_bytes=on_host)
    return found


READ = ("size", "boxes", "chosen")
"""Keys of a view whose values a method reads: small tensors of sizes and positions."""


def views_of(model: Model, phase: Phase, size: tuple[int, int], count: int) -> list[View]:
    """The views of `count` black images of `size` (H, W) that are all of the first class."""
    rng = torch.Generator().manual_seed(0)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    label = torch.zeros(*size, dtype=torch.uint8)
    return [
        model.method.view(image.clone(), label.clone(), model.spec, phase.name, rng)
        for _ in range(count)
    ]


def largest(
    bytes_at: Callable[[int], int], budget: int, first: int, most: int
) -> tuple[int, int, int | None]:
    """The largest integer from `first` to `most` whose bytes are within the budget, its bytes, and
    those of the next one (None past `most`); (0, bytes of `first`, None) if nothing fits.

    Doubles until a value does not fit, then alternates between linear interpolation and bisection,
    because bytes grow almost linearly."""
    at = cache(bytes_at)
    if at(first) > budget:
        return 0, at(first), None
    below = above = first
    while at(above) <= budget:
        below = above
        if above >= most:
            return below, at(below), None
        above = min(2 * above, most)
    straight = True
    while above - below > 1:
        share = (budget - at(below)) / (at(above) - at(below)) if straight else 0.5
        middle = min(max(below + round(share * (above - below)), below + 1), above - 1)
        straight = not straight
        below, above = (middle, above) if at(middle) <= budget else (below, middle)
    return below, at(below), at(above)


@dataclass(frozen=True)
class Case:
    """A run at the size of one data set's images."""

    dataset: str
    """As bench/published.csv has it."""
    side_px: int
    done: str
    """Variant of a method whose released code has quirks: `corrected` or `as
    released`; `corrected` alone where both take the same; empty for rows of GLNet's paper."""
    run: Run

    @property
    def key(self) -> str:
        """Unique among all cases."""
        return " ".join(filter(None, (self.dataset, self.run.name, self.done)))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.side_px, self.side_px


def predict_case(case: Case) -> dict[str, Any]:
    """A row of the records of published settings: peak memory of a case on a CUDA device."""
    begun = time.perf_counter()
    predicted = predict_run(case.run, case.size, "cuda")
    return {
        **predicted.figures(),
        "method": case.run.model.config.method,
        "strategy": case.run.config.strategy,
        "published": case.run.config.published,
        "seconds": time.perf_counter() - begun,
    }
