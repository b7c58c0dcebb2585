"""Equality with the official code on golden data; CI compares all cases in both precisions."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run

from bench.errors import UserError
from reference.glnet import formulas
from reference.glnet.__main__ import table
from reference.glnet.cases import Case, Check, Step, fingerprint, read_cases
from reference.glnet.evaluation import check_case
from reference.glnet.training import check_step

GOLDEN = Path(__file__).parent / "golden/official"


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Case], dict[str, Step]]:
    cases, steps = read_cases(GOLDEN)
    return {case.name: case for case in cases}, {step.name: step for step in steps}


def failed(checks: list[Check]) -> list[str]:
    return [f"{check.quantity}: {check.difference}" for check in checks if not check.ok]


def test_the_formulas_make_what_the_golden_data_was_made_of(
    golden: tuple[dict[str, Case], dict[str, Step]],
) -> None:
    for case in golden[0].values():
        setting, expected = case.setting, case.golden
        image = formulas.image(setting.height, setting.width, setting.seed)
        label = formulas.label(setting.height, setting.width, setting.seed, setting.classes)
        assert fingerprint(image) == expected["image_sha256"]
        assert fingerprint(label) == expected["label_sha256"]
        shapes = json.loads((GOLDEN / "state_dict_keys.json").read_text())
        for key, digest in expected["weight_sha256_examples"].items():
            weight = formulas.weight(key, shapes[key]["shape"], setting.seed)
            assert fingerprint(weight) == digest, key


@pytest.mark.parametrize("mode", [1, 2, 3])
def test_evaluation_is_the_official_one(
    golden: tuple[dict[str, Case], dict[str, Step]], mode: int
) -> None:
    """Logits, lent and merged maps, summed scores, labels, confusion matrices."""
    checks = check_case(golden[0]["C"], mode, "float32")
    assert failed(checks) == []
    assert len(checks) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mode1", "mode2", "mode3"])
def test_a_training_step_is_the_official_one(
    golden: tuple[dict[str, Case], dict[str, Step]], name: str
) -> None:
    """Losses, gradients, updates, batch-norm statistics, and which parameters move."""
    checks = check_step(golden[1][name], "float32")
    assert failed(checks) == []
    assert len(checks) > 200


def test_a_weight_that_is_off_by_a_thousandth_is_noticed(
    golden: tuple[dict[str, Case], dict[str, Step]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import reference.glnet.cases as module

    original = formulas.weight

    def altered(key: str, shape: list[int], seed: int) -> np.ndarray:
        value = original(key, shape, seed)
        return value * np.float32(1.001) if key == "resnet_global.layer3.2.conv2.weight" else value

    module._official_state.cache_clear()
    monkeypatch.setattr(module.formulas, "weight", altered)
    checks = check_case(golden[0]["C"], 1, "float32")
    module._official_state.cache_clear()
    assert any("output_g" in text for text in failed(checks))


def test_the_command_says_what_fails_and_exits_with_1(tmp_path: Path) -> None:
    """A case without noise file and with one wrong number."""
    content = json.loads((GOLDEN / "golden_C.json").read_text())
    content["modes"] = {"1": content["modes"]["1"]}
    content["modes"]["1"]["confusion"]["metrics_global"][0][0] += 40
    (tmp_path / "golden_Z.json").write_text(json.dumps(content))
    shutil.copy(GOLDEN / "golden_C.npz", tmp_path / "golden_Z.npz")
    done = run(sys.executable, "-m", "reference.glnet", str(tmp_path), cwd=ROOT, ok=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: 2 of ")
    failing = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failing) == 2, "one a precision"
    assert all("confusion metrics_global (pixels) differs by 20" in line for line in failing)


def test_bad_folders_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        read_cases(tmp_path / "nothing")
    with pytest.raises(UserError, match="has neither"):
        read_cases(tmp_path)
    (tmp_path / "golden_A.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_cases(tmp_path)
    np.savez(tmp_path / "golden_A.npz", x=np.zeros(1))
    (tmp_path / "golden_A.json").write_text('{"config": {"seed": 0}}')
    with pytest.raises(UserError, match="no golden data of this format"):
        read_cases(tmp_path)
    (tmp_path / "golden_A.json").unlink()
    (tmp_path / "train_mode1.json").write_text('{"mode": 1}')
    with pytest.raises(UserError, match="'losses_in_call_order' is missing"):
        read_cases(tmp_path)
    shutil.copy(GOLDEN / "train_mode1.json", tmp_path)
    with pytest.raises(UserError, match="no evaluation case beside it fits"):
        read_cases(tmp_path)


def test_the_table_has_a_line_a_case_mode_and_precision() -> None:
    checks = [
        Check("A", 1, "float32", "output_g", 1e-6, 3e-6),
        Check("A", 1, "float32", "pred", float("nan"), 0),
    ]
    lines = table(checks).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("FAILED A mode 1 float32: pred differs by nan")
    assert not torch.tensor([check.ok for check in checks]).all()
