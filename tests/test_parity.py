"""Equality with the released codes on golden data, in float32; CI compares in float64 as well."""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from torch.nn import functional as F

from baselines.fctl.inference import boxes_of, contexts
from baselines.magnet import spec as magnet_spec
from bench.errors import UserError
from bench.tiling import cut, resize
from reference import (
    __main__,
    cascadepsp,
    f2net,
    fctl,
    formulas,
    glnet,
    isdnet,
    magnet,
    pointrend,
    rue,
)
from reference.check import RELATIVE, Check, Comparison, difference, rows, ties
from reference.golden import Golden, fingerprint, format_of, read
from reference.replay import NearestInFloat32, image_of

GOLDEN = Path(__file__).parent / "golden"
OFFICIAL, ISDNET, FCTL, MAGNET = (GOLDEN / n for n in ("official", "isdnet", "fctl", "magnet"))
CASCADEPSP, F2NET, POINTREND, RUE = (
    GOLDEN / n for n in ("cascadepsp", "f2net", "pointrend", "rue")
)
COMPARED_FOLDERS = (OFFICIAL, ISDNET, MAGNET, CASCADEPSP, F2NET, POINTREND, RUE)
COMPARED = {  # file -> the least number of comparisons that it gives in all its modes
    **{f"official/golden_{case}": 180 for case in "ABC"},
    "official/train_mode1": 391,
    "official/train_mode2": 407,
    "official/train_mode3": 408,
    "isdnet/golden_A": 192,
    "isdnet/golden_B": 192,
    "isdnet/train_T": 274,
    "cascadepsp/golden_infer": 98,
    "cascadepsp/golden_multiclass_global": 29,
    "cascadepsp/golden_multiclass_local": 17,
    "cascadepsp/golden_net_B": 397,
    "cascadepsp/train_T": 732,
    "f2net/golden_modules_A": 187,
    "f2net/golden_modules_B": 187,
    "f2net/train_T": 843,
    "magnet/golden_A": 122,
    "magnet/golden_A_fast": 124,
    "magnet/golden_B": 122,
    "magnet/golden_B_fast": 124,
    "magnet/golden_modules": 1305,
    "pointrend/golden_head_A": 56,
    "pointrend/golden_net_A": 105,
    "pointrend/golden_net_odd": 105,
    "pointrend/train_head_T": 23,
    "pointrend/train_net_T": 428,
    "rue/golden_A": 190,
    "rue/golden_A_select120": 167,
    "rue/golden_A_whole": 59,
    "rue/golden_B": 190,
    "rue/train_T": 1000,
}


def golden(name: str) -> Golden:
    """The case or step in a file of tests/golden."""
    path = GOLDEN / f"{name}.json"
    return next(one for one in read(path.parent) if one.path == path)


def compared(name: str, mode: str = "", dtype: str = "float32") -> list[Check]:
    """Of one file; in all its modes where none is named."""
    path = GOLDEN / f"{name}.json"
    todo = [job for job in __main__.jobs(path.parent, [dtype]) if job.golden.path == path]
    own = [job for job in todo if mode in ("", job.mode)]
    assert own
    return [check for job in own for check in __main__.compare(job).checks]


def failed(checks: Sequence[Check]) -> list[str]:
    return [f"{check.quantity}: {check.difference}" for check in checks if not check.ok]


# --- methods ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_a_method_computes_what_its_released_code_computes(name: str) -> None:
    """Maps, scores, labels and matrices; losses, gradients, updates, batch-norm statistics, and
    which parameters move."""
    checks = compared(name)
    assert failed(checks) == []
    assert len(checks) >= COMPARED[name]


@pytest.mark.slow
def test_a_step_of_cascadepsp_in_float64() -> None:
    """Norms of its gradients differ between processors in float32."""
    assert failed(compared("cascadepsp/train_T", dtype="float64")) == []


def test_every_golden_file_is_compared() -> None:
    names = [path for folder in COMPARED_FOLDERS for path in folder.glob("*.json")]
    cases = [path for path in names if path.name.startswith(("golden_", "train_"))]
    assert {f"{path.parent.name}/{path.stem}" for path in cases} == COMPARED.keys()


@pytest.mark.parametrize(
    ("folder", "module"),
    [
        (ISDNET, isdnet),
        (FCTL, fctl),
        (MAGNET, magnet),
        (OFFICIAL, glnet),
        (CASCADEPSP, cascadepsp),
        (F2NET, f2net),
        (POINTREND, pointrend),
        (RUE, rue),
    ],
)
def test_a_folder_is_known_by_its_files(folder: Path, module: Any) -> None:
    assert __main__.method_of(folder, read(folder)) is module.METHOD


