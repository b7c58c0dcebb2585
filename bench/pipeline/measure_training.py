"""Stage `steps`: memory of one optimiser step of every phase of every model, predicted on fake
tensors and booked by the device's own allocator.

What training costs, and how far `predict_training` is to be trusted with it."""

import argparse
from collections.abc import Mapping
from typing import Any

import torch

from bench import cli, record
from bench.config import ModelConfig, Suite, read_suite
from bench.memory import DEFINITIONS, tensors_of
from bench.memory.cpu_allocator import account
from bench.memory.meters import expected_allocated_bytes
from bench.memory.prediction import STEPS, begin, predict_training, step, views_of
from bench.memory.tracker import bytes_of
from bench.method import Method, Phase, load, spec_of
from bench.run import device_facts, set_up
from data.dataset import open_dataset

MOST_IMAGES = 2
"""Images a step, where the suite's own batch is not smaller: more only take more time."""
DEFINITION = (
    "peak of an optimiser step, the second of its phase: weights, views, activations, gradients "
    "and the optimiser's state; booked by torch's CPU allocator or torch.cuda.max_memory_allocated"
)


def weigh_steps(suite: Suite, name: str, device: torch.device) -> dict[str, dict[str, Any]]:
    """Predicted and booked bytes of a step of each phase of the model `name`, by phase; for images
    of the size of the first one of `train`."""
    model = suite.models[name]
    spec = spec_of(name, model)
    method = load(model.method)
    dataset = open_dataset(model.dataset)
    image, _ = dataset.read(dataset.ids("train")[0])
    size = (image.shape[-2], image.shape[-1])
    classes = len(dataset.classes)
    phases = model.training.phases
    batch = {phase: min(MOST_IMAGES, schedule.batch) for phase, schedule in phases.items()}
    decay = model.training.weight_decay
    kind = model.training.optimiser
    predicted = predict_training(
        method,
        spec,
        classes,
        size,
        batch,
        device.type,
        decay,
        optimiser=kind,
        tf32=device.type == "cuda",
    )
    network = method.build(spec, classes).to(device).to(memory_format=torch.channels_last)
    found = {}
    for phase in method.phases(network, spec):
        # torch's autograd works in a thread of its own.
        told = expected_allocated_bytes(predicted[phase.name], device, threads=2)
        found[phase.name] = {
            "height_px": size[0],
            "width_px": size[1],
            "batch": batch[phase.name],
            "predicted_bytes": told,
            "booked_bytes": _booked(method, network, phase, spec, size, model, device),
            "by_category": dict(predicted[phase.name].by_category),
            "at": predicted[phase.name].at,
            "module": predicted[phase.name].module,
        }
    return found


def _booked(
    method: Method,
    network: torch.nn.Module,
    phase: Phase,
    spec: Any,
    size: tuple[int, int],
    model: ModelConfig,
    device: torch.device,
) -> int:
    """What the device's allocator says of steps that are really made, and then forgotten."""
    batch = min(MOST_IMAGES, model.training.phases[phase.name].batch)
    views = [
        {key: value.to(device) for key, value in one.items()}
        for one in views_of(method, spec, phase, size, batch)
    ]
    decay, kind = model.training.weight_decay, model.training.optimiser
    optimiser = begin(network, phase, decay, optimiser=kind)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(STEPS):
            step(method, network, views, spec, phase, optimiser)
        return int(torch.cuda.max_memory_allocated(device))
    there = bytes_of([*tensors_of(network), *(value for one in views for value in one.values())])
    with account() as booked:
        for _ in range(STEPS):
            step(method, network, views, spec, phase, optimiser)
    return there + booked.peak_bytes


def _warm_up(device: torch.device) -> None:
    """Libraries have taken what they keep before anything is booked."""
    some = torch.zeros(8, 8, device=device, requires_grad=True)
    (some @ some).sum().backward()  # type: ignore[no-untyped-call]


def work(arguments: argparse.Namespace) -> None:
    """Weigh a training step of every model of params.yaml, and predict it."""
    suite = read_suite()
    device = set_up(suite.compute)
    _warm_up(device)
    found: dict[str, Mapping[str, Any]] = {}
    bar = cli.progress(len(suite.models), "weigh training steps", "model")
    for name in suite.models:
        found[name] = weigh_steps(suite, name, device)
        bar.update()
    bar.close()
    path = record.path_of(suite.suite, "steps", suite.machine)
    record.write(
        path,
        record.Record(
            stage="steps",
            name=suite.suite,
            settings={"models": {name: model.settings() for name, model in suite.models.items()}},
            values={
                "device": device.type,
                "definition": DEFINITION,
                "predicted_definition": DEFINITIONS["predicted"],
                "models": found,
            },
            provenance=record.provenance(**device_facts(device, suite.compute)),
        ),
    )
    print(path)


if __name__ == "__main__":
    cli.main(work)
