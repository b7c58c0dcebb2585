"""Times an optimiser step of each phase, without data or trained weights.

Runs the training step of `bench.pipeline.train` on black images of one size, without reading data.
It reports wall and processor seconds: on a shared machine only the processor seconds of one thread
are comparable between two versions of the code."""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from bench import cli
from bench.config import read_suite
from bench.memory.prediction import LEARNING_RATE, views_of
from bench.run import open_model
from bench.training_step import enter_phase, training_step

SEED = 0


def work(arguments: argparse.Namespace) -> None:
    """Time optimiser steps of a model on the CPU; prints one line of JSON per phase."""
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
        wall_s, processor_s = [], []
        for _ in range(arguments.rounds):
            begun, worked = time.perf_counter(), time.process_time()
            training_step(training, views, LEARNING_RATE)
            wall_s.append(time.perf_counter() - begun)
            processor_s.append(time.process_time() - worked)
        found = {
            "phase": phase.name,
            "side_px": arguments.side,
            "threads": arguments.threads,
            "steps_per_s": 1 / statistics.median(wall_s),
            "wall_s": wall_s,
            "processor_s": processor_s,
        }
        print(json.dumps(found), flush=True)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a key of the table models")
    parser.add_argument("--suite", type=Path, default=Path("suites/deepglobe.yaml"))
    parser.add_argument(
        "--side", type=cli.above_zero, default=2448, metavar="PX", help="of the images"
    )
    parser.add_argument("--classes", type=cli.above_zero, default=7)
    parser.add_argument("--threads", type=cli.above_zero, default=2)
    parser.add_argument("--rounds", type=cli.above_zero, default=3, help="steps of each phase")
    parser.add_argument("--phases", nargs="*", help="these alone")


if __name__ == "__main__":
    cli.main(work, _arguments)
