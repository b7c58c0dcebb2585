"""Peak memory of predicting one image, and of one training step, computed on fake tensors."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.memory.cuda_allocator import play
from bench.memory.replay import replaying
from bench.memory.rules_cpu import CPU
from bench.memory.rules_cuda import CUDA, TF32
from bench.memory.tracker import Category, Event, Rules, Tracker, bytes_of, tensors_of
from bench.method import Phase, View, network_for
from bench.run import Model, Run
from bench.training_step import PhaseTraining, enter_phase, training_step

RULES: Mapping[str, Rules] = {"cpu": CPU, "cuda": CUDA}
PREDICTED = (
    "as allocated, worked out on fake tensors without weights, data or a device: bytes of all "
    "tensors alive at the peak on the device that the network is on, and by rule what "
    "operators take inside themselves"
)
"""The definition that records keep beside the number."""
MOMENTS = 120
"""Maximum number of moments in a recorded timeline; enough for a figure."""
LEARNING_RATE = 1e-6
STEPS = 2
"""Steps traced per phase: the first one creates the optimiser's state, the second one has it."""


@dataclass(frozen=True)
class Prediction:
    """Predicted memory and operations of one image, or one training step, on a device."""

    device_bytes: int
    host_bytes: int
    """On the host: the image, label and score maps, stored maps. On the CPU the same as
    `device_bytes`."""
    weights_bytes: int
    at: str
    """The operator at the peak on the device."""
    module: str
    """The module at the peak on the device; empty outside all modules."""
    by_category: Mapping[str, int]
    """Bytes of each category at the peak on the device."""
    reserved_bytes: int | None
    """Segments of CUDA's caching allocator; None on the CPU, whose allocator does not cache."""
    allocated_bytes: int | None
    """As torch.cuda.max_memory_allocated reports; None on the CPU."""
    tf32_reserved_bytes: int | None
    """As `reserved_bytes`, on a GPU with TF32, whose convolutions copy into NHWC
    (`rules_cuda.TF32`)."""
    tf32_allocated_bytes: int | None
    """As `allocated_bytes`, on such a GPU."""
    parameters: int
    flops: int
    """Of convolutions and matrix products, a multiplication and an addition counting as two."""


class Trace(NamedTuple):
    """A prediction, and every block that is allocated or freed on the way, in order."""

    prediction: Prediction
    events: list[Event]
    """Of the device that is predicted."""
    categories: list[Category]
    """Of each event's block."""


@dataclass(frozen=True)
class Case:
    """A run at the size of one data set's images."""

    dataset: str
    """As bench/published.csv has it."""
    side_px: int
    done: str
    """Variant of a method whose released code has quirks: `as meant` (corrected) or
    `as released`; `ours` where there is one variant; empty for rows of GLNet's paper."""
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
    predicted = predict_memory(case.run, case.size, "cuda")
    return {
        **asdict(predicted),
        "method": case.run.model.config.method,
        "strategy": case.run.config.strategy,
        "published": case.run.config.published,
        "seconds": time.perf_counter() - begun,
    }


def predict_memory(run: Run, size: tuple[int, int], device: str) -> Prediction:
    """Peak memory of one prediction, on fake tensors.

    Args:
        size: (H, W) of the image in pixels.
        device: `cpu` or `cuda`; no GPU needs to be present.
    """
    return trace_memory(run, size, device).prediction


def trace_memory(run: Run, size: tuple[int, int], device: str) -> Trace:
    """Same as `predict_memory`, with the timeline."""
    with torch.device("meta"):
        network = network_for(run.method, run.strategy, run.spec, run.model.classes)
        parameters = sum(p.numel() for p in network.parameters())
        network = run.strategy.prepare(network, run.spec)
    with FakeTensorMode(), torch.inference_mode():
        _refill(network, device)
        image = torch.empty(3, *size, dtype=torch.uint8, device="cpu")
        tracker = Tracker(tensors_of(network), network, RULES, variant=TF32)
        tracker.add([image], "inputs")
        with tracker, replaying(network, tracker):
            run.strategy.predict(network, image, run.spec)
    found = _prediction(tracker, network, device)
    return Trace(replace(found, parameters=parameters), *tracker.timeline(device))


