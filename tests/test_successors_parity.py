"""The rivals that followed GLNet against what their released codes computed."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import ROOT, run

from baselines.fctl.inference import boxes_of, contexts
from baselines.magnet import spec as magnet_spec
from bench.errors import UserError
from bench.tiling import cut
from reference import __main__, fctl, formulas, isdnet, magnet
from reference.check import Check, Comparing, table
from reference.fctl import networks as fctl_networks
from reference.golden import fingerprint, tables
from reference.isdnet import networks as isdnet_networks
from reference.isdnet.evaluation import check_case
from reference.isdnet.training import check_step
from reference.magnet import networks as magnet_networks
from reference.magnet.evaluation import check_case as check_magnet

GOLDEN = Path(__file__).parent / "golden"
ISDNET, FCTL, MAGNET = GOLDEN / "isdnet", GOLDEN / "fctl", GOLDEN / "magnet"


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def failed(checks: Sequence[Check]) -> list[str]:
    return [f"{check.quantity}: {check.difference}" for check in checks if not check.ok]


@pytest.mark.parametrize(
    ("folder", "package"),
    [(ISDNET, isdnet), (FCTL, fctl), (MAGNET, magnet)],
)
def test_a_folder_is_known_by_its_files(folder: Path, package: Any) -> None:
    assert __main__.of(folder) is package


@pytest.mark.parametrize(
    "path", [*ISDNET.glob("golden_*.json"), *FCTL.glob("golden_*.json")], ids=lambda path: path.stem
)
def test_the_formulas_make_what_the_golden_data_was_made_of(path: Path) -> None:
    golden = read(path)
    config = golden["config"]
    size = (config["h"], config["w"])
    assert fingerprint(formulas.image(*size, config["seed"])) == golden["image_sha256"]
    if "label_sha256" in golden:
        made = formulas.label(*size, config["seed"], config["n_class"])
        assert fingerprint(made) == golden["label_sha256"]


def test_isdnet_s_weights_are_those_of_the_golden_data() -> None:
    keys = read(ISDNET / "state_dict_keys.json")
    for key, digest in keys["weight_sha256_seed0"].items():
        shape = keys["r18"]["keys"][key]
        assert fingerprint(np.asarray(isdnet_networks.weight(key, shape, 0))) == digest, key


def test_fctl_s_weights_and_windows_are_those_of_the_golden_data() -> None:
    golden = read(FCTL / "golden_fctl_A.json")
    shapes = read(FCTL / "state_dict_keys.json")["FCN8_mode3"]
    for key, digest in golden["weight_sha256_examples"].items():
        weight = fctl_networks.weight(key, shapes[key], golden["config"]["seed"])
        assert fingerprint(weight) == digest, key
    spec = fctl_networks.spec_of(golden, 3)
    config = golden["config"]
    image, _ = fctl_networks.pictures(config, config["seed"])
    boxes = boxes_of(config["h"], config["w"], spec)
    assert [[box.top, box.left] for box in boxes] == golden["grid"]["top_left_px"]
    own = [boxes[config["patch"]]]
    found = {
        "patch": cut(image, own),
        "context10": contexts(image, own, spec.medium),
        "context15": contexts(image, own, spec.large_factor),
    }
    for name, digest in golden["inputs_sha256"].items():
        assert fingerprint(found[name][0].permute(1, 2, 0).numpy()) == digest, name


def test_isdnet_computes_what_its_released_code_computes() -> None:
    path = ISDNET / "golden_B.json"
    checks = check_case(path, read(path), "float32")
    assert failed(checks) == []
    assert len(checks) > 150


def test_isdnet_learns_as_its_released_code_does() -> None:
    path = ISDNET / "train_T.json"
    checks = check_step(path, read(path), "bn_eval", "float32")
    assert failed(checks) == []
    assert len(checks) > 200


def test_magnet_s_weights_are_those_of_the_golden_data() -> None:
    keys = read(MAGNET / "state_dict_keys.json")
    for told, digest in read(MAGNET / "examples.json").items():
        name, seed, key = re.fullmatch(r"weight (.*) seed (\d+) (.*)", told).groups()  # type: ignore[union-attr]
        part, *number = name.split()
        prefix = f"resnet_refine{number[0]}." if number else ""
        values = np.asarray(magnet_networks.weight(prefix + key, keys[part][key], int(seed)))
        louder = magnet_networks.LOUDER if key == "seg_conv.weight" else 1
        assert fingerprint(values * np.float32(louder)) == digest, told


def test_magnet_computes_what_its_released_code_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast, with overlapping patches that miss the last row, two refinements, and ties at 0; then
    with a single oddity left out."""
    path = MAGNET / "golden_B_fast.json"
    checks = check_magnet(path, read(path), "float32")
    assert failed(checks) == []
    assert len(checks) > 100
    original = magnet_networks.spec_of

    def without_one(config: Any) -> Any:
        spec = original(config)
        odd = tuple(name for name in get_args(magnet_spec.Quirk) if name != "displaced-crops")
        return replace(spec, official=odd)

    monkeypatch.setattr("reference.magnet.evaluation.spec_of", without_one)
    missed = failed(check_magnet(path, read(path), "float32"))
    assert any(text.startswith("s1_coarse_crop (share)") for text in missed)
    assert not any(text.startswith("s0_prob") for text in missed)


