"""Stage `predict`: predicts the memory figures of the GLNet paper without a GPU.

Predicts every run of suites/deepglobe.yaml (the paper's networks) at the paper's image size on fake
CUDA tensors, and one run of each strategy at growing sizes. Also fits one model to all published
memory figures of the paper."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from bench import cli, record
from bench.config import Suite, read_suite
from bench.memory import paper_memory
from bench.memory.paper_memory import CLASSES, PAPER, SIDE_PX, paper_cases
from bench.memory.runs import PREDICTED, Case, predict_case, predict_run
from bench.parallel import parallel_map
from bench.run import Run, open_run
from bench.tiling import Box, grid

SIDES_PX = tuple(1024 * 2**n for n in range(6))
"""Sides of square images, 1024 to 32768 px."""
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
MAX_PATCHES = 100
RESULT = record.RESULTS / "predict.json"


def predict(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """Peak memory of every case on a CUDA device."""
    return parallel_map(predict_case, [(case,) for case in cases], "predict memory", "run")


def scale(suite: Suite, names: Sequence[str], classes: int) -> dict[str, list[dict[str, int]]]:
    """Memory and operations of runs of a suite on a CUDA device, for square images of growing
    side.

    A strategy that works by patches is predicted for up to `MAX_PATCHES` patches; for larger images
    only the number of patches is given, because each further patch costs the same."""
    runs = [open_run(suite, name, classes=classes) for name in names]
    tasks = [(run, side) for run in runs for side in SIDES_PX]
    found = iter(parallel_map(_predict_size, tasks, "predict growth", "size"))
    return {name: [next(found) for _ in SIDES_PX] for name in names}


def _predict_size(run: Run, side: int) -> dict[str, int]:
    patches = len(_grid(run.spec, side)) if run.config.strategy in BY_PATCHES else 0
    row = {"side_px": side, "patches": patches}
    if patches > MAX_PATCHES:
        return row
    predicted = predict_run(run, (side, side), "cuda")
    return row | {
        "device_bytes": predicted.device_bytes,
        "reserved_bytes": predicted.reserved_bytes or 0,
        "host_bytes": predicted.host_bytes,
        "flops": predicted.flops,
    }


def _grid(spec: Any, side: int) -> list[Box]:
    patch = getattr(spec, "patch_px", None) or spec.size_px
    return grid(side, side, patch, spec.overlap_px)


def work(arguments: argparse.Namespace) -> None:
    """Predict the device memory of every run of suites/deepglobe.yaml at 2448 x 2448 px, without a
    device."""
    suite, cases = read_suite(PAPER), list(paper_cases())
    runs = {
        case.run.name: {**row, "network": paper_memory.network_of(case.run)}
        for case, row in zip(cases, predict(cases), strict=True)
    }
    record.write(
        RESULT,
        record.Record(
            stage="predict",
            name=suite.suite,
            settings={"suite": str(PAPER)},
            values={
                "suite": suite.suite,
                "height_px": SIDE_PX,
                "width_px": SIDE_PX,
                "definition": PREDICTED,
                "runs": runs,
                "growth": scale(suite, GROWING, CLASSES),
                "published": paper_memory.explain_published(),
            },
            provenance=record.provenance(),
        ),
    )
    print(RESULT)


if __name__ == "__main__":
    cli.main(work)
