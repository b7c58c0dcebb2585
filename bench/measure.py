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
    from bench.meters import all_meters
    from bench.trained import device_facts, open_run, out_of_memory, set_up

    outcome: dict[str, Any] = {"status": "ok", "reason": None}
    try:
        device = set_up(suite.compute)
        outcome["device"] = device_facts(device, suite.compute)
        outcome["values"] = all_meters(open_run(suite, name), device)
    except Refusal as error:
        outcome |= {"status": "failed", "reason": str(error)}
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        outcome |= {"status": "oom" if out_of_memory(error) else "failed", "reason": reason}
    pipe.send(outcome)


def work(arguments: argparse.Namespace) -> None:
    """Measure memory and latency of one run of params.yaml."""
    from bench.errors import Refusal

    suite = read_suite()
    result = measure(suite, arguments.run)
    path = record.path_of(suite.suite, "measure", arguments.run, suite.machine)
    record.write(path, result)
    if result.status == "failed":
        raise Refusal(f"Measuring {arguments.run} failed, {path} says so too: {result.reason}")
    print(path)


if __name__ == "__main__":
    stage.main(work, run="a key of the table runs")