@pytest.mark.parametrize(
    "name",
    [f"official/golden_{case}" for case in "ABC"]
    + ["isdnet/golden_A", "isdnet/golden_B", "fctl/golden_fctl_A", "fctl/golden_fctl_deepglobe"]
    + ["rue/golden_A", "rue/golden_B"],
)
def test_the_formulas_make_what_the_golden_data_was_made_of(name: str) -> None:
    table = golden(name).table
    config = table["config"]
    size = (config["h"], config["w"])
    assert fingerprint(formulas.image(*size, config["seed"])) == table["image_sha256"]
    if "label_sha256" in table:
        made = formulas.label(*size, config["seed"], config.get("n_class", 7))
        assert fingerprint(made) == table["label_sha256"]


@pytest.mark.parametrize("case", ["A", "B", "C"])
def test_glnet_s_weights_are_those_of_the_golden_data(case: str) -> None:
    table = golden(f"official/golden_{case}").table
    shapes = json.loads((OFFICIAL / "state_dict_keys.json").read_text())
    for key, digest in table["weight_sha256_examples"].items():
        weight = formulas.weight(key, shapes[key]["shape"], table["config"]["seed"])
        assert fingerprint(weight) == digest, key


def test_isdnet_s_weights_are_those_of_the_golden_data() -> None:
    keys = json.loads((ISDNET / "state_dict_keys.json").read_text())
    for key, digest in keys["weight_sha256_seed0"].items():
        shape = keys["r18"]["keys"][key]
        assert fingerprint(np.asarray(isdnet.weight(key, shape, 0))) == digest, key


@pytest.mark.parametrize(
    ("folder", "weight", "name"),
    [
        (CASCADEPSP, cascadepsp.weight, "keys"),
        (F2NET, f2net.weight, "keys"),
        (POINTREND, pointrend.weight, "keys_7_classes"),
        (RUE, rue.weight, "keys"),
    ],
)
def test_weights_are_those_of_the_golden_data(folder: Path, weight: Any, name: str) -> None:
    keys = json.loads((folder / "state_dict_keys.json").read_text())
    for key, digest in keys["sha256_float32"].items():
        assert fingerprint(np.asarray(weight(key, keys[name][key], 0))) == digest, key


def test_fctl_s_weights_and_windows_are_those_of_the_golden_data() -> None:
    case = golden("fctl/golden_fctl_A")
    shapes = json.loads((FCTL / "state_dict_keys.json").read_text())["FCN8_mode3"]
    config = case.config
    for key, digest in case["weight_sha256_examples"].items():
        assert fingerprint(fctl.weight(key, shapes[key], config["seed"])) == digest, key
    spec = fctl.spec_of(case, "contexts")
    image = image_of(config["h"], config["w"], config["seed"])
    boxes = boxes_of(config["h"], config["w"], spec)
    assert [[box.top, box.left] for box in boxes] == case["grid"]["top_left_px"]
    own = [boxes[config["patch"]]]
    found = {
        "patch": cut(image, own),
        "context10": contexts(image, own, spec.medium),
        "context15": contexts(image, own, spec.large_factor),
    }
    for name, digest in case["inputs_sha256"].items():
        assert fingerprint(found[name][0].permute(1, 2, 0).numpy()) == digest, name


def test_magnet_s_weights_are_those_of_the_golden_data() -> None:
    keys = json.loads((MAGNET / "state_dict_keys.json").read_text())
    for text, digest in json.loads((MAGNET / "examples.json").read_text()).items():
        name, seed, key = re.fullmatch(r"weight (.*) seed (\d+) (.*)", text).groups()  # type: ignore[union-attr]
        part, *number = name.split()
        prefix = f"resnet_refine{number[0]}." if number else ""
        values = np.asarray(formulas.weight(prefix + key, keys[part][key], int(seed)))
        louder = magnet.LOUDER if key == "seg_conv.weight" else 1
        assert fingerprint(values * np.float32(louder)) == digest, text


# --- what must be noticed ---------------------------------------------------------------------


