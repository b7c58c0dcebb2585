"""Measures latency and memory of strategies by patches against their sub-batch, beside the prediction.

Patches one at a time, as in the papers, take least memory; in groups they are faster, and spend what
such a method saves. Weights are random and the image is noise, so that no data set is needed. Each
point is measured in a fresh process, one after another. Run it on a machine that does nothing else, and
commit the record `results/sub_batch/MACHINE.json`, which the report reads."""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench import cli, record
from bench.config import PARAMS, Compute, read_suite
from bench.errors import UserError
from bench.experiments.noise import noise
from bench.memory import predict_run, tensors_of
from bench.memory.meters import allocated_bytes_of, expected_allocated_bytes
from bench.parallel import Report, run_isolated
from bench.run import Run, clock, device_facts, open_run, set_up

SIZES = (1, 2, 4, 8, 16)
SIDE_PX = 720
CLASSES = 7
ROUNDS = 3
SEED = 0
LIMIT_S = 600.0
PRELOAD = ("bench.memory.meters", "bench.experiments.noise", "segmentation_models_pytorch")
DEFINITION = (
    "one image of noise, random weights; allocated_bytes: peak of the second prediction of a process, by "
    "the device's allocator; wall_s: seconds of each further one, image in host memory to labels in host "
    "memory; processor_s: of all threads of the host in it"
)


def patches_of(run: Run, side_px: int) -> int:
    """Number of patches of a square image that may be grouped; 0 for other strategies."""
    if not hasattr(run.spec, "sub_batch"):
        return 0
    found = run.strategy.inputs(run.spec, side_px, side_px)
    return max((len(one.boxes) for one in found if one.what == "patches"), default=0)


def points(runs: list[Run], side_px: int) -> Iterator[Run]:
    """Every run with each sub-batch that is not larger than its number of patches."""
    for run in runs:
        most = patches_of(run, side_px)
        yield from (run.varied(sub_batch=size) for size in SIZES if size <= most)


def measure(run: Run, side_px: int, compute: Compute) -> dict[str, Any]:
    """A row of the record; running out of memory ends the line of a run.

    Raises:
        UserError: it failed otherwise.
    """
    outcome = run_isolated(_measure, run, side_px, compute, limit_s=LIMIT_S, preload=PRELOAD)
    size = run.spec.sub_batch
    if outcome.status == "failed":
        raise UserError(f"{run.name} with {size} patches at once: {outcome.reason}.")
    key, about = f"{run.name} {size}", {"kind": run.name, "others": {"sub_batch": size}}
    return {"key": key, "status": outcome.status, **about, **outcome.reported}


def _measure(report: Report, run: Run, side_px: int, compute: Compute) -> None:
    """In a fresh process."""
    device = set_up(compute)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    torch.manual_seed(SEED)
    network, image = run.build().to(device), noise(side_px, SEED)

    def predict() -> None:
        run.predict(network, image)

    predict()
    allocated = allocated_bytes_of(predict, [*tensors_of(network), image])
    wall_s, processor_s = [], []
    for _ in range(ROUNDS):
        worked = time.process_time()
        with clock(device) as took:
            predict()
        wall_s += took
        processor_s.append(time.process_time() - worked)
    predicted = predict_run(run, (side_px, side_px), device.type)
    report(
        {
            "allocated_bytes": allocated,
            "predicted_bytes": expected_allocated_bytes(predicted, gpu),
            "wall_s": wall_s,
            "processor_s": processor_s,
            "device": device_facts(device, compute),
        }
    )


def work(arguments: argparse.Namespace) -> None:
    """Measure latency and memory of runs by patches against the number of patches at once."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is loaded
    suite, side_px = read_suite(arguments.suite), arguments.side
    names = arguments.run or [*suite.runs]
    runs = [open_run(suite, name, classes=CLASSES) for name in names]
    chosen = {f"{run.name} {run.spec.sub_batch}": run for run in points(runs, side_px)}
    if not chosen:
        raise UserError(f"No run of {', '.join(names)} works by patches that can be grouped.")
    path = record.RESULTS / "sub_batch" / f"{read_suite().machine}.json"
    settings = {"suite": suite.suite, "side_px": side_px, "compute": asdict(suite.compute)}
    record.other_parts(path, settings, chosen, "rows")
    each = cli.with_progress(chosen.values(), len(chosen), f"{side_px} px", "point")
    rows = [row for run in each if (row := measure(run, side_px, suite.compute))["status"] == "ok"]
    device = rows[0].get("device", {}) if rows else {}
    provenance = record.provenance(machine=path.stem, seed=SEED, **device)
    values = {"definition": DEFINITION, "rows": rows}
    record.write(
        path, record.Record("sub_batch", path.stem, settings, values, provenance), parts="rows"
    )
    print(path)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="*", help="keys of the table runs; default: all by patches")
    parser.add_argument("--suite", type=Path, default=PARAMS, help="a file like params.yaml")
    parser.add_argument(
        "--side", type=cli.positive_int, default=SIDE_PX, metavar="PX", help="of the square image"
    )


if __name__ == "__main__":
    cli.main(work, _arguments)
