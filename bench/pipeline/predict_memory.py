"""Stage `predict`: the paper's memory axis without a GPU.

Every run of a suite (suites/deepglobe.yaml: the paper's networks and sizes) is worked out on fake
CUDA tensors at one image size, one run of each strategy at growing sizes, and one model is fitted
to all that the paper prints of memory."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import cli, record
from bench.config import RunConfig, Suite, read_suite
from bench.memory import DEFINITIONS, paper_memory, predict_memory
from bench.method import check_strategy, load, spec_of
from bench.parallel.parallel_map import parallel_map
from bench.tiling import Box, grid

SUITE = Path("suites/deepglobe.yaml")
SIZE_PX = (2448, 2448)
CLASSES = 7
SIDES_PX = tuple(1024 * 2**n for n in range(6))
"""Of square images: 1 to 32 thousand pixels, a thousandfold range of area."""
GROWING = (
    "fpn-whole",
    "fpn-downsample",
    "fpn-patch",
    "glnet-global",
    "glnet-local",
    "glnet-global-to-local",
    "glnet-collaborative",
)
"""Every strategy once, on one backbone: GLNet's branches are feature pyramids on ResNet-50."""
BY_PATCHES = ("patch", "local", "global-to-local", "collaborative")
MOST_PATCHES = 100
RESULT = record.RESULTS / "predict.json"


def predict(suite: Suite, size: tuple[int, int], classes: int) -> dict[str, dict[str, Any]]:
    """Peak memory on a CUDA device of every run of a suite, for an image of `size` (H, W) px, by
    run."""
    tasks = [(suite, name, size, classes) for name in suite.runs]
    return dict(
        zip(suite.runs, parallel_map(_predicted, tasks, "predict memory", "run"), strict=True)
    )


def _predicted(suite: Suite, name: str, size: tuple[int, int], classes: int) -> dict[str, Any]:
    run = suite.runs[name]
    model = suite.models[run.model]
    check_strategy(name, run, model)
    spec = spec_of(run.model, model, run)
    method = load(model.method)
    begun = time.perf_counter()
    result = predict_memory(
        method, method.strategies[run.strategy], spec, classes, size, "cuda", tf32=True
    )
    return {
        **asdict(result),
        "method": model.method,
        "network": getattr(spec, "network", model.method.rpartition("/")[2]),
        "strategy": run.strategy,
        "published": run.published,
        "seconds": time.perf_counter() - begun,
    }


def scale(suite: Suite, names: Sequence[str], classes: int) -> dict[str, list[dict[str, int]]]:
    """Memory and operations of runs of a suite on a CUDA device, for square images of growing
    side.

    A strategy that works by patches is worked out up to `MOST_PATCHES`; of larger images only the
    number of patches is told, since every further one costs what those before cost."""
    tasks = [(suite, suite.runs[name], side, classes) for name in names for side in SIDES_PX]
    found = iter(parallel_map(_grown, tasks, "predict growth", "size"))
    return {name: [next(found) for _ in SIDES_PX] for name in names}


def _grown(suite: Suite, run: RunConfig, side: int, classes: int) -> dict[str, int]:
    model = suite.models[run.model]
    spec = spec_of(run.model, model, run)
    patches = len(_grid(spec, side)) if run.strategy in BY_PATCHES else 0
    row = {"side_px": side, "patches": patches}
    if patches > MOST_PATCHES:
        return row
    method = load(model.method)
    strategy = method.strategies[run.strategy]
    result = predict_memory(method, strategy, spec, classes, (side, side), "cuda")
    return row | {
        "device_bytes": result.device_bytes,
        "reserved_bytes": result.reserved_bytes or 0,
        "host_bytes": result.host_bytes,
        "flops": result.flops,
    }


def _grid(spec: Any, side: int) -> list[Box]:
    patch = getattr(spec, "patch_px", None) or spec.size_px
    return grid(side, side, patch, spec.overlap_px)


def work(arguments: argparse.Namespace) -> None:
    """Predict the device memory of every run of suites/deepglobe.yaml at 2448 x 2448 px, without a
    device."""
    suite = read_suite(SUITE)
    record.write(
        RESULT,
        record.Record(
            stage="predict",
            name=suite.suite,
            settings={"suite": str(SUITE)},
            values={
                "suite": suite.suite,
                "height_px": SIZE_PX[0],
                "width_px": SIZE_PX[1],
                "definition": DEFINITIONS["predicted"],
                "runs": predict(suite, SIZE_PX, CLASSES),
                "growth": scale(suite, GROWING, CLASSES),
                "published": paper_memory.told(),
            },
            provenance=record.provenance(),
        ),
    )
    print(RESULT)


if __name__ == "__main__":
    cli.main(work)
