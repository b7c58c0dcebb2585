"""Peak memory of one image, and of one training step, on fake tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.memory.cuda_allocator import play
from bench.memory.replay import replaying
from bench.memory.rules_cpu import CPU
from bench.memory.rules_cuda import CUDA, TF32
from bench.memory.tracker import Booking, Rules, bytes_of, tensors_of
from bench.method import Method, Phase, Strategy, View, network_for

RULES: Mapping[str, Rules] = {"cpu": CPU, "cuda": CUDA}
STEPS = 2
"""Of a phase: the second one finds the optimiser's state, which the first one makes."""


@dataclass(frozen=True)
class Prediction:
    """What one image, or a training step, would cost on a device."""

    device_bytes: int
    host_bytes: int
    """Beside a device that is not the CPU: the image, canvases, kept maps. On the CPU the same as
    `device_bytes`."""
    weights_bytes: int
    at: str
    """The operator at the peak on the device."""
    module: str
    """The module at the peak on the device, or empty outside of all modules."""
    by_category: Mapping[str, int]
    """The peak on the device, in parts."""
    reserved_bytes: int | None
    """What CUDA's caching allocator would hold; None on the CPU, whose allocator keeps nothing."""
    allocated_bytes: int | None
    """What torch.cuda.max_memory_allocated would say; None on the CPU."""
    tf32_reserved_bytes: int | None
    """As `reserved_bytes`, on a card with TF32, whose convolutions copy into NHWC
    (`rules_cuda.TF32`); None where it was not asked for."""
    tf32_allocated_bytes: int | None
    """As `allocated_bytes`, there."""
    parameters: int
    flops: int
    """Of convolutions and matrix products, a multiplication and an addition counting as two."""


def predict_memory(
    method: Method,
    strategy: Strategy,
    spec: Any,
    classes: int,
    size: tuple[int, int],
    device: str,
    keep: Callable[[str, Booking], None] | None = None,
    tf32: bool = False,
) -> Prediction:
    """Peak memory of one prediction, on fake tensors.

    Args:
        size: (H, W) of the image in pixels.
        device: `cuda` needs no card.
        keep: is given `inference` and what was booked.
        tf32: on a CUDA device, work out as well what one with TF32 takes besides.
    """
    with torch.device("meta"):
        network = network_for(method, strategy, spec, classes)
        parameters = sum(p.numel() for p in network.parameters())
        network = strategy.prepare(network, spec)
    with FakeTensorMode(), torch.inference_mode():
        _refill(network, device)
        image = torch.empty(3, *size, dtype=torch.uint8, device="cpu")
        booking = Booking(tensors_of(network), network, RULES, apart=TF32 if tf32 else "")
        booking.add([image], "inputs")
        with booking, replaying(network, booking):
            strategy.predict(network, image, spec)
    if keep:
        keep("inference", booking)
    return replace(_prediction(booking, network, device, tf32), parameters=parameters)


def predict_training(
    method: Method,
    spec: Any,
    classes: int,
    size: tuple[int, int],
    batch: Mapping[str, int],
    device: str,
    weight_decay: float = 0.0,
    keep: Callable[[str, Booking], None] | None = None,
    optimiser: str = "adam",
    tf32: bool = False,
) -> dict[str, Prediction]:
    """Peak memory of an optimiser step of each phase, on fake tensors, by the phase's name.

    The step is that of `bench.pipeline.train`: weights in NHWC, 32-bit floats; the second of a phase,
    so that the optimiser's state is there from the start.

    A CUDA step is recorded on fake CPU tensors that are booked as CUDA's, under CUDA's rules:
    torch's autograd engine asks for a stream of the card, which is not there. Assumed is that the
    operators that torch picks by device keep the same tensors for the way back.

    Args:
        size: (H, W) of each training image in pixels.
        batch: images a step, by phase.
        device: `cuda` needs no card.
        keep: is given each phase's name and what was booked.
        optimiser: `adam` or `sgd`.
        tf32: as in `predict_memory`.
    """
    with torch.device("meta"):
        network = method.build(spec, classes).to(memory_format=torch.channels_last)
    phases = method.phases(network, spec)
    seen = [views_of(method, spec, phase, size, batch[phase.name]) for phase in phases]
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
            apart = TF32 if tf32 else ""
            booking = Booking(tensors_of(network), network, RULES, {"cpu": device}, apart)
            booking.add((value for view in views for value in view.values()), "inputs")
            foreach = device == "cuda"
            moving = begin(network, phase, weight_decay, foreach, optimiser)
            with booking:
                for _ in range(STEPS):
                    step(method, network, views, spec, phase, moving, booking)
            if keep:
                keep(phase.name, booking)
            found[phase.name] = _prediction(booking, network, device, tf32)
            if device != "cpu":  # the host holds the views that were copied from it
                seen_bytes = bytes_of(value for view in real for value in view.values())
                found[phase.name] = replace(found[phase.name], host_bytes=seen_bytes)
    return found


