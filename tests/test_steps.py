"""Memory of training steps, predicted and allocated, for the lines of a suite."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from bench import record
from bench.config import read_suite
from bench.errors import UserError
from bench.pipeline import measure, measure_training
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
    work(argparse.Namespace(predicted=False))
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


@pytest.fixture
def of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of ENet on the H100, without their predictions."""
    folder = tmp_path / "earthcover-long"
    for place in ("evaluate", "measure/h100"):
        (folder / place).mkdir(parents=True)
        shutil.copy(record.RESULTS / folder.name / place / "enet-patch.json", folder / place)
    steps = json.loads((record.RESULTS / folder.name / "steps/h100.json").read_text())
    steps["values"]["models"] = {"enet-patch": steps["values"]["models"]["enet-patch"]}
    steps["values"]["models"]["enet-patch"]["train"]["predicted_bytes"] = 7
    (folder / "steps").mkdir()
    (folder / "steps/h100.json").write_text(json.dumps(steps))
    path = folder / "measure/h100/enet-patch.json"
    made = json.loads(path.read_text())
    made["values"]["part"]["predicted_bytes"] = 7
    made["values"]["meters"]["predicted"] = {"bytes": 7, "definition": ""}
    path.write_text(json.dumps(made))
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    return folder


def test_what_a_gpu_allocated_is_predicted_again_and_stays(of_a_gpu: Path) -> None:
    suite = read_suite(ROOT / "suites/earthcover-long.yaml")
    path = of_a_gpu / "measure/h100/enet-patch.json"
    before, steps = record.read(path), record.read(of_a_gpu / "steps/h100.json")
    assert measure.predict_again(suite, "enet-patch") == path
    after = record.read(path)
    told, *_ = (
        found.values["meters"].pop("predicted").get("expected_allocated_bytes")
        for found in (after, before)
    )
    told_of_part, _ = (found.values["part"].pop("predicted_bytes") for found in (after, before))
    before.values.pop("predicted_provenance", None)
    assert "commit" in after.values.pop("predicted_provenance")
    assert after == before, "what was measured, and its provenance, stay"
    allocated = after.values["meters"]["allocated"]["bytes"]
    # The H100 ran an earlier commit, which kept the image, its labels and the sums that patches leave to
    # the next row on the host.
    on_host = 8 * after.values["height_px"] * after.values["width_px"]
    of_part = after.values["part"]["allocated_bytes"]
    for found, real in ((told, allocated), (told_of_part, of_part)):
        assert 0.99 * real <= found <= 1.01 * real + on_host

    again = record.read(measure_training.predict_again(suite))
    assert again.provenance == steps.provenance
    (old,), (new,) = (found.values["models"]["enet-patch"].values() for found in (steps, again))
    assert new["allocated_bytes"] == old["allocated_bytes"]
    # ENet has convolutions alone, and no product ran before it: cuBLAS had no workspace.
    assert new["blas_threads"] == 0
    assert new["predicted_bytes"] == pytest.approx(new["allocated_bytes"], rel=0.03)


def test_another_network_is_not_predicted_in_a_records_place(of_a_gpu: Path) -> None:
    path = of_a_gpu / "measure/h100/enet-patch.json"
    made = json.loads(path.read_text())
    made["settings"]["model"]["spec"]["size_px"] = 96
    path.write_text(json.dumps(made))
    suite = read_suite(ROOT / "suites/earthcover-long.yaml")
    with pytest.raises(UserError, match=r"with other settings .*size_px was 96.* measure it again"):
        measure.predict_again(suite, "enet-patch")
