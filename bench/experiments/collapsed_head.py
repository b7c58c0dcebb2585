"""Compares GLNet's plain and collapsed heads in time, memory and labels, at the paper's settings.

Each repetition runs in a fresh process and the two paths alternate, so that other load on the
machine affects both alike. Because it takes minutes, it is not a stage of the pipeline: run it when
one of the paths has changed, and commit the record `results/fast/MACHINE.json`, which the report
reads."""

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench import cli, record
from bench.config import ModelConfig, RunConfig, Suite, Training, read_suite
from bench.errors import UserError
from bench.experiments.noise import noise
from bench.latency import NetworkClock
from bench.memory import PeakResident, predict_run
from bench.parallel import Report, run_isolated
from bench.run import Run, clock, device_facts, resolve, set_up, wait

STRATEGY = "collaborative"
PATHS = ("plain", "collapsed")
CLASSES = 7
SIDE_PX = 2448
SEED = 0
SETTINGS: Mapping[str, Any] = {"sub_batch": 1}
"""Fields of `glnet.spec.Spec`; all others are the paper's."""
LIMIT_S = 1800.0
PRELOAD = ("bench.latency", "bench.memory.prediction", "segmentation_models_pytorch")
DEFINITION = (
    "one image of noise at several scales, random weights, patches one at a time; wall_s: seconds "
    "of a prediction, image in host memory to labels in host memory, the first of its process "
    "after a small one; network_s: of them, the seconds within calls of the network's branches; "
    "processor_s: seconds of all its threads, which others on the machine do not lengthen; "
    "peak_rss_bytes: the most that the process ever held, libraries and weights included"
)


def compare(suite: Suite, side_px: int, rounds: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Run both paths on a square image, `rounds` times in turn: repetitions by path, and predicted
    memory on a CUDA device.

    Raises:
        UserError: a prediction failed, out of memory included.
    """
    found: dict[str, dict[str, Any]] = {path: {"repetitions": []} for path in PATHS}
    labels: dict[str, NDArray[np.uint8]] = {}
    turns = rounds * PATHS
    for path in cli.with_progress(turns, len(turns), f"{side_px} px", "prediction"):
        outcome = run_isolated(
            _predict, suite, path, side_px, settings, limit_s=LIMIT_S, preload=PRELOAD
        )
        if outcome.status != "ok":
            raise UserError(f"The {path} path at {side_px} px: {outcome.reason}.")
        labels[path] = outcome.reported.pop("labels")
        found[path]["repetitions"].append(outcome.reported)
    for path in PATHS:
        predicted = predict_run(_run(path, settings), (side_px, side_px), "cuda")
        found[path] |= {
            "labels_equal_share": float((labels["plain"] == labels[path]).mean()),
            "labels_px": np.bincount(labels[path].ravel(), minlength=CLASSES).tolist(),
            "predicted": {
                "flops": predicted.flops,
                "device_bytes": predicted.device_bytes,
                "weights_bytes": predicted.weights_bytes,
            },
        }
    return found


def _predict(
    report: Report, suite: Suite, path: str, side_px: int, settings: Mapping[str, Any]
) -> None:
    """In a fresh process: one prediction."""
    device, run = set_up(suite.compute), _run(path, settings)
    with PeakResident() as resident:
        torch.manual_seed(SEED)
        network = run.build().to(device)
        inside = NetworkClock()
        run.predict(network, noise(min(side_px, 256), SEED))
        image = noise(side_px, SEED)
        wait(device)
        worked = time.process_time()
        with inside.watching(network, device), clock(device) as took:
            labels = run.predict(network, image)
        worked = time.process_time() - worked
    report(
        {
            "wall_s": took[0],
            "network_s": inside.seconds,
            "processor_s": worked,
            "peak_rss_bytes": resident.peak_bytes,
            "base_rss_bytes": resident.base_bytes,
            "labels": labels.numpy(),
            "device": device_facts(device, suite.compute),
        }
    )


def _run(path: str, settings: Mapping[str, Any]) -> Run:
    model = ModelConfig("", "glnet", "", {**settings, "head": path}, Training(phases={}))
    return resolve(path, RunConfig(path, STRATEGY), model, classes=CLASSES)


def work(arguments: argparse.Namespace) -> None:
    """Compare the plain and the collapsed path of GLNet: time, memory and labels."""
    suite = read_suite()
    path = record.RESULTS / "fast" / f"{suite.machine}.json"
    settings = {
        "strategy": STRATEGY,
        "classes": CLASSES,
        "compute": asdict(suite.compute),
        "spec": dict(SETTINGS),
    }
    record.other_parts(path, settings, [str(side) for side in arguments.side], "sides")
    sides = {str(side): compare(suite, side, arguments.rounds, SETTINGS) for side in arguments.side}
    device = next(iter(sides.values()))["plain"]["repetitions"][0]["device"]
    record.write(
        path,
        record.Record(
            stage="fast",
            name=suite.machine,
            settings=settings,
            values={"definition": DEFINITION, "sides": sides},
            provenance=record.provenance(machine=suite.machine, seed=SEED, **device),
        ),
        parts="sides",
    )
    print(path)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--side",
        type=cli.positive_int,
        nargs="+",
        default=[SIDE_PX],
        metavar="PX",
        help="of square images",
    )
    parser.add_argument(
        "--rounds", type=cli.positive_int, default=3, help="repetitions of each path"
    )


if __name__ == "__main__":
    cli.main(work, _arguments)
