"""Every meter of one run, on one image, in the process that it is called in."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.memory import (
    DEFINITIONS,
    CardSampler,
    PeakResident,
    clock,
    predict_memory,
    tensors_of,
)
from bench.memory.account import account
from bench.memory.booking import bytes_of
from bench.trained import Line

REPETITIONS = 5
ENOUGH_S = 5.0
"""No further repetition of the latency once this much time is spent."""

LATENCY = (
    "seconds of one prediction after one that warms up: image in host memory to labels in host "
    "memory, with normalisation, resizing, tiling, copies and arg max, without decoding"
)

First = Callable[[], tuple[nn.Module, Tensor]]
"""The first prediction of a run, from nothing to labels; gives back the network and the image."""
Meters = dict[str, dict[str, Any]]


def all_meters(line: Line, device: torch.device) -> dict[str, Any]:
    """Memory first, while nothing else has been done in this process; then latency; then what is
    predicted.

    Returns:
        the values of a record of the stage `measure`.
    """
    scene = line.dataset.ids("test")[0]

    def first() -> tuple[nn.Module, Tensor]:
        network = line.network(device)
        image, _ = line.dataset.read(scene)
        line.predict(network, image)
        return network, image

    meters, network, image = (
        on_card(first, device) if device.type == "cuda" else on_host(first, line)
    )
    latency_s = latency(line, network, image, device)
    size = (image.shape[-2], image.shape[-1])
    predicted = predict_memory(
        line.method, line.strategy, line.spec, len(line.dataset.classes), size, device.type
    )
    meters["predicted"] = {
        "bytes": predicted.device_bytes,
        "host_bytes": predicted.host_bytes,
        "reserved_bytes": predicted.reserved_bytes,
        "module": predicted.module,
        "by_category": predicted.by_category,
        "at": predicted.at,
    }
    return {
        "scene": scene,
        "height_px": size[0],
        "width_px": size[1],
        "device": device.type,
        "meters": {name: {**meters[name], "definition": DEFINITIONS[name]} for name in meters},
        "latency_s": latency_s,
        "latency_definition": LATENCY,
        "parameters": predicted.parameters,
    }


def on_card(first: First, device: torch.device) -> tuple[Meters, nn.Module, Tensor]:
    """What the allocator, the card and the host say of the first prediction on a CUDA device."""
    with CardSampler() as card:
        _warm_up(device)
        card.mark_idle()
        torch.cuda.reset_peak_memory_stats(device)
        with PeakResident() as resident:
            network, image = first()
            torch.cuda.synchronize(device)
    meters: Meters = {
        "allocated": {"bytes": torch.cuda.max_memory_allocated(device)},
        "reserved": {"bytes": torch.cuda.max_memory_reserved(device)},
        "nvml": {
            "bytes": card.peak_bytes,
            "idle_bytes": card.idle_bytes,
            "how": card.how,
            "interval_s": card.interval_s,
            "samples": card.samples,
            "card": card.card,
        },
        "rss": _resident(resident),
    }
    return meters, network, image


def on_host(first: First, line: Line) -> tuple[Meters, nn.Module, Tensor]:
    """Resident memory of the first prediction, then what the allocator books of a second one."""
    _warm_up(torch.device("cpu"))
    with PeakResident() as resident:
        network, image = first()
    there = bytes_of([*tensors_of(network), image])
    with account() as booked:
        line.predict(network, image)
    allocated = {"bytes": there + booked.peak_bytes, "at": "/".join(booked.operators)}
    return {"allocated": allocated, "rss": _resident(resident)}, network, image


def latency(line: Line, network: nn.Module, image: Tensor, device: torch.device) -> list[float]:
    """Seconds of each repetition; see LATENCY."""
    line.predict(network, image)
    seconds: list[float] = []
    while len(seconds) < REPETITIONS and sum(seconds) < ENOUGH_S:
        with clock(device) as took:
            line.predict(network, image)
        seconds += took
    return seconds


def _resident(resident: PeakResident) -> dict[str, Any]:
    return {
        "bytes": resident.peak_bytes - resident.base_bytes,
        "base_bytes": resident.base_bytes,
        "how": resident.how,
    }


def _warm_up(device: torch.device) -> None:
    """Libraries, threads and the CUDA context are there before anything is measured."""
    torch.zeros(8, 8, device=device) @ torch.zeros(8, 8, device=device)
