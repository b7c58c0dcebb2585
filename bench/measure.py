"""Stage `measure`: one line of the table `runs` -> peak memory by every meter that the machine has,
and latency.

The measurement happens in a process of its own, so that nothing earlier is in it and a kill by the
kernel is a result."""

import argparse
import multiprocessing
import os
import signal
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from bench import record, stage
from bench.config import Suite, pick, read_suite

REPETITIONS = 5
ENOUGH_S = 5.0
"""No further repetition of the latency once this much time is spent."""

LATENCY = (
    "seconds of one prediction after one that warms up: image in host memory to labels in host "
    "memory, with normalisation, resizing, tiling, copies and arg max, without decoding"
)


def measure(suite: Suite, name: str) -> record.Record:
    """Measure one image (the first of `test`) in a fresh process; running out of memory is a
    result."""
    run = pick(suite.runs, name, "run")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(there, suite, name))
    process.start()
    there.close()
    try:
        outcome: dict[str, Any] = here.recv()
    except EOFError:
        outcome = {}
    process.join()
    if not outcome:
        killed = process.exitcode == -signal.SIGKILL
        outcome = {
            "status": "oom" if killed else "failed",
            "reason": (
                "killed by the system, most likely for memory"
                if killed
                else f"the process ended with exit code {process.exitcode}"
            ),
        }
    return record.Record(
        stage="measure",
        name=name,
        settings={"run": asdict(run), "model": asdict(suite.models[run.model])},
        status=outcome["status"],
        reason=outcome["reason"],
        values=outcome.get("values", {}),
        provenance=record.provenance(machine=suite.machine, **outcome.get("device", {})),
    )


def _in_child(pipe: Connection, suite: Suite, name: str) -> None:
    """Everything that needs torch; sends {status, reason, values, device}."""
    # NVML counts cards by bus; CUDA shall do the same.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")

    from bench.errors import Refusal
    from bench.trained import device_facts, open_run, out_of_memory, set_up

    outcome: dict[str, Any] = {"status": "ok", "reason": None}
    try:
        device = set_up(suite.compute)
        outcome["device"] = device_facts(device, suite.compute)
        outcome["values"] = _meters(open_run(suite, name), device)
    except Refusal as error:
        outcome |= {"status": "failed", "reason": str(error)}
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        outcome |= {"status": "oom" if out_of_memory(error) else "failed", "reason": reason}
    pipe.send(outcome)


def _meters(line: Any, device: Any) -> dict[str, Any]:
    import torch

    from bench.memory import (
        DEFINITIONS,
        Booking,
        CardSampler,
        PeakResident,
        clock,
        predict_memory,
        tensors_of,
    )

    scene = line.dataset.ids("test")[0]
    size = tuple(line.dataset.read(scene)[1].shape)
    meters: dict[str, dict[str, Any]] = {}

    def first_prediction() -> tuple[Any, Any]:
        """From nothing to labels: what a user pays for the first image."""
        network = line.network(device)
        image, _ = line.dataset.read(scene)
        line.predict(network, image)
        return network, image

    if device.type == "cuda":
        with CardSampler() as card:
            _warm_up(device)
            card.mark_idle()
            with PeakResident() as resident:
                network, image = first_prediction()
                torch.cuda.synchronize(device)
        meters["allocated"] = {"bytes": torch.cuda.max_memory_allocated(device)}
        meters["reserved"] = {"bytes": torch.cuda.max_memory_reserved(device)}
        meters["nvml"] = {
            "bytes": card.peak_bytes,
            "idle_bytes": card.idle_bytes,
            "how": card.how,
            "interval_s": card.interval_s,
            "samples": card.samples,
            "card": card.card,
        }
    else:
        _warm_up(device)
        with PeakResident() as resident:
            network, image = first_prediction()
        with Booking([*tensors_of(network), image]) as booking:
            line.predict(network, image)
        meters["allocated"] = {"bytes": booking.peak["cpu"], "at": booking.at["cpu"]}
    meters["rss"] = {
        "bytes": resident.peak_bytes - resident.base_bytes,
        "base_bytes": resident.base_bytes,
        "how": resident.how,
    }

    latency_s: list[float] = []
    line.predict(network, image)
    while len(latency_s) < REPETITIONS and sum(latency_s) < ENOUGH_S:
        with clock(device) as took:
            line.predict(network, image)
        latency_s += took

    classes = len(line.dataset.classes)
    predicted = predict_memory(line.method, line.strategy, line.spec, classes, size, device.type)
    meters["predicted"] = {
        "bytes": predicted.device_bytes,
        "host_bytes": predicted.host_bytes,
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


def _warm_up(device: Any) -> None:
    """Libraries, threads and the CUDA context are there before anything is measured."""
    import torch

    torch.zeros(8, 8, device=device) @ torch.zeros(8, 8, device=device)


def work(arguments: argparse.Namespace) -> None:
    """Measure memory and latency of one run of params.yaml."""
    from bench.errors import Refusal

    suite = read_suite()
    result = measure(suite, arguments.run)
    path = record.path_of("measure", arguments.run, suite.machine)
    record.write(path, result)
    if result.status == "failed":
        raise Refusal(f"Measuring {arguments.run} failed, {path} says so too: {result.reason}")
    print(path)


if __name__ == "__main__":
    stage.main(work, run="a key of the table runs")
