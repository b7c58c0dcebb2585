"""Stage `measure`: peak memory of each run by all meters of the machine, and latency.

Memory is measured in a fresh process per run, so that earlier allocations do not count and running out
of memory is a result. Latency is measured in one process for several runs, without the first
prediction."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench import cli, record
from bench.config import Suite, pick, read_suite
from bench.errors import UserError
from bench.parallel import Outcome, Report, run_isolated, threads
from bench.pipeline import cache

LIMIT_S = 900.0
"""Time limit per run, for memory and for latency."""
GROUP_SIZE = 9
"""Runs whose records are written together. An interrupt loses at most these."""
PRELOAD = (
    "bench.memory.meters",
    "bench.latency",
    "segmentation_models_pytorch",
    "pytest_benchmark.plugin",
)


def measure_all(suite: Suite, names: Sequence[str], limit_s: float = LIMIT_S) -> list[Path]:
    """Measure several runs, each on the first image of `test`, and write their records. Out of memory
    is a result, not an error.

    Raises:
        UserError: some runs failed; the records of all others are written.
    """
    for name in names:
        pick(suite.runs, name, "run")
    # NVML orders GPUs by bus; make CUDA do the same. Both variables are read when torch is loaded.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    paths: list[Path] = []
    failed: dict[str, str] = {}
    bar = cli.progress(len(names), "measure", "run", silent=len(names) == 1)
    for first in range(0, len(names), GROUP_SIZE):
        group = names[first : first + GROUP_SIZE]
        for name, outcome in _outcomes(suite, group, limit_s).items():
            paths.append(record.path_of(suite.suite, "measure", name, suite.machine))
            try:
                record.write(paths[-1], _record(suite, name, outcome))
            except UserError as error:
                failed[name] = f"and {error}"
            else:
                if outcome.status == "failed":
                    failed[name] = f"its record says so too: {outcome.reason}"
                else:
                    cache.mark_fresh(suite, "measure", name)
            bar.update()
    bar.close()
    if failed:
        name, reason = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UserError(f"Measuring {name}{more} failed, {reason}")
    return paths


def _outcomes(suite: Suite, names: Sequence[str], limit_s: float) -> dict[str, Outcome]:
    """Results by run: memory, `compute.jobs` runs at once, then latency of the runs that fit into
    memory, one after another."""

    def measure(name: str) -> Outcome:
        return run_isolated(_measure_memory, suite, name, limit_s=limit_s, preload=PRELOAD)

    with threads(suite.compute.jobs) as pool:
        # Suites list simple runs first; start with the slow ones.
        pending = {name: pool.submit(measure, name) for name in reversed(names)}
        found = {name: pending[name].result() for name in names}
    fitting = [name for name in names if found[name].status == "ok"]
    if not fitting:
        return found
    timed = run_isolated(_time, suite, fitting, limit_s=limit_s * len(fitting), preload=PRELOAD)
    for name in fitting:
        one = Outcome(reported=timed.reported.get(name, {}))
        if not one.reported:  # a failed run ends the shared process: run it in its own
            one = run_isolated(_time, suite, [name], limit_s=limit_s, preload=PRELOAD)
            one.reported = one.reported.get(name, {})
        found[name] = Outcome(one.status, one.reason, found[name].reported | one.reported)
    return found


def predict_again(suite: Suite, name: str) -> Path:
    """Update the predicted memory in a run's record; the measurements stay.

    Raises:
        UserError: the record does not exist, or was made with other settings.
    """
    from bench.memory.meters import predicted_again

    path = record.path_of(suite.suite, "measure", name, suite.machine)
    made, run = record.read(path), pick(suite.runs, name, "run")
    if found := record.made_otherwise(made, suite.models[run.model], run):
        raise UserError(f"{path} was measured with other settings ({found}): measure it again.")
    values = predicted_again(suite, name, made.values, made.provenance.get("device_name", ""))
    values["predicted_provenance"] = record.provenance()
    record.write(path, replace(made, values=values))
    return path


def _record(suite: Suite, name: str, outcome: Outcome) -> record.Record:
    run = suite.runs[name]
    values = dict(outcome.reported)
    device = values.pop("provenance", {})
    return record.Record(
        stage="measure",
        name=name,
        settings={"run": asdict(run), "model": suite.models[run.model].settings()},
        status=outcome.status,
        reason=outcome.reason,
        values=values,
        provenance=record.provenance(machine=suite.machine, **device),
    )


def _measure_memory(report: Report, suite: Suite, name: str) -> None:
    """Measure with all memory meters; runs in a fresh process."""
    from bench.memory.meters import measure_run

    measure_run(report, suite, name)


def _time(report: Report, suite: Suite, names: Sequence[str]) -> None:
    """Measure latency; runs in another process."""
    from bench import latency

    latency.time_runs(report, suite, names)


def work(arguments: argparse.Namespace) -> None:
    """Measure memory and latency of runs of params.yaml; default: all runs."""
    suite = read_suite()
    if arguments.predicted:
        for name in arguments.run or suite.runs:
            print(predict_again(suite, name))
        return
    names = cache.requested(suite, "measure", arguments)
    for path in measure_all(suite, names, arguments.limit):
        print(path)


def _arguments(parser: argparse.ArgumentParser) -> None:
    cache.add_arguments(parser)
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, metavar="S", help="seconds a run may take"
    )
    parser.add_argument(
        "--predicted",
        action="store_true",
        help="update the predicted memory in records; the measurements stay",
    )


if __name__ == "__main__":
    cli.main(work, _arguments, computes=True)