def test_one_quirk_of_magnet_that_is_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = magnet.spec_of

    def without_one(config: Any) -> Any:
        names = get_args(magnet_spec.Quirk)
        quirks = tuple(name for name in names if name != "displaced-crops")
        return replace(original(config), official=quirks)

    monkeypatch.setattr(magnet, "spec_of", without_one)
    missed = failed(compared("magnet/golden_B_fast"))
    assert any(text.startswith("s1_coarse_crop (share)") for text in missed)
    assert not any(text.startswith("s0_prob") for text in missed)


def test_another_score_of_patches_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their means instead of their centres: other patches are seen."""
    original = rue.spec_of

    def without_one(config: Any) -> Any:
        spec = original(config)
        return replace(spec, official=tuple(q for q in spec.official if q != "centre-scores"))

    monkeypatch.setattr(rue, "spec_of", without_one)
    missed = failed(compared("rue/golden_A_select120"))
    assert any(text.startswith("selected patches") for text in missed)
    assert any(text.startswith("logits (share)") for text in missed)
    assert not any(text.startswith(("entropy", "score_map", "loss_weights")) for text in missed)


@pytest.mark.parametrize(
    ("name", "mode", "key", "moved", "kept"),
    [
        ("isdnet/golden_B", "", "refine_head.fuse16.spatial_mlp.0.weight", "output", "deep_feat"),
        ("pointrend/golden_head_A", "", "point.fcs.1.conv.weight", "step 0, logits", "coarse"),
        ("pointrend/train_head_T", "", "point.fc_seg.weight", "loss point.pointloss_ce", "points"),
        (
            "f2net/golden_modules_A",
            "",
            "high.vssm.layers.1.blocks.0.op.out_proj.weight",
            "high.stage1",
            "high.stage0",
        ),
        ("rue/golden_A_select120", "", "decode_head.dappm.process3.2.weight", "logits", "c5"),
        ("official/golden_C", "global", "resnet_global.layer3.2.conv2.weight", "output_g", "image"),
    ],
)
def test_a_weight_that_is_off_by_a_thousandth_is_noticed(
    name: str, mode: str, key: str, moved: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = formulas.weight

    def altered(own: str, *how: Any, **more: Any) -> Any:
        value = original(own, *how, **more)
        return value * np.float32(1.001) if own == key else value

    monkeypatch.setattr(formulas, "weight", altered)
    monkeypatch.setattr(glnet, "_weight", altered)
    missed = failed(compared(name, mode))
    assert any(text.startswith(f"{moved} (share)") for text in missed)
    assert not any(text.startswith(kept) for text in missed)


@pytest.mark.slow
def test_what_fctl_fuses_is_what_its_released_code_fuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch of the DeepGlobe variant: windows, three VGGs, correlations, fusion. The head's 120
    million weights take longer than all else and are left 0: what comes behind must not fit."""
    original = fctl.weight

    def without_head(key: str, shape: Sequence[int], seed: int) -> Any:
        head = key.startswith(("output.0.", "output.3."))
        return np.zeros(shape, np.float32) if head else original(key, shape, seed)

    monkeypatch.setattr(fctl, "weight", without_head)
    case = golden("fctl/golden_fctl_deepglobe")
    found = fctl.patch_maps(case, "contexts", *fctl.prepared(case, "contexts", "float32"))
    compare = Comparison("deepglobe", "contexts", "float32")
    for name, whole in found.items():
        compare.statistics(name, whole, case["stats"][name])
    assert len(found) == 8
    behind = {text.split(",")[0] for text in failed(compare.checks)}
    assert behind == {"patch_output", "patch_logits"}


# --- enlarging by nearest ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [(410, 7), (7, 410), (410, 410), (80, 40), (33, 77)])
def test_nearest_finds_the_pixels_that_the_released_code_finds_in_float32(
    size: tuple[int, int],
) -> None:
    """40 -> 410 px: torch itself takes 5 other rows in float64."""
    map = torch.arange(1600.0).view(1, 1, 40, 40)
    expected = F.interpolate(map, size, mode="nearest")
    plain = resize(map.double(), size, "nearest")
    with NearestInFloat32():
        found = resize(map.double(), size, "nearest")
        bilinear = resize(map.double(), size)
    assert found.dtype == torch.float64
    assert found.equal(expected.double())
    assert bilinear.equal(resize(map.double(), size))
    rows_apart = (plain != expected).any(-1).sum()
    assert rows_apart == (5 if size == (410, 7) else rows_apart)


