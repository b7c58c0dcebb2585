"""Times an optimiser step of each phase and a prediction, without data or trained weights.

Runs the training step of `bench.pipeline.train` on black images of one size, without reading data,
and predicts one. It reports wall and processor seconds: on a shared machine only the processor
seconds of one thread are comparable between two versions of the code.

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

import torch

from bench import cli
from bench.config import RunConfig, read_suite
from bench.memory.runs import LEARNING_RATE, views_of
from bench.run import open_model, resolve
from bench.training_step import enter_phase, training_step

SEED = 0


def work(arguments: argparse.Namespace) -> None:
    """Time optimiser steps, and predictions, of a model on the CPU; prints lines of JSON."""
    suite = read_suite(arguments.suite)
    model = replace(open_model(suite, arguments.model), given_classes=arguments.classes)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    network = model.build().to(memory_format=torch.channels_last)
    size = (arguments.side, arguments.side)
    for phase in model.method.phases(network, model.spec):
        if arguments.phases and phase.name not in arguments.phases:
            continue
        views = views_of(model, phase, size, 1)
        training = enter_phase(model.method, model.spec, network, phase, model.config.training)
        phase.begin()
        step = partial(training_step, training, views, LEARNING_RATE)
        _report(arguments, phase.name, step)
    if arguments.strategy:
        by = RunConfig(arguments.model, arguments.strategy)
        run = resolve(arguments.model, by, model.config, classes=arguments.classes)
        image = torch.zeros(3, *size, dtype=torch.uint8)
        _report(arguments, arguments.strategy, partial(run.predict, run.build(), image))


def _report(arguments: argparse.Namespace, part: str, work: Callable[[], object]) -> None:
    """Print the times of a phase's step or a strategy's prediction."""
    wall_s, processor_s = [], []
    for _ in range(arguments.rounds):
        begun, worked = time.perf_counter(), time.process_time()
        work()
        wall_s.append(time.perf_counter() - begun)
        processor_s.append(time.process_time() - worked)
    found = {
        "model": arguments.model,
        "part": part,
        "side_px": arguments.side,
        "threads": arguments.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "per_s": 1 / statistics.median(wall_s),
        "wall_s": wall_s,
        "processor_s": processor_s,
    }
    print(json.dumps(found), flush=True)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a key of the table models")
    parser.add_argument("--suite", type=Path, default=Path("suites/deepglobe.yaml"))
    parser.add_argument(
        "--side", type=cli.positive_int, default=2448, metavar="PX", help="of the images"
    )
    parser.add_argument("--classes", type=cli.positive_int, default=7)
    parser.add_argument("--threads", type=cli.positive_int, default=2)
    parser.add_argument("--rounds", type=cli.positive_int, default=3, help="steps of each phase")
    parser.add_argument("--phases", nargs="*", help="these alone")
    parser.add_argument("--strategy", help="of a prediction that is timed too")


if __name__ == "__main__":
    cli.main(work, _arguments)
