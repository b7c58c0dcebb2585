"""MagNet: what it costs, where it looks, what the released code's quirks do, and the released
names of its weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MAGNET, call_command
from torch.nn import functional as F

from baselines.magnet.inference import STRATEGIES, Plan, Ways, highest, margin, progress
from baselines.magnet.model import MagNet, build
from baselines.magnet.patches import align, boxes_of, places
from baselines.magnet.spec import Spec
from baselines.magnet.training import given, hard_example_loss, phases, view
from bench.config import strict
from bench.errors import UserError
from bench.memory.runs import predict_run
from bench.optim import UNLABELLED
from bench.run import run_of
from bench.tiling import Box, coverage
from reference.checkpoint_io import from_magnet, import_magnet_command
from reference.keys import magnet_key

GOLDEN = Path(__file__).parent / "golden/magnet"
SMALL = Spec(**MAGNET)
IMAGE = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8, generator=torch.manual_seed(3))
LABEL = torch.randint(0, 3, (70, 90), dtype=torch.uint8, generator=torch.manual_seed(4))


@pytest.fixture(scope="module")
def network() -> MagNet:
    torch.manual_seed(0)
    model = build(SMALL, 3).eval().requires_grad_(False)
    model.refine[0].seg_conv.weight.mul_(30)  # so that it is sure of something
    return model


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def watched(
    network: MagNet, spec: Spec, plan: Plan, image: torch.Tensor = IMAGE
) -> dict[str, torch.Tensor]:
    """The maps of the last scale, and the final one."""
    found: dict[str, torch.Tensor] = {}

    def see(name: str, value: torch.Tensor) -> None:
        found[name] = value.clone()

    with torch.inference_mode():
        found["last"] = progress(network, image, spec, plan, Ways(see=see))
    return found


def test_names_and_shapes_are_those_of_the_released_weights() -> None:
    golden = json.loads((GOLDEN / "state_dict_keys.json").read_text())
    with torch.device("meta"):
        model = build(Spec(), 7)
    own = {magnet_key(k): list(v.shape) for k, v in model.backbone.state_dict().items()}
    assert own == golden["backbone"]
    own = {key: list(value.shape) for key, value in model.refine[0].state_dict().items()}
    assert own == golden["refinement"]
    counts = [sum(p.numel() for p in m.parameters()) for m in (model.backbone, model.refine[0])]
    assert counts == [28_064_839, 88_092]


def test_released_checkpoints_are_imported(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build(Spec(scales=(0.25, 0.5, 1), refinements=2), 3)
    ours = model.state_dict()
    backbone = {f"model.{magnet_key(k)}": v for k, v in model.backbone.state_dict().items()}
    files = [tmp_path / f"{number}.pth" for number in range(3)]
    torch.save({"state_dict": backbone}, files[0])
    for file, module in zip(files[1:], model.refine, strict=True):
        torch.save(module.state_dict(), file)
    call_command(import_magnet_command, *files, "-o", tmp_path / "magnet.pt")
    back = torch.load(tmp_path / "magnet.pt", weights_only=True)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], value) for key, value in ours.items())
    del backbone["model.smooth3_2.bias"]
    with pytest.raises(UserError, match=r"\(backbone\): 1 keys are missing.*smooth3_2.bias"):
        from_magnet(backbone, [model.refine[0].state_dict()])
    with pytest.raises(UserError, match="is missing: get the released file again"):
        call_command(
            import_magnet_command, tmp_path / "nothing.pth", files[1], "-o", tmp_path / "x.pt"
        )


def test_what_it_costs_is_what_is_known_of_the_released_code() -> None:
    """Passes of both networks; memory of the released code within 6 %, the image on the host."""
    found = {
        (strategy, official): predict_run(
            run_of("baselines/magnet", strategy, Spec(official=official), 7), (2448, 2448), "cuda"
        )
        for strategy, official in (("progressive", True), ("fast", True), ("progressive", False))
    }
    assert found["progressive", True].flops == pytest.approx(21 * 85.65e9 + 20 * 44.79e9, rel=2e-3)
    assert found["fast", True].flops == pytest.approx(7 * 85.65e9 + 6 * 44.79e9, rel=2e-3)
    assert found["progressive", True].device_bytes == pytest.approx(1165e6, rel=0.06)
    assert found["fast", True].device_bytes == pytest.approx(912e6, rel=0.06)
    lean = found["progressive", False].device_bytes
    assert lean < 0.9 * found["progressive", True].device_bytes


@pytest.mark.parametrize("size", [(612, 612), (1224, 1224), (171, 260), (9, 700)])
def test_patches_cover_the_image_unless_as_released(size: tuple[int, int]) -> None:
    spec = Spec(patch_px=64)
    boxes = boxes_of(size, spec)
    assert coverage(boxes, size).min() == 1
    assert len({box[2:] for box in boxes}) == 1
    released = boxes_of(size, replace(spec, official=("truncated-grid",)))
    assert len(released) == len(boxes)


def test_the_released_grid_is_columns_first_and_leaves_the_last_row() -> None:
    spec = Spec(patch_px=(64, 96), official=("truncated-grid",))
    boxes = boxes_of((171, 260), spec)
    assert [box[:2] for box in boxes[:4]] == [(0, 0), (53, 0), (106, 0), (0, 82)]
    assert coverage(boxes, (171, 260))[..., 170, :].max() == 0


def test_a_crop_is_roi_align() -> None:
    """By hand: a map that rises by 1 a column; a cell of 2 columns has two samples."""
    map = torch.arange(8.0).expand(1, 4, 8)
    at = torch.tensor([0, 2])
    whole = align(map, at, (4, 4), (4, 4))
    assert torch.equal(whole[0, 0], torch.tensor([2.0, 3, 4, 5])), "it shows what the patch shows"
    displaced = align(map, at, (4, 4), (2, 2), displaced=True)
    assert displaced[0, 0].tolist() == [3, 5]  # samples at 2.5, 3.5 and 4.5, 5.5
    edge = align(map, torch.tensor([0.0, 5.5]), (4, 2.5), (4, 1), displaced=True)
    assert edge[0, 0].tolist() == pytest.approx([(5.9166667 + 6.75 + 7) / 3])  # 3rd is clamped
    torch.manual_seed(0)
    map = torch.rand(3, 30, 40)
    shrunk = align(map, torch.tensor([3, 5]), (20, 20), (10, 10))
    assert torch.allclose(shrunk, F.avg_pool2d(map[:, 3:23, 5:25], 2), atol=1e-6)


def test_margin_is_largest_minus_second() -> None:
    map = torch.rand(5, 6, 7, generator=rng()).softmax(0)
    best = map.topk(2, 0).values
    assert torch.equal(margin(map), best[0] - best[1])


def test_how_many_pixels_are_replaced() -> None:
    assert Plan(None, 0.75).count((128, 192), 4, 4) == 18432
    assert Plan(3, 0.9).count((128, 192), 4, 3) == 16588
    assert Plan(2, 6000).count((101, 150), 4, 2) == 6000
    assert Plan(2, 6000).count((101, 70), 4, 2) == 101 * 35
    chosen = highest(torch.tensor([[0.0, 3], [2, 1]]), 2)
    assert chosen.tolist() == [[False, True], [True, False]]


def test_fast_refines_what_is_uncertain_inside_its_patches(network: MagNet) -> None:
    spec = replace(SMALL, scales=(0.5, 1.0), frame_px=2)
    seen = watched(network, spec, Plan(2, 0.9))
    scores = seen["patch_uncertainty"]
    boxes = boxes_of((70, 90), spec)
    best = [boxes[i][:2] for i in scores.argsort(descending=True)[:2].tolist()]
    assert seen["patch_order"].tolist() == [list(start) for start in best]
    inside = torch.zeros(70, 90, dtype=torch.bool)
    for start in seen["patch_order"]:
        inside[places(start, (40, 40), 2)] = True
    changed = (seen["last"] != seen["upscaled"])[0].any(0)
    assert changed.any()
    assert not (changed & ~inside).any()
    assert torch.equal(seen["last"][0][:, changed], seen["merged"][:, changed])


def test_as_released_fast_looks_at_the_least_uncertain_and_scores_their_frames(
    network: MagNet,
) -> None:
    spec = replace(SMALL, scales=(0.5, 1.0), smooth_px=1, official=("least-uncertain",))
    seen = watched(network, spec, Plan(2, 0.9))
    scores = seen["patch_uncertainty"]
    best = [boxes_of((70, 90), spec)[i][:2] for i in scores.argsort()[:2].tolist()]
    assert seen["patch_order"].tolist() == [list(start) for start in best]
    spec = replace(spec, official=("zero-inside",), input_px=(70, 90))
    seen = watched(network, spec, Plan(2, 0.9))
    inside = seen["inside"]
    assert inside.any()
    assert seen["error_score"][inside].max() == 0
    assert seen["error_score"][~inside].max() > 0


def test_overlaps_are_means_or_as_released_halved(network: MagNet) -> None:
    """A map of probabilities adds up to 1 wherever a patch lies."""
    plan = Plan(None, 0.5)
    sums = watched(network, replace(SMALL, frame_px=0), plan)["merged"].sum(0)
    assert sums.min() == pytest.approx(1, abs=1e-5)
    spec = replace(SMALL, frame_px=0, official=("overwritten-overlaps",))
    sums = watched(network, spec, plan)["merged"].sum(0)
    counts = coverage(boxes_of((70, 90), spec), (70, 90))[0, 0]
    assert torch.allclose(sums * counts, torch.ones(70, 90), atol=1e-5)


def test_the_first_scale_is_the_whole_image_or_as_released_its_first_patch(
    network: MagNet,
) -> None:
    changed = IMAGE.clone()
    changed[:, 60:, 60:] = 255 - changed[:, 60:, 60:]
    for official, same in (((), False), (("first-patch",), True)):
        spec = replace(SMALL, scales=(1.0, 1.0), official=official)
        first, second = (
            watched(network, spec, Plan(0, 0.5), image)["last"] for image in (IMAGE, changed)
        )
        assert torch.equal(first, second) is same


@pytest.mark.parametrize("quirk", ["kept-results", "sampled-mask"])
def test_what_is_kept_and_how_a_mask_is_read_changes_next_to_nothing(
    network: MagNet, quirk: Any
) -> None:
    predict = STRATEGIES["fast"].predict
    with torch.inference_mode():
        plain = predict(network, IMAGE, SMALL)
        changed_labels = predict(network, IMAGE, replace(SMALL, official=(quirk,)))
    assert (plain != changed_labels).float().mean() < (0.01 if quirk == "sampled-mask" else 1e-9)


def test_displaced_crops_change_what_is_refined(network: MagNet) -> None:
    plain, displaced = (
        watched(network, replace(SMALL, official=official), Plan(None, 0.75))
        for official in (False, ("displaced-crops",))
    )
    assert torch.equal(plain["early"], displaced["early"])
    assert not torch.equal(plain["coarse_crop"], displaced["coarse_crop"])
    assert not torch.equal(plain["last"], displaced["last"])


def test_the_refinement_is_given_the_same_order_in_training_unless_as_released(
    network: MagNet,
) -> None:
    views = [view(IMAGE, LABEL, SMALL, "refinement", rng(seed)) for seed in (1, 2)]
    fine, before = given(network, views, SMALL)
    assert fine.shape == before.shape == (2, 3, 64, 64)
    swapped = given(network, views, replace(SMALL, official=("swapped-training",)))
    assert torch.equal(swapped[0], before)
    assert torch.equal(swapped[1], fine)
    coarse_first = given(network, views, replace(SMALL, coarse_first=True))
    assert torch.equal(coarse_first[0], before)


def test_a_patch_and_its_crop_show_the_same_place() -> None:
    """An image that is its own network: brightness rises with the column."""
    image = torch.arange(0, 180, 2, dtype=torch.uint8).expand(3, 70, 90).contiguous()
    for seed in range(4):
        seen = view(image, LABEL, SMALL, "refinement", rng(seed))
        assert seen["label"].shape == (64, 64)
        top, left, height, width = seen["boxes"].tolist()
        crop = align(
            seen["coarse"].float(), torch.tensor([top, left]), (height, width), SMALL.input_size
        )
        apart = (crop - seen["fine"].float()).abs()[:, :, 2:-2].max()
        assert apart < 2.5, "less than a pixel and a half"


def test_the_backbone_sees_what_a_patch_of_some_scale_shows() -> None:
    ruler = torch.arange(90, dtype=torch.uint8).expand(3, 70, 90).contiguous()
    spec = replace(SMALL, scales=(0.5, 1.0))
    spans, lefts = set(), set()
    for seed in range(20):
        seen = view(ruler, LABEL, spec, "backbone", rng(seed))["image"][0, 0].int()
        spans.add(int(seen.max() - seen.min() + 1))
        if seen.max() - seen.min() < 50:
            lefts.add(int(seen.min()))
    assert spans == {40, 90}
    assert len(lefts) > 3
    corner_crop = replace(spec, official=("corner-crop",))
    corners = [
        view(ruler, LABEL, corner_crop, "backbone", rng(s))["image"][0, 0].min() for s in range(20)
    ]
    assert max(corners) == 0


def test_hard_examples() -> None:
    """By hand: probabilities of the true class .2, .4, .6, .9 and one without a label."""
    q = torch.tensor([0.2, 0.4, 0.6, 0.9, 0.1])
    logits = torch.stack([q, 1 - q]).log().view(1, 2, 1, 5)
    labels = torch.tensor([[[0, 0, 0, 0, UNLABELLED]]], dtype=torch.uint8)

    def expected(count: int) -> float:
        return float(-q[:count].log().mean())

    assert hard_example_loss(logits, labels, 1, 0.3).item() == pytest.approx(expected(1))
    assert hard_example_loss(logits, labels, 2, 0.3).item() == pytest.approx(expected(2))
    assert hard_example_loss(logits, labels, 1, 0.7).item() == pytest.approx(expected(3))
    assert hard_example_loss(logits, labels, 99, 0.3).item() == pytest.approx(expected(3))
    assert hard_example_loss(logits, labels, 99, 0.95).item() == pytest.approx(expected(4))
    none = torch.full_like(labels, UNLABELLED)
    assert hard_example_loss(logits, none, 99, 0.95).item() == 0


def test_each_later_scale_may_have_a_module_of_its_own(network: MagNet) -> None:
    spec = replace(SMALL, refinements=2)
    model = build(spec, 3).eval()
    names = [phase.name for phase in phases(model, spec)]
    assert names == ["backbone", "refinement-1", "refinement-2"]
    sides = [view(IMAGE, LABEL, spec, name, rng())["boxes"][3].item() for name in names[1:]]
    assert sides == pytest.approx([64 * 40 / 45, 64 * 40 / 90])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"smooth_px": 4}, "smooth_px.*a median has a middle where its side is odd"),
        ({"refinements": 3}, "one refinement module, or one for each"),
        ({"scales": []}, "scales"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(setting: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"(?i){message}"):
        strict(Spec, setting, "params.yaml: models.magnet.spec")


def test_a_box_smaller_than_its_frame_is_refined_nowhere() -> None:
    rows, columns = places(torch.tensor([0, 0]), Box(0, 0, 9, 30)[2:], 10)
    assert rows.numel() == 0
    assert columns.tolist() == list(range(10, 20))
