"""Stage `predict`: the paper's memory axis without a GPU.

Every run of a suite (suites/deepglobe.yaml: the paper's networks and sizes) is worked out on fake
CUDA tensors at one image size, and stands beside what the papers print."""

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import record, stage
from bench.config import Suite, read_suite
from bench.memory import DEFINITIONS, predict_memory
from bench.method import check_strategy, load, spec_of

SUITE = Path("suites/deepglobe.yaml")
SIZE_PX = (2448, 2448)
CLASSES = 7
RESULT = record.RESULTS / "predict.json"


def predict(suite: Suite, size: tuple[int, int], classes: int) -> dict[str, dict[str, Any]]:
    """Peak memory on a CUDA device of every run of a suite, for an image of `size` (H, W) px, by
    run."""
    runs: dict[str, dict[str, Any]] = {}
    bar = stage.progress(len(suite.runs), "predict memory", "run")
    for name, run in suite.runs.items():
        model = suite.models[run.model]
        check_strategy(name, run, model)
        spec = spec_of(run.model, model, run)
        method = load(model.method)
        begun = time.perf_counter()
        result = predict_memory(
            method, method.strategies[run.strategy], spec, classes, size, "cuda"
        )
        runs[name] = {
            **asdict(result),
            "method": model.method,
            "network": getattr(spec, "network", model.method),
            "strategy": run.strategy,
            "published": run.published,
            "seconds": time.perf_counter() - begun,
        }
        bar.update()
    bar.close()
    return runs


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
            },
            provenance=record.provenance(),
        ),
    )
    print(RESULT)


if __name__ == "__main__":
    stage.main(work)
