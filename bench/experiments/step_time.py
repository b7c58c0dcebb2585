"""Times an optimiser step of each phase and a prediction, without data or trained weights.

Runs the training step of `bench.pipeline.train` on black images of one size, without reading data,
and predicts one. It reports wall and processor seconds: on a shared machine only the processor
seconds of one thread are comparable between two versions of the code. With `--hours` the steps have
the suite's batches, and the last line says how long all trainings of these models take at this speed.

`results/isa/MACHINE.jsonl` has its lines for some models, native and with `compute.isa: avx2` in
turn: what docs/devices.md says of the cost."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import cli
from bench.config import Compute, RunConfig, pick, read_suite
from bench.memory.runs import LEARNING_RATE, views_of
from bench.run import Model, clock, open_model, resolve, set_up
from bench.training_step import enter_phase, training_step

SEED = 0


def work(arguments: argparse.Namespace) -> None:
    """Time optimiser steps, and predictions, of models; prints lines of JSON."""
    suite = read_suite(arguments.suite)
    device = set_up(Compute(device=arguments.device, threads=arguments.threads))
    hours = 0.0
    for name in arguments.model or suite.models:
        pick(suite.models, name, "model")
        model = replace(open_model(suite, name), given_classes=arguments.classes)
        for phase, step_s in _time_steps(arguments, model, device).items():
            steps = model.config.training.phases[phase].steps * len(model.config.trainings)
            hours += steps * step_s / 3600
        if arguments.strategy:
            by = RunConfig(name, arguments.strategy)
            run = resolve(name, by, model.config, classes=arguments.classes)
            image = torch.zeros(3, arguments.side, arguments.side, dtype=torch.uint8)
            predict = partial(run.predict, run.build().to(device), image)
            _time(arguments, name, arguments.strategy, predict, device)
    if arguments.hours:
        print(json.dumps({"part": "all steps", "hours": hours}))


def _time_steps(
    arguments: argparse.Namespace, model: Model, device: torch.device
) -> dict[str, float]:
    """Seconds of a step by phase."""
    torch.manual_seed(SEED)
    network = model.build().to(device).to(memory_format=torch.channels_last)
    size = (arguments.side, arguments.side)
    found = {}
    for phase in model.method.phases(network, model.spec):
        if arguments.phases and phase.name not in arguments.phases:
            continue
        batch = model.config.training.phases[phase.name].batch if arguments.hours else 1
        views = [
            {key: value.to(device) for key, value in view.items()}
            for view in views_of(model, phase, size, batch)
        ]
        training = enter_phase(model.method, model.spec, network, phase, model.config.training)
        phase.begin()
        step = partial(training_step, training, views, LEARNING_RATE)
        found[phase.name] = _time(arguments, model.name, phase.name, step, device, batch)
    return found


def _time(
    arguments: argparse.Namespace,
    model: str,
    part: str,
    work: Callable[[], Any],
    device: torch.device,
    images: int = 1,
) -> float:
    """Print the times of a phase's step or a strategy's prediction; returns the median in seconds."""
    if device.type == "cuda":
        work()  # cuDNN chooses its kernels
    wall_s, processor_s = [], []
    for _ in range(arguments.rounds):
        worked = time.process_time()
        with clock(device) as took:
            work()
        wall_s += took
        processor_s.append(time.process_time() - worked)
    median = statistics.median(wall_s)
    found = {
        "model": model,
        "part": part,
        "side_px": arguments.side,
        "images": images,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": arguments.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "per_s": 1 / median,
        "wall_s": wall_s,
        "processor_s": processor_s,
    }
    print(json.dumps(found), flush=True)
    return median


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="*", help="keys of the table models; default: all")
    parser.add_argument("--suite", type=Path, default=Path("suites/deepglobe.yaml"))
    parser.add_argument(
        "--side", type=cli.positive_int, default=2448, metavar="PX", help="of the images"
    )
    parser.add_argument("--classes", type=cli.positive_int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=cli.positive_int, default=2)
    parser.add_argument("--rounds", type=cli.positive_int, default=3, help="steps of each phase")
    parser.add_argument("--phases", nargs="*", help="these alone")
    parser.add_argument("--strategy", help="of a prediction that is timed too")
    parser.add_argument(
        "--hours", action="store_true", help="with the suite's batches: how long all steps take"
    )


if __name__ == "__main__":
    cli.main(work, _arguments)
