"""Memory of training steps, predicted and allocated, for the lines of a suite."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import record
from bench.pipeline.measure_training import MOST_IMAGES, work

Edit = Callable[[Callable[[dict[str, Any]], None]], None]


def test_every_phase_of_every_model_is_weighed_and_foretold(
    project: Path, edit_suite: Edit
) -> None:
    def two(suite: dict[str, Any]) -> None:
        suite["models"] = {name: suite["models"][name] for name in ("unet", "glnet-local")}
        suite["models"]["unet"]["training"]["phases"]["train"]["batch"] = 1
        suite["models"]["glnet-local"]["training"]["phases"]["local"]["batch"] = 6
        suite["runs"] = {"unet-whole": suite["runs"]["unet-whole"]}

    edit_suite(two)
    work(argparse.Namespace())
    found = record.read(record.path_of("tiny", "steps", "test-machine"))
    models = found.values["models"]
    assert {name: set(phases) for name, phases in models.items()} == {
        "unet": {"train"},
        "glnet-local": {"local"},
    }
    for phases in models.values():
        for values in phases.values():
            assert (values["height_px"], values["width_px"]) == (70, 90)
            assert values["predicted_bytes"] == pytest.approx(values["allocated_bytes"], rel=0.05)
            assert values["by_category"]["optimiser state"] > 0
    assert models["unet"]["train"]["batch"] == 1
    assert models["glnet-local"]["local"]["batch"] == MOST_IMAGES
    assert found.values["device"] == "cpu"
    assert found.provenance["threads"] == 1
