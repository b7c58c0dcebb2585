"""Stage `measure`: the table `runs` -> of each line, peak memory by every meter that the machine
has, and latency.

Memory and latency are asked for in a process each, so that nothing earlier is in either, and what a
process dies of is a result."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench import record, stage, standing
from bench.config import Suite, pick, read_suite
from bench.errors import Refusal
from bench.isolated import Outcome, Tell, ask

LIMIT_S = 900.0
"""Seconds that memory, and then latency, of one run may take."""
PRELOAD = (
    "bench.meters",
    "bench.latency",
    "segmentation_models_pytorch",
    "pytest_benchmark.plugin",
)


def measure(suite: Suite, name: str, limit_s: float = LIMIT_S) -> record.Record:
    """Measure one image, the first of `test`; running out of memory is a result."""
    run = pick(suite.runs, name, "run")
    # NVML counts cards by bus; CUDA shall do the same. Both are read when torch is loaded.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    memory = ask(_weigh, suite, name, limit_s=limit_s, preload=PRELOAD)
    outcome = memory
    if memory.status == "ok":
        latency = ask(_time, suite, name, limit_s=limit_s, preload=PRELOAD)
        outcome = Outcome(latency.status, latency.reason, memory.told | latency.told)
    device = outcome.told.pop("provenance", {})
    return record.Record(
        stage="measure",
        name=name,
        settings={"run": asdict(run), "model": suite.models[run.model].settings()},
        status=outcome.status,
        reason=outcome.reason,
        values=outcome.told,
        provenance=record.provenance(machine=suite.machine, **device),
    )


def _weigh(tell: Tell, suite: Suite, name: str) -> None:
    """In a process of its own: all meters of memory."""
    from bench import meters

    meters.weigh(tell, suite, name)


def _time(tell: Tell, suite: Suite, name: str) -> None:
    """In a process of its own: latency."""
    from bench import latency

    latency.time_run(tell, suite, name)


def measure_all(suite: Suite, names: Sequence[str], limit_s: float = LIMIT_S) -> list[Path]:
    """Measure several runs and write their records.

    Raises:
        Refusal: some failed; all the others are measured and written all the same.
    """
    paths: list[Path] = []
    failed: dict[str, str | None] = {}
    bar = stage.progress(len(names), "measure", "run", silent=len(names) == 1)
    for name in names:
        result = measure(suite, name, limit_s)
        paths.append(record.path_of(suite.suite, "measure", name, suite.machine))
        record.write(paths[-1], result)
        if result.status == "failed":
            failed[name] = result.reason
        else:
            standing.stamp(suite, "measure", name)
        bar.update()
    bar.close()
    if failed:
        first, reason = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise Refusal(f"Measuring {first}{more} failed, its record says so too: {reason}")
    return paths


def work(arguments: argparse.Namespace) -> None:
    """Measure memory and latency of runs of params.yaml; of all of them if none is named."""
    suite = read_suite()
    names = standing.asked(suite, "measure", arguments)
    for path in measure_all(suite, names, arguments.limit):
        print(path)


def _arguments(parser: argparse.ArgumentParser) -> None:
    standing.arguments(parser)
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, metavar="S", help="seconds a process may take"
    )


if __name__ == "__main__":
    stage.main(work, _arguments)