READ = ("size", "boxes", "chosen")
"""Values of a view that a method reads as numbers: plan, not data, and a few bytes."""


def views_of(
    method: Method, spec: Any, phase: Phase, size: tuple[int, int], count: int
) -> list[View]:
    """What training sees of `count` black images of `size` (H, W) that are all of the first
    class."""
    rng = torch.Generator().manual_seed(0)
    views = []
    for _ in range(count):
        image = torch.zeros(3, *size, dtype=torch.uint8)
        label = torch.zeros(*size, dtype=torch.uint8)
        views.append(method.view(image, label, spec, phase.name, rng))
    return views


def begin(
    network: nn.Module,
    phase: Phase,
    weight_decay: float,
    foreach: bool | None = None,
    optimiser: str = "adam",
) -> torch.optim.Optimizer | None:
    """Bring a network into a phase, as `bench.pipeline.train` does; its optimiser, if anything moves."""
    network.eval().requires_grad_(False)
    for module in phase.trains:
        module.train().requires_grad_(True)
    phase.begin()
    moving = [p for p in network.parameters() if p.requires_grad]
    if not moving:
        return None
    if optimiser == "sgd":
        return torch.optim.SGD(
            moving, lr=1e-6, momentum=0.9, weight_decay=weight_decay, foreach=foreach
        )
    return torch.optim.Adam(moving, lr=1e-6, weight_decay=weight_decay, foreach=foreach)


def step(
    method: Method,
    network: nn.Module,
    views: Sequence[View],
    spec: Any,
    phase: Phase,
    optimiser: torch.optim.Optimizer | None,
    booking: Booking | None = None,
) -> None:
    """One optimiser step, as `bench.pipeline.train` makes it; says to `booking` what is made when."""

    def back(loss: Tensor) -> None:
        if booking:
            booking.category = "gradients"
        loss.backward()  # type: ignore[no-untyped-call]
        if booking:
            booking.category = "activations"

    method.backward(network, list(views), spec, phase.name, back)
    if optimiser is None:
        return
    if booking:
        booking.category = "temporaries"
    optimiser.step()
    if booking:
        kept = (value for state in optimiser.state.values() for value in state.values())
        booking.add((value for value in kept if isinstance(value, Tensor)), "optimiser state")
        booking.category = "activations"
    optimiser.zero_grad()


def _prediction(booking: Booking, network: nn.Module, device: str, tf32: bool) -> Prediction:
    peak = booking.peak_of(device)
    held = play(booking.events, device) if device == "cuda" else None
    copied = play(booking.events, device, apart=TF32) if device == "cuda" and tf32 else None
    return Prediction(
        device_bytes=peak.bytes,
        host_bytes=booking.peak["cpu"],
        weights_bytes=bytes_of(tensors_of(network)),
        at=peak.operator,
        module=peak.module,
        by_category=peak.by_category,
        reserved_bytes=held.reserved_bytes if held else None,
        allocated_bytes=held.allocated_bytes if held else None,
        tf32_reserved_bytes=copied.reserved_bytes if copied else None,
        tf32_allocated_bytes=copied.allocated_bytes if copied else None,
        parameters=sum(p.numel() for p in network.parameters()),
        flops=booking.flops,
    )


def _refill(network: nn.Module, device: str) -> None:
    """Give a network empty tensors on `device`; unlike Module.to, this also works for fake ones."""
    for module in network.modules():
        for name, old in [*module._parameters.items(), *module._buffers.items()]:
            if old is None:
                continue
            new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=device)
            if name in module._parameters:
                module._parameters[name] = torch.nn.Parameter(new, requires_grad=False)
            else:
                module._buffers[name] = new