@pytest.mark.slow
def test_labels_in_float64_are_those_of_float32(tmp_path: Path) -> None:
    """A case of 410 x 410 px whose global logits have 40 x 40."""
    table = dict(golden("official/golden_C").table)
    table["config"] = table["config"] | {"h": 410, "w": 410, "size_g": [160, 160]}
    table["modes"] = {"1": {"stats": {}, "confusion": {}, "pred_sha256": {"pred_global": ""}}}
    for key in ("image_sha256", "label_sha256", "image_glb_resized_sha256"):
        del table[key]
    setting = glnet.setting_of(Golden(Path("golden_N.json"), table))
    image, small, _ = setting.scene(setting.seed)
    with torch.inference_mode():
        network = setting.network("global", "float32")
        logits = glnet.evaluate(network, setting, "global", image, small)["output_g"]
    labels = resize(torch.from_numpy(logits), (410, 410), "nearest")[0].argmax(0).to(torch.uint8)
    (tmp_path / "golden_N.json").write_text(json.dumps(table))
    np.savez(tmp_path / "golden_N.npz", m1_pred_global=labels.numpy())
    noise = {"m1_output_g": {"max_abs_diff": 1e-5}}
    (tmp_path / "noise_f32_vs_f64_N.json").write_text(json.dumps(noise))
    for job in __main__.jobs(tmp_path):
        assert failed(__main__.compare(job).checks) == [], job.dtype


# --- one comparison ---------------------------------------------------------------------------


def test_labels_may_differ_where_two_classes_tie() -> None:
    scores = np.zeros((2, 2, 2))
    scores[0] = [[1, 2], [3, 4]]
    scores[1] = [[1 + 1e-6, 0], [0, 0]]
    compare = Comparison("A", "whole", "float32")
    compare.labels("tie", scores, np.array([[0, 0], [0, 0]], np.uint8))
    compare.labels("wrong", scores, np.array([[0, 1], [0, 0]], np.uint8))
    compare.labels("tie by counts", scores, sha256="other", counts=[4, 0])
    compare.labels("wrong by counts", scores, sha256="other", counts=[1, 3])
    compare.labels("no tie", scores * [[[1]], [[0.5]]], sha256="other", counts=[4, 0])
    compare.labels("nothing but a hash", scores, sha256="other")
    assert [check.ok for check in compare.checks] == [True, False, True, False, False, False]


def test_a_tie_is_what_two_roundings_can_turn() -> None:
    scores = np.zeros((3, 1, 2))
    scores[0] = [[-1, -1]]
    scores[1, 0] = RELATIVE * np.array([1.9, 2.1])
    assert ties(scores).tolist() == [[True, False]]
    assert ties(scores, apart=2.5 * RELATIVE).tolist() == [[True, True]]
    assert not ties(scores[:1]).any(), "one class ties with nothing"


def test_a_case_has_a_row_and_each_failure_one() -> None:
    compare = Comparison("A", "whole", "float32")
    compare.check("logits", 1e-6, 3e-6)
    compare.check("labels", float("nan"), 0)
    lines = rows(compare)
    assert len(lines) == 2
    assert lines[0].split()[:5] == ["A", "whole", "float32", "2", "1"]
    assert lines[1] == "FAILED A whole float32: labels differs by nan where 0 is allowed"
    assert [check.ok for check in compare.checks] == [True, False]


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("isdnet/golden_A.json:deep_input", (1, 1, 4, 4)),
        ("isdnet/golden_B.json:fuse8_c", (1, 32, 2, 2)),
        ("fctl/golden_fctl_A.json:m3_patch_corr_logits_large", (1, 8, 8)),
        ("fctl/golden_fctl_A.json:m3_patch_fusion_weights", (1, 1, 16, 1, 1)),
        ("fctl/golden_fctl_deepglobe.json:scores", (1, 3, 3)),
        ("official/golden_A.json:m3_ps3_l", (6, 64, 1, 1)),
    ],
)
def test_the_kept_part_of_an_array_is_found_by_its_shape(
    name: str, stride: tuple[int, ...]
) -> None:
    """Equal samples are no difference, one that is moved by a thousandth is."""
    file, key = name.split(":")
    case = golden(file.removesuffix(".json"))
    kept = case.arrays[key]
    stats = case.table.get("stats") or case["modes"]["3"]["stats"]
    shape = (stats.get(key) or stats[key.removeprefix("m3_")])["shape"]
    whole = np.random.default_rng(0).standard_normal(shape)
    sample = whole[tuple(slice(None, None, step) for step in stride)].reshape(kept.shape).copy()
    assert difference(whole, sample, 1e-9) == 0
    sample.ravel()[-1] += 1e-3
    assert difference(whole, sample, 1e-9) == pytest.approx(1e-3)


