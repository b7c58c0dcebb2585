"""Stage `successors`: predicts the memory of every ultra-high-resolution method without a GPU.

Predicts each run of suites/deepglobe-successors.yaml that has a published row, and GLNet, on fake CUDA
tensors at the image sizes of the two data sets for which papers publish memory. Where a method has
them, the corrected and the released variant are both predicted."""

import argparse
from collections.abc import Sequence
from typing import Any

from bench import cli, record
from bench.memory.published_settings import (
    PLACES,
    PREDICTED,
    UHR_METHODS,
    Place,
    predict_case,
    uhr_cases,
)
from bench.parallel import parallel_map

RESULT = record.RESULTS / "successors.json"


def predict(places: Sequence[Place]) -> list[dict[str, Any]]:
    """Peak memory of every method and variant for every data set."""
    cases = [case for place in places for case in uhr_cases(place)]
    rows = parallel_map(predict_case, [(case,) for case in cases], "predict memory", "run")
    return [
        {
            **row,
            "dataset": case.dataset,
            "side_px": case.side_px,
            "run": case.run.name,
            "done": case.done,
        }
        for case, row in zip(cases, rows, strict=True)
    ]


def work(arguments: argparse.Namespace) -> None:
    """Predict the device memory of every ultra-high-resolution method at 2448 x 2448 and
    5000 x 5000 px, without a device."""
    rows = predict(PLACES)
    record.write(
        RESULT,
        record.Record(
            stage="successors",
            name=UHR_METHODS.stem,
            settings={"suites": [UHR_METHODS.stem, *(place.ours for place in PLACES)]},
            values={"definition": PREDICTED, "rows": rows},
            provenance=record.provenance(),
        ),
    )
    print(RESULT)


if __name__ == "__main__":
    cli.main(work)
