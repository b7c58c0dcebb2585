"""Stage `steps`: memory of one optimiser step of every phase of every model, predicted on fake
tensors and measured by the device's allocator.

The record shows the memory of training, and how accurate `predict_steps` is."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench import cli, record
from bench.config import Suite, read_suite
from bench.errors import UserError
from bench.memory.meters import DEFINITIONS, allocated_bytes_of, predicted_step
from bench.memory.runs import LEARNING_RATE, STEPS, predict_steps, views_of
from bench.method import Phase, View
from bench.run import (
    Model,
    device_facts,
    open_evaluated,
    open_model,
    require_prepared,
    set_up,
)
from bench.training_step import enter_phase, training_step

MOST_IMAGES = 2
"""Upper limit for the images of a step; more images only take more time."""
DEFINITION = (
    "peak of an optimiser step, the second of its phase: weights, views, activations, gradients "
    "and the optimiser's state; allocated by torch's CPU allocator or torch.cuda.max_memory_allocated"
)


def measure_steps(
    model: Model, device: torch.device, blas_threads: int
) -> dict[str, dict[str, Any]]:
    """Predicted and measured bytes of a step of each phase of a model, for images of the size of
    the first one of `train`.

    Args:
        blas_threads: threads that multiplied matrices in steps of earlier models of the process.
    """
    image, _ = model.dataset.read(model.dataset.ids("train")[0])
    size = (image.shape[-2], image.shape[-1])
    phases = model.config.training.phases
    batch = {phase: min(MOST_IMAGES, schedule.batch) for phase, schedule in phases.items()}
    traced = predict_steps(model, size, batch, device.type)
    network = model.build().to(device).to(memory_format=torch.channels_last)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    found = {}
    for phase in model.method.phases(network, model.spec):
        views = [
            {key: value.to(device) for key, value in one.items()}
            for one in views_of(model, phase, size, batch[phase.name])
        ]
        predicted = predicted_step(traced[phase.name], gpu, blas_threads)
        blas_threads = predicted["blas_threads"]
        found[phase.name] = {
            "height_px": size[0],
            "width_px": size[1],
            "batch": batch[phase.name],
            **predicted,
            "allocated_bytes": _allocated_bytes(model, network, phase, views),
        }
    return found


def predict_again(suite: Suite) -> Path:
    """Predict again, by the present rules, what the record compares with its measurements, which
    stay.

    Raises:
        UserError: there is no such record, or it was made with other settings.
    """
    path = record.path_of(suite.suite, "steps", suite.machine)
    made = record.read(path)
    models: dict[str, Any] = {}
    threads = 0
    # In the suite's order, in which one process measured them.
    for name in sorted(made.values["models"], key=list(suite.models).index):
        phases = made.values["models"][name]
        run = next(key for key, run in suite.runs.items() if run.model == name)
        classes = open_evaluated(suite, run).model.classes
        model = replace(open_model(suite, name), given_classes=classes)
        earlier = replace(made, settings={"model": made.settings["models"][name]})
        if differing := record.made_otherwise(earlier, model.config):
            raise UserError(
                f"{path} was measured with other settings ({differing}): measure it again."
            )
        batch = {phase: one["batch"] for phase, one in phases.items()}
        size = next((one["height_px"], one["width_px"]) for one in phases.values())
        traced = predict_steps(model, size, batch, made.values["device"])
        gpu = made.provenance.get("device_name", "")
        models[name] = {}
        for phase, found in traced.items():
            predicted = predicted_step(found, gpu, threads)
            threads = predicted["blas_threads"]
            models[name][phase] = {**phases[phase], **predicted}
    values = {**made.values, "models": models, "predicted_provenance": record.provenance()}
    record.write(path, replace(made, values=values))
    return path


def _allocated_bytes(
    model: Model, network: torch.nn.Module, phase: Phase, views: list[View]
) -> int:
    """Peak bytes of real steps that the device's allocator reports."""
    training = enter_phase(model.method, model.spec, network, phase, model.config.training)
    phase.begin()

    def steps() -> None:
        for _ in range(STEPS):
            training_step(training, views, LEARNING_RATE)

    seen = (value for one in views for value in one.values())
    there = [*network.parameters(), *network.buffers(), *seen]
    return allocated_bytes_of(steps, there)


def work(arguments: argparse.Namespace) -> None:
    """Measure and predict the memory of a training step of every model of params.yaml."""
    suite = read_suite()
    if arguments.predicted:
        print(predict_again(suite))
        return
    for name in suite.models:
        require_prepared(suite, name)
    device = set_up(suite.compute)
    found: dict[str, Any] = {}
    threads = 0
    for name in cli.with_progress(
        suite.models, len(suite.models), "measure training steps", "model"
    ):
        found[name] = measure_steps(open_model(suite, name), device, threads)
        threads = max(phase["blas_threads"] for phase in found[name].values())
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


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--predicted",
        action="store_true",
        help="predict again what the record compares with its measurements, which stay",
    )


if __name__ == "__main__":
    cli.main(work, _arguments)
