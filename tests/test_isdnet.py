"""ISDNet: sizes, what it costs, what its settings do, and the released names of its weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import call_command
from torch.nn import functional as F

from baselines.isdnet.inference import STRATEGIES, scores
from baselines.isdnet.model import ISDNet, build, start
from baselines.isdnet.spec import Spec
from baselines.isdnet.training import affinity_loss, backward, losses, phases, view
from baselines.parts import shrunk
from bench.errors import UserError
from bench.memory.runs import predict_run
from bench.optim import UNLABELLED
from bench.run import run_of
from reference.checkpoint_io import from_isdnet, import_isdnet_command, shapes_of
from reference.keys import ISDNET_ALIASES, isdnet_key

GOLDEN = Path(__file__).parent / "golden/isdnet"
IMAGE = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8, generator=torch.manual_seed(3))
LABEL = torch.randint(0, 3, (70, 90), dtype=torch.uint8, generator=torch.manual_seed(4))


@pytest.fixture(scope="module")
def network() -> ISDNet:
    torch.manual_seed(0)
    return build(Spec(), 3).eval().requires_grad_(False)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("depth", [18, 50])
def test_names_and_shapes_are_those_of_the_released_weights(depth: Any) -> None:
    golden = json.loads((GOLDEN / "state_dict_keys.json").read_text())[f"r{depth}"]
    ours = shapes_of("baselines.isdnet", 7, depth=depth)
    assert {isdnet_key(key): list(shape) for key, shape in ours.items()} == golden["keys"]
    with torch.device("meta"):
        parts = build(Spec(depth=depth), 7).named_children()
    assert (
        sum(p.numel() for _, part in parts for p in part.parameters()) == golden["params"]["total"]
    )


def test_a_released_checkpoint_is_imported(tmp_path: Path) -> None:
    torch.manual_seed(1)
    ours = build(Spec(), 3).state_dict()
    theirs = {isdnet_key(key): value for key, value in ours.items()}
    prefix = "refine_head.stdc_net.features."
    aliases = {
        ISDNET_ALIASES[0] + key.removeprefix(prefix): value
        for key, value in theirs.items()
        if key.startswith(prefix)
    }
    file = tmp_path / "iter_80000.pth"
    torch.save({"meta": {"iter": 80000}, "state_dict": theirs | aliases}, file)
    call_command(import_isdnet_command, file, "-o", tmp_path / "isdnet.pt")
    back = torch.load(tmp_path / "isdnet.pt", weights_only=True)
    build(Spec(), 3).load_state_dict(back)
    assert all(torch.equal(back[key], value) for key, value in ours.items())
    del theirs["refine_head.fuse8.g1"]
    with pytest.raises(UserError, match=r"1 keys are missing.*refine_head.fuse8.g1"):
        from_isdnet(theirs)
    with pytest.raises(UserError, match="is missing: get the released file again"):
        call_command(import_isdnet_command, tmp_path / "nothing.pth", "-o", tmp_path / "x.pt")


def test_what_it_costs_is_what_is_known_of_the_released_code() -> None:
    """Operations exactly; memory within 2 %, weights apart: of the backbone's maps, which the
    released code holds as well, only the last is held here."""
    released, lean, deep = (
        predict_run(run_of("baselines/isdnet", "whole", spec, 7), (2448, 2448), "cuda")
        for spec in (Spec(official=True), Spec(), Spec(depth=50))
    )
    assert released.flops == pytest.approx(475.9e9, rel=1e-3)
    assert deep.flops == pytest.approx(1083e9, rel=1e-3)
    live = (released.device_bytes - released.weights_bytes) / 2**20
    assert live == pytest.approx(1033.5, rel=0.02)
    assert lean.device_bytes < 0.75 * released.device_bytes


def test_released_maps_are_kept_without_any_effect_on_labels(network: ISDNet) -> None:
    predict = STRATEGIES["whole"].predict
    kept = Spec(official=("kept-maps", "idle-classifier"))
    with torch.inference_mode():
        assert torch.equal(predict(network, IMAGE, Spec()), predict(network, IMAGE, kept))


def test_the_deep_input_is_every_fourth_pixel_or_their_mean() -> None:
    x = torch.arange(48.0).view(1, 1, 4, 12)
    assert shrunk(x, 4, True).flatten().tolist() == [0, 4, 8]
    smooth = shrunk(torch.rand(1, 3, 64, 64, generator=rng()), 4, False)
    assert smooth.std() < 0.6 * shrunk(torch.rand(1, 3, 64, 64, generator=rng()), 4, True).std()
    assert shrunk(torch.rand(1, 3, 2, 9), 4, True).shape == (1, 3, 1, 2)


def test_residuals_of_a_plain_image_are_nothing(network: ISDNet) -> None:
    first, second = network.residuals(torch.full((1, 3, 16, 24), 2.0))
    assert first.shape == (1, 3, 16, 24)
    assert second.shape == (1, 3, 8, 12)
    assert first.abs().max() < 1e-6


def test_scale_and_flip_of_the_test(network: ISDNet) -> None:
    predict = STRATEGIES["whole"].predict
    with torch.inference_mode():
        mirrored = predict(network, IMAGE.flip(-1), Spec(test_flip=True)).flip(-1)
        assert torch.equal(predict(network, IMAGE, Spec(test_flip=True)), mirrored)
        small = predict(network, IMAGE, Spec(test_scale=0.8))
        x = network.normalise(IMAGE[None])
        x = F.interpolate(x, (56, 72), mode="bilinear", align_corners=False)
        found = F.interpolate(scores(network, x, Spec()), (70, 90), mode="bilinear")
    assert torch.equal(small, found[0].argmax(0).to(torch.uint8))
    with pytest.raises(UserError, match="needs 5 px"):
        predict(network, IMAGE[:, :4], Spec())


def test_a_view_is_a_crop_whose_labels_move_with_it() -> None:
    label = (IMAGE[0] > 127).to(torch.uint8)
    spec = Spec(crop_px=64, distort=False)
    for seed in range(6):
        seen = view(IMAGE, label, spec, "train", rng(seed))
        assert seen["image"].shape == (3, 64, 64)
        assert torch.equal((seen["image"][0] > 127).to(torch.uint8), seen["label"])


def test_a_crop_larger_than_the_image_is_black_and_unlabelled_beyond() -> None:
    seen = view(IMAGE, LABEL, Spec(crop_px=96, distort=False, rotate=False), "train", rng())
    outside = seen["label"] == UNLABELLED
    assert int(outside.sum()) == 96 * 96 - 70 * 90
    assert int(seen["image"][:, outside].max()) == 0


def test_a_crop_of_mostly_one_class_is_drawn_again() -> None:
    label = torch.zeros(40, 400, dtype=torch.uint8)
    label[:, 380:] = 1
    image = label.expand(3, -1, -1)
    spec = Spec(crop_px=32, distort=False, rotate=False)
    mixed = [view(image, label, spec, "train", rng(i))["label"].float().mean() for i in range(40)]
    within = sum(bool(0.25 < share < 0.75) for share in mixed)
    assert within >= 8  # one draw alone hits with a probability of 4 %


def test_any_angle_leaves_corners_empty_and_a_right_angle_is_exact() -> None:
    from bench.optim import _turned

    image, label = IMAGE[:, :64, :64], LABEL[:64, :64]
    turned, labels = _turned(image, label, 90)
    assert torch.equal(labels, label.rot90(1))
    assert torch.equal(turned, image.rot90(1, (1, 2)))
    assert not _turned(image, label, 135)[0][:, 0, 0].any()
    angles = range(90, 271, 5)
    empty = [float((_turned(image, label, a)[1] == UNLABELLED).float().mean()) for a in angles]
    assert max(empty) == pytest.approx(0.17, abs=0.02)
    assert sum(empty) / len(empty) == pytest.approx(0.12, abs=0.015)


def test_distortion_keeps_the_labels_and_moves_the_colours() -> None:
    seen = [
        view(IMAGE, LABEL, Spec(crop_px=64, rotate=False, distort=on), "train", rng(5))
        for on in (True, False)
    ]
    assert torch.equal(seen[0]["label"], seen[1]["label"])
    assert not torch.equal(seen[0]["image"], seen[1]["image"])


def test_saturation_scales_what_is_below_the_largest_channel() -> None:
    from bench.optim import _saturated

    pixel = torch.tensor([200, 150, 100], dtype=torch.uint8).view(3, 1, 1)
    assert _saturated(pixel, 0.5).flatten().tolist() == [200, 175, 150]
    assert _saturated(pixel, 1.5).flatten().tolist() == [200, 125, 50]
    assert _saturated(pixel // 200 * 200, 1.5).flatten().tolist() == [200, 0, 0]


def test_affinity_does_not_move_what_it_compares_with() -> None:
    deep = torch.rand(1, 128, 2, 3, requires_grad=True)
    restored = torch.rand(1, 128, 32, 48, requires_grad=True)
    affinity_loss(deep, restored).backward()
    assert deep.grad is not None
    assert restored.grad is None
    dead = torch.cat([torch.zeros(1, 1, 2, 3), torch.rand(1, 127, 2, 3)], 1).requires_grad_()
    affinity_loss(dead, restored).backward()
    assert dead.grad is not None
    assert dead.grad.isfinite().all()
    same = torch.rand(1, 128, 2, 3)
    other = affinity_loss(same, torch.rand(1, 128, 2, 3) - 0.5)
    assert affinity_loss(same, 7 * same) < 1e-5 * other


def test_unlabelled_pixels_count_in_the_released_mean_alone(network: ISDNet) -> None:
    images = torch.stack([IMAGE[:, :64, :64]] * 2)
    labels = torch.stack([LABEL[:64, :64]] * 2)
    half = labels.clone()
    half[:, 32:] = UNLABELLED
    half[:, :32] = labels[:, :32]
    ours, theirs = (
        losses(network, images, half, Spec(official=official))["final"]
        for official in ((), ("ignored-in-mean",))
    )
    assert theirs.item() == pytest.approx(ours.item() / 2, rel=1e-5)


def test_crossed_classifiers_are_the_same_two_the_other_way_round() -> None:
    torch.manual_seed(2)
    network = build(Spec(dropout=0), 3).eval().requires_grad_(False)
    images, labels = IMAGE[None, :, :64, :64], LABEL[None, :64, :64]
    crossed = losses(network, images, labels, Spec(official=("crossed-classifiers",)))
    network.classify_8, network.classify_16 = network.classify_16, network.classify_8
    swapped = losses(network, images, labels, Spec())
    assert {k: float(v) for k, v in crossed.items()} == {k: float(v) for k, v in swapped.items()}


def test_one_image_a_step_is_refused() -> None:
    spec = Spec(crop_px=64)
    model = build(spec, 3)
    (phase,) = phases(model, spec)
    assert phase.whole_batch
    with pytest.raises(UserError, match="`batch` to 2 or more"):
        backward(model, [view(IMAGE, LABEL, spec, "train", rng())], spec, "train", lambda _: None)


def test_the_final_classifier_starts_as_released_or_as_meant() -> None:
    torch.manual_seed(3)
    assert build(Spec(), 3).classify.conv.bn.weight.min() == 1
    assert build(Spec(official=("small-norm",)), 3).classify.conv.bn.weight.abs().max() < 0.1


def test_start_weights_of_both_branches(network: ISDNet) -> None:
    torch.manual_seed(4)
    donor = build(Spec(), 3)
    resnet = {k: v for k, v in donor.backbone.state_dict().items() if not k.startswith("stem")}
    stdc = {
        isdnet_key(f"shallow.parts.{key}").removeprefix("refine_head.stdc_net."): value
        for key, value in donor.shallow.parts.state_dict().items()
    }
    stdc["features.0.conv.weight"] = stdc["features.0.conv.weight"][:, :3]
    model = build(Spec(), 3)
    stem = model.backbone.stem[0].weight.clone()
    start(model, resnet | stdc | {"conv1.weight": torch.zeros(64, 3, 7, 7)})
    assert torch.equal(model.backbone.layer4[1].conv2.weight, donor.backbone.layer4[1].conv2.weight)
    assert torch.equal(model.backbone.stem[0].weight, stem)
    first = model.shallow.parts[0].conv.weight
    assert torch.equal(first[:, :3], donor.shallow.parts[0].conv.weight[:, :3])
    assert torch.equal(first[:, 3:], first[:, :3])
    with pytest.raises(ValueError, match="another ResNet"):
        start(build(Spec(depth=50), 3), resnet)
    with pytest.raises(ValueError, match="from a ResNet"):
        start(model, {"fc.weight": torch.zeros(1)})