def trace_training(
    model: Model, size: tuple[int, int], batch: Mapping[str, int], device: str
) -> dict[str, Trace]:
    """Peak memory of an optimiser step of each phase, on fake tensors, by the phase's name.

    The step is `bench.training_step.training_step` in float32 with weights in NHWC; the second
    step of a phase, which has the optimiser's state from its start.

    A CUDA step is traced on fake CPU tensors that count as CUDA's, with CUDA's rules, because
    torch's autograd engine requires a GPU for CUDA tensors. Assumed: the operators that torch
    selects by device save the same tensors for the backward pass.

    Args:
        size: (H, W) of each training image in pixels.
        batch: images a step, by phase.
        device: `cpu` or `cuda`; no GPU needs to be present.
    """
    method, spec = model.method, model.spec
    with torch.device("meta"):
        network = model.build().to(memory_format=torch.channels_last)
    phases = method.phases(network, spec)
    seen = [views_of(model, phase, size, batch[phase.name]) for phase in phases]
    found = {}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _refill(network, "cpu")
        for phase, real in zip(phases, seen, strict=True):
            views = [
                {
                    name: value if name in READ else mode.from_tensor(value)
                    for name, value in view.items()
                }
                for view in real
            ]
            tracker = Tracker(tensors_of(network), network, RULES, {"cpu": device}, TF32)
            tracker.add((value for view in views for value in view.values()), "inputs")
            training = _observed(
                enter_phase(method, spec, network, phase, model.config.training), tracker, device
            )
            phase.begin()
            with tracker:
                for _ in range(STEPS):
                    training_step(training, views, LEARNING_RATE)
            prediction = _prediction(tracker, network, device)
            if device != "cpu":  # the host holds the views that were copied from it
                on_host = bytes_of(value for view in real for value in view.values())
                prediction = replace(prediction, host_bytes=on_host)
            found[phase.name] = Trace(prediction, *tracker.timeline(device))
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


def _observed(training: PhaseTraining, tracker: Tracker, device: str) -> PhaseTraining:
    """The same step; while it runs, it sets the category of new tensors in the tracker."""

    def backward(loss: Tensor) -> None:
        tracker.category = "gradients"
        loss.backward()  # type: ignore[no-untyped-call]
        tracker.category = "activations"

    def before(*_: Any) -> None:
        tracker.category = "temporaries"

    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        kept = (value for state in optimizer.state.values() for value in state.values())
        tracker.add((value for value in kept if isinstance(value, Tensor)), "optimiser state")
        tracker.category = "activations"

    if training.optimizer:
        # torch's default depends on the tensors' device; here they represent another device.
        for group in training.optimizer.param_groups:
            group["foreach"] = device == "cuda"
            group["fused"] = group["fused"] and device == "cpu"
        training.optimizer.register_step_pre_hook(before)
        training.optimizer.register_step_post_hook(after)
    return replace(training, backward=backward)


def timeline(
    events: Sequence[Event], categories: Sequence[Category], moments: int = MOMENTS
) -> dict[str, Any]:
    """Live bytes by category at up to `moments` events: the largest of each of that many equal
    intervals, so that the peak is included.

    Args:
        events: in order, on one device.
        categories: of each event's block (`Trace`).

    Returns:
        `events`: indices of the chosen events; `bytes`: by category, one number per chosen event.
    """
    if not events:
        return {"events": [], "bytes": {}}
    names = list(dict.fromkeys(categories))
    changes = np.zeros((len(events), len(names)), np.int64)
    for number, (event, category) in enumerate(zip(events, categories, strict=True)):
        changes[number, names.index(category)] = event.bytes
    alive = changes.cumsum(0)  # (events, categories)
    total = alive.sum(1)
    stretches = np.array_split(np.arange(len(events)), min(moments, len(events)))
    chosen = [int(stretch[total[stretch].argmax()]) for stretch in stretches]
    return {
        "events": chosen,
        "bytes": {name: alive[chosen, place].tolist() for place, name in enumerate(names)},
    }


def _prediction(tracker: Tracker, network: nn.Module, device: str) -> Prediction:
    peak = tracker.peak_of(device)
    held = play(tracker.events, device) if device == "cuda" else None
    copied = play(tracker.events, device, variant=TF32) if device == "cuda" else None
    return Prediction(
        device_bytes=peak.bytes,
        host_bytes=tracker.peak["cpu"],
        weights_bytes=bytes_of(tensors_of(network)),
        at=peak.operator,
        module=peak.module,
        by_category=peak.by_category,
        reserved_bytes=held.reserved_bytes if held else None,
        allocated_bytes=held.allocated_bytes if held else None,
        tf32_reserved_bytes=copied.reserved_bytes if copied else None,
        tf32_allocated_bytes=copied.allocated_bytes if copied else None,
        parameters=sum(p.numel() for p in network.parameters()),
        flops=tracker.flops,
    )


def _refill(network: nn.Module, device: str) -> None:
    """Give a network empty tensors on `device`; unlike Module.to, this works under fake tensors."""
    for module in network.modules():
        for name, old in [*module._parameters.items(), *module._buffers.items()]:
            if old is None:
                continue
            new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=device)
            if name in module._parameters:
                module._parameters[name] = torch.nn.Parameter(new, requires_grad=False)
            else:
                module._buffers[name] = new