def test_a_sample_whose_step_two_lengths_leave_open_is_found() -> None:
    whole = np.arange(7.0)
    for step in (4, 5, 6):
        assert difference(whole, whole[::step], 0) == 0
    assert difference(whole, np.array([0.0, 1.0]), 0) == 3
    assert difference(whole, np.zeros(9), 0) == float("inf")


def test_images_are_resized_as_opencv_does() -> None:
    """Worked out on paper: to half the sides means, else weights of 11 bits, products cut off."""
    image = torch.tensor([[[0, 10, 255, 7], [4, 4, 1, 2]]], dtype=torch.uint8)
    half = magnet.resize_as_opencv(image, (1, 2))
    assert half.tolist() == [[[(0 + 10 + 4 + 4 + 2) // 4, (255 + 7 + 1 + 2 + 2) // 4]]]
    wide = magnet.resize_as_opencv(image, (2, 8))[0, 0].tolist()
    # Shares of a quarter and three quarters between 0, 10, 255 and 7.
    assert wide == [0, 3, 8, 71, 194, 193, 69, 7]


def test_a_reducer_is_resnet_50_s() -> None:
    assert isdnet.spec_of({"depth": 50, "reduce": True}).depth == 50
    for config in ({"depth": 18, "reduce": True}, {"depth": 50, "reduce": False}):
        with pytest.raises(UserError, match="reducer is ResNet-50's"):
            isdnet.spec_of(config)


# --- the command and what it refuses ----------------------------------------------------------


def test_the_command_says_what_fails_and_exits_with_1(tmp_path: Path) -> None:
    """A case without noise file and with one wrong number, as a program; a line as each is done."""
    content = json.loads((OFFICIAL / "golden_C.json").read_text())
    content["modes"] = {"1": content["modes"]["1"]}
    content["modes"]["1"]["confusion"]["metrics_global"][0][0] += 40
    (tmp_path / "golden_Z.json").write_text(json.dumps(content))
    shutil.copy(OFFICIAL / "golden_C.npz", tmp_path / "golden_Z.npz")
    done = run(sys.executable, "-m", "reference", str(tmp_path), cwd=ROOT, ok=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: 2 of ")
    lines = [line.split()[:3] for line in done.stdout.splitlines()[1:]]
    assert lines == [
        ["Z", "global", "float32"],
        ["FAILED", "Z", "global"],
        ["Z", "global", "float64"],
        ["FAILED", "Z", "global"],
    ]
    failing = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert all("confusion metrics_global (pixels) differs by 20" in line for line in failing)


def test_json_has_every_comparison(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(case: Golden, mode: str, compare: Comparison) -> None:
        compare.check(case.path.name, 1, 0)

    monkeypatch.setattr(isdnet, "METHOD", replace(isdnet.METHOD, check=check))
    parser = argparse.ArgumentParser()
    __main__.command(parser)
    given = parser.parse_args([str(ISDNET), "--json", "--threads=1", "--precision=float64"])
    with pytest.raises(SystemExit, match="error: 4 of 4 comparisons do not hold"):
        given.work(given)
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [one["ok"] for one in found] == [False] * 4
    assert {one["dtype"] for one in found} == {"float64"}
    assert [one["mode"] for one in found] == ["whole", "whole", "bn_eval", "bn_train"]
    assert "FAILED A whole float64: golden_A.json differs by 1 where 0 is" in printed.err


def test_the_command_is_one_sentence_where_nothing_fits(tmp_path: Path) -> None:
    (tmp_path / "golden_A.json").write_text('{"config": {"h": 3}}')
    done = run(sys.executable, "-m", "reference", str(tmp_path), cwd=ROOT, ok=False)
    assert done.returncode == 1
    assert "has golden data of none of" in done.stderr
    assert "Traceback" not in done.stderr


SIZES = {"seed": 0, "h": 64, "w": 64, "size_g": [64, 64], "size_p": [64, 64], "sub_batch": 1}
CONTEXT = {**SIZES, "context10": 2, "n_class": 3, "patch": 0}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("", "", "has neither golden_"),
        ("other.json", "{}", "has neither golden_"),
        ("golden_A.json", "{", r"golden_A\.json is not JSON"),
        ("golden_A.json", b"\xff\xfe\x00", r"golden_A\.json is not JSON"),
        ("golden_A.json", "[" * 100_000, r"golden_A\.json is not JSON"),
        ("golden_A.json", "[]", r"golden_A\.json is not a JSON table"),
        ("golden_A.json", {"config": {"h": 3}}, "none of cascadepsp, f2net, fctl, glnet"),
        ("golden_A.json", {"config": []}, r"golden_A\.json is not golden data.*`config`"),
        ("golden_A.json", {"config": {"depth": 18}}, "'stats' is missing"),
        ("golden_A.json", {"config": SIZES, "modes": {"x": {}}}, "has the unknown mode 'x'"),
        ("golden_A.json", {"config": SIZES, "modes": {}}, "has no modes"),
        ("golden_A.json", {"config": SIZES, "modes": 3}, r"golden_A\.json is not golden data"),
        ("golden_A.json", {"config": SIZES}, "has no modes"),
        ("golden_A.json", {"config": CONTEXT, "modes": {"one": {}}}, "has the unknown mode 'one'"),
        ("golden_A.json", {"config": CONTEXT, "modes": {"1": {}}}, "'stats' is missing"),
        ("golden_A.json", {"config": {"size_g": 5}, "modes": {"1": {}}}, "is not golden data"),
        ("train_A.json", {"config": SIZES, "mode": "global"}, "has the unknown mode 'global'"),
        ("train_A.json", {"config": CONTEXT, "mode": None}, "has the unknown mode None"),
        ("train_A.json", {"config": {"depth": 18}, "bn_eval": 3}, r"train_A\.json is not golden"),
        ("train_A.json", {"mode": 1, "losses_in_call_order": [[1]]}, "'image_seeds' is missing"),
        ("golden_A.json", {"config": {"scales_wh": [[1]]}}, r"golden_A\.json is not golden data"),
        ("golden_A.json", {"config": {"patches_per_side": 4}}, "'stats' is missing"),
        ("golden_A.json", {"ref_logits": {"shape": [1, 2]}}, r"golden_A\.json is not golden data"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    name: str, text: Any, message: str, tmp_path: Path
) -> None:
    if name:
        content = text if isinstance(text, str | bytes) else json.dumps(text)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        [__main__.compare(job) for job in __main__.jobs(tmp_path)]
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_and_arrays_that_are_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        __main__.jobs(tmp_path / "nothing")
    case = tmp_path / "golden_A.json"
    config = {"depth": 18, "seed": 0, "h": 8, "w": 8}
    case.write_text(json.dumps({"config": config, "stats": {}}))
    np.savez(tmp_path / "golden_A.npz", x=np.zeros(1000))
    whole = (tmp_path / "golden_A.npz").read_bytes()
    for damaged in (whole[:-200], b"PK\x03\x04", b"", whole.replace(b"NUMPY", b"YPMUN")):
        (tmp_path / "golden_A.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"golden_A\.npz cannot be read as arrays"):
            __main__.compare(__main__.jobs(tmp_path)[0])
    np.savez(tmp_path / "golden_A.npz", x=np.array([{}], object))
    with pytest.raises(UserError, match=r"golden_A\.npz cannot be read as arrays"):
        __main__.compare(__main__.jobs(tmp_path)[0])


def test_a_step_without_sizes_needs_a_case_of_its_size(tmp_path: Path) -> None:
    shutil.copy(OFFICIAL / "train_mode1.json", tmp_path)
    with pytest.raises(UserError, match="no evaluation case beside it fits"):
        __main__.compare(__main__.jobs(tmp_path)[0])
    for name in ("golden_A.json", "golden_A.npz"):
        shutil.copy(OFFICIAL / name, tmp_path)
    step = next(one for one in read(tmp_path) if one.is_step)
    assert glnet.setting_of(step).spec.global_size == (128, 128)


def test_a_golden_array_of_another_shape_is_a_difference() -> None:
    compare = Comparison("A", "whole", "float32")
    compare.map("map", np.zeros((2, 3)), None, np.zeros((3, 3)))
    assert failed(compare.checks) == ["map (share): inf"]


def test_the_cause_of_a_sentence_is_kept() -> None:
    with pytest.raises(UserError, match="'x' is missing") as caught, format_of(Path("a.json")):
        {}["x"]
    assert isinstance(caught.value.__cause__, KeyError)