def test_images_are_resized_as_opencv_does() -> None:
    """By hand: to half the sides means, else weights of 11 bits, products cut off apart."""
    image = torch.tensor([[[0, 10, 255, 7], [4, 4, 1, 2]]], dtype=torch.uint8)
    half = magnet_networks.resize_as_opencv(image, (1, 2))
    assert half.tolist() == [[[(0 + 10 + 4 + 4 + 2) // 4, (255 + 7 + 1 + 2 + 2) // 4]]]
    wide = magnet_networks.resize_as_opencv(image, (2, 8))[0, 0].tolist()
    # Shares of a quarter and three quarters between 0, 10, 255 and 7.
    assert wide == [0, 3, 8, 71, 194, 193, 69, 7]


def test_a_reducer_is_resnet_50_s() -> None:
    assert isdnet_networks.spec_of({"depth": 50, "reduce": True}).depth == 50
    for config in ({"depth": 18, "reduce": True}, {"depth": 50, "reduce": False}):
        with pytest.raises(UserError, match="reducer is ResNet-50's"):
            isdnet_networks.spec_of(config)


def test_a_weight_that_is_off_by_a_thousandth_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = isdnet_networks.weight

    def altered(key: str, shape: Sequence[int], seed: int) -> Any:
        value = original(key, shape, seed)
        return (
            value * np.float32(1.001) if key == "refine_head.fuse16.spatial_mlp.0.weight" else value
        )

    monkeypatch.setattr(isdnet_networks, "weight", altered)
    path = ISDNET / "golden_B.json"
    missed = failed(check_case(path, read(path), "float32"))
    assert any(text.startswith("output (share)") for text in missed)
    assert not any(text.startswith("deep_feat") for text in missed)


def test_the_command_says_what_fails_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compare(folder: Path) -> list[Check]:
        return [Check("A", "whole", "float32", name, 1, 0) for name in ("logits", str(folder))]

    monkeypatch.setattr(isdnet, "compare", compare)
    arguments = argparse.Namespace(folder=ISDNET, json=False, threads=1)
    with pytest.raises(SystemExit, match="error: 2 of 2 comparisons do not hold"):
        __main__.work(arguments)
    told = capsys.readouterr().out
    assert f"FAILED A whole float32: {ISDNET} differs by 1 where 0 is allowed" in told
    arguments.json = True
    with pytest.raises(SystemExit):
        __main__.work(arguments)
    assert [one["ok"] for one in json.loads(capsys.readouterr().out)] == [False, False]


def test_the_command_is_one_sentence_where_nothing_fits(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "reference.__main__", str(tmp_path), cwd=ROOT, ok=False)
    assert done.returncode == 1
    assert "has golden data of none of" in done.stderr
    assert "Traceback" not in done.stderr


def spoilt(folder: Path, name: str, text: str) -> Path:
    folder.mkdir()
    (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nothing", "There is no folder"),
        (lambda path: path, "none of fctl, isdnet, magnet"),
        (lambda path: spoilt(path / "a", "golden_A.json", "{"), "is not JSON"),
        (lambda path: spoilt(path / "b", "golden_A.json", "[]"), "holds no table"),
        (lambda path: spoilt(path / "c", "golden_A.json", '{"config": {"h": 3}}'), "none of fctl"),
    ],
)
def test_bad_folders_are_refused_in_one_sentence(
    make: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        __main__.of(make(tmp_path))


@pytest.mark.parametrize("package", [isdnet, fctl])
def test_bad_cases_are_refused_in_one_sentence(package: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has neither"):
        package.compare(tmp_path)
    case = tmp_path / "golden_A.json"
    case.write_text('{"config": {"depth": 18, "context10": 2}, "modes": {"1": {}}}')
    with pytest.raises(UserError, match=r"golden_A\.npz cannot be read"):
        package.compare(tmp_path)
    np.savez(tmp_path / "golden_A.npz", x=np.zeros(1))
    with pytest.raises(UserError, match="it lacks or misnames 'stats'"):
        package.compare(tmp_path)
    assert list(tables(tmp_path, "golden_*.json")) == [case]


def test_labels_may_differ_where_two_classes_tie() -> None:
    scores = np.zeros((2, 2, 2))
    scores[0] = [[1, 2], [3, 4]]
    scores[1] = [[1 + 1e-6, 0], [0, 0]]
    comparing = Comparing("A", "whole", "float32", [])
    comparing.labels("tie", scores, np.array([[0, 0], [0, 0]], np.uint8))
    comparing.labels("wrong", scores, np.array([[0, 1], [0, 0]], np.uint8))
    comparing.labels("tie by counts", scores, sha256="other", counts=[4, 0])
    comparing.labels("wrong by counts", scores, sha256="other", counts=[1, 3])
    comparing.labels("no tie", scores * [[[1]], [[0.5]]], sha256="other", counts=[4, 0])
    assert [check.ok for check in comparing.checks] == [True, False, True, False, False]


def test_the_table_has_a_line_a_case_mode_and_precision() -> None:
    checks = [
        Check("A", "whole", "float32", "logits", 1e-6, 3e-6),
        Check("A", "whole", "float32", "labels", float("nan"), 0),
        Check("A", "whole", "float64", "labels", 0, 0),
    ]
    lines = table(checks).splitlines()
    assert len(lines) == 4
    assert lines[3] == "FAILED A whole float32: labels differs by nan where 0 is allowed"


@pytest.mark.parametrize("name", ["A", "deepglobe"])
def test_what_is_kept_of_fctl_s_maps_is_found_by_its_shape(name: str) -> None:
    from reference.fctl.evaluation import _sampled

    golden = read(FCTL / f"golden_fctl_{name}.json")
    with np.load(FCTL / f"golden_fctl_{name}.npz") as kept:
        for key, stats in golden["stats"].items():
            short = key.split("_", 1)[1] if name == "A" else key
            stride = golden["config"].get("score_stride", 3)
            whole = np.zeros(stats["shape"])
            assert _sampled(short, whole, kept[key].shape, stride).shape == kept[key].shape, key


@pytest.mark.slow
def test_what_fctl_fuses_is_what_its_released_code_fuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch of the DeepGlobe variant: windows, three VGGs, correlations, fusion. The head's 120
    million weights take longer than all else and are left 0: what comes behind must not fit."""
    from reference.fctl.evaluation import patch_maps, prepared

    original = fctl_networks.weight

    def without_head(key: str, shape: Sequence[int], seed: int) -> Any:
        head = key.startswith(("output.0.", "output.3."))
        return np.zeros(shape, np.float32) if head else original(key, shape, seed)

    monkeypatch.setattr(fctl_networks, "weight", without_head)
    golden = read(FCTL / "golden_fctl_deepglobe.json")
    found = patch_maps(golden, 4, *prepared(golden, 4, "float32"))
    comparing = Comparing("deepglobe", "contexts", "float32", [])
    for name, whole in found.items():
        comparing.statistics(name, whole, golden["stats"][name])
    assert len(found) == 8
    behind = {text.split(",")[0] for text in failed(comparing.checks)}
    assert behind == {"patch_output", "patch_logits"}
