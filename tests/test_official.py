"""Where the released code is odd: each switch, and what it changes; the released checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GLNET, ROOT, THREE_PHASES, run
from PIL import Image
from torch import Tensor

from bench.errors import UserError
from bench.optim import flip_and_turn
from bench.tiling import Box, Merger, Turning, coverage, crop, grid, groups, scaled
from glnet.inference import STRATEGIES, boxes_of
from glnet.model import GLNet, build
from glnet.spec import Spec
from glnet.training import backward, phases, view
from reference.checkpoint_io import (
    GLNET_FILES,
    PREFIX,
    Shapes,
    difference,
    export_glnet,
    from_glnet,
    read,
    shapes_of,
    to_glnet,
)
from reference.keys import glnet_key

KEYS = json.loads((Path(__file__).parent / "golden/official/state_dict_keys.json").read_text())


def odd(*names: str, **more: object) -> Spec:
    return Spec(**{**GLNET, "phases": THREE_PHASES, "official": names, **more})  # type: ignore[arg-type]


def plain(**more: object) -> Spec:
    return odd(**more)


def network(spec: Spec, seed: int = 0) -> GLNet:
    torch.manual_seed(seed)
    return build(spec, 3).eval()


def image(height: int, width: int) -> Tensor:
    rng = torch.Generator().manual_seed(height)
    return torch.randint(0, 255, (3, height, width), dtype=torch.uint8, generator=rng)


def label(height: int, width: int, classes: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(width)
    return torch.randint(0, classes, (height, width), dtype=torch.uint8, generator=rng)


# --- geometry ---------------------------------------------------------------------------------


def test_the_official_template_disagrees_with_the_grid_at_seams() -> None:
    """2448 / 508 at 127 cells: merged ones come back as 1 here, as less there in the four rows and
    columns of geometry.json."""
    size, boxes = (2448, 2448), grid(2448, 2448, 508, 50)
    one = torch.ones(1, 1, 127, 127)
    merged = []
    for official in ([], boxes):
        merger = Merger([one], size, official)
        for group in groups(boxes, 6):
            merger.add([[crop(one, group, size)]], group)
        merged.append(merger.mean()[0][0][0, 0])
    assert (merged[0] == 1).all()
    assert ((merged[1][:, 0] - 1).abs() > 0.1).sum() == 4
    assert merged[1].min() == pytest.approx(0.25, abs=0.01), "halved along both sides"
    assert coverage(boxes, size).max() == 4


def test_a_cell_that_no_patch_covers_takes_its_neighbours_mean() -> None:
    """6000 px in patches of 508 leave rows of 16 cells uncovered."""
    size, boxes = (6000, 4000), grid(6000, 4000, 508, 50)
    one = torch.full((1, 2, 16, 16), 3.0)
    holes = []
    for official in ([], boxes):
        merger = Merger([one], size, official)
        for group in groups(boxes, 6):
            merger.add([[crop(one, group, size)]], group)
        merged = merger.mean()[0][0]
        holes.append(int((merged[0, 0, :, 0] == 0).sum()))
        if not official:
            torch.testing.assert_close(merged, one)
    assert holes == [0, 3]


def test_loose_crops_leave_the_map_and_are_refused_where_the_official_code_crashes() -> None:
    boxes, size = grid(256, 256, 128, 50), (256, 256)
    loose = [scaled(box, size, (3, 3), loose=True) for box in boxes]
    kept = [scaled(box, size, (3, 3)) for box in boxes]
    assert {(box.height, box.width) for box in kept} == {(2, 2)}
    assert {(box.height, box.width) for box in loose} == {(2, 2), (2, 1), (1, 2), (1, 1)}
    map = torch.rand(1, 4, 3, 3)
    assert crop(map, boxes, size).shape == (9, 4, 2, 2)
    with pytest.raises(UserError, match=r"official code crashes .* 256 x 256"):
        crop(map, boxes, size, loose=True)
    assert crop(map, boxes[-1:], size, loose=True).shape == (1, 4, 1, 1)  # alone it goes on
    merger = Merger([map], size, boxes)
    with pytest.raises(UserError, match="merged map"):
        merger.add([[torch.rand(1, 4, 8, 8)]], boxes[-1:], loose=True)


@pytest.mark.parametrize(("height", "width"), [(32, 90), (90, 32), (20, 20)])
def test_the_strict_grid_refuses_what_divides_by_zero(height: int, width: int) -> None:
    assert boxes_of(height, width, plain())
    with pytest.raises(UserError, match="divides by zero"):
        boxes_of(height, width, odd("strict-grid", patch_px=60 if min(height, width) > 60 else 90))
    with pytest.raises(UserError, match="never returns"):
        boxes_of(height, width, odd("strict-grid"))


@pytest.mark.parametrize("name", ["template-merge", "float64-scores"])
def test_the_maps_and_the_sums_of_evaluation(name: str) -> None:
    from glnet.inference import scores_collaborative

    found = []
    for spec in (plain(), odd(name)):
        with torch.inference_mode():
            small = image(*spec.global_size)
            found.append(scores_collaborative(network(spec), image(70, 90), small, spec))
    assert found[1].dtype == (torch.float64 if name == "float64-scores" else torch.float32)
    apart = (found[0] - found[1]).abs().max()
    assert apart > 0 if name == "template-merge" else apart < 1e-4


# --- test-time augmentation -------------------------------------------------------------------


def test_turned_images_give_turned_labels_and_their_sum_is_the_same_for_all() -> None:
    """With all eight, turning the image turns the labels: a proof that patches turn too."""
    spec = odd(test_time=("flips", "turns"))
    model = network(spec)
    picture = image(64, 64)
    with torch.inference_mode():
        for strategy in ("global", "global-to-local", "collaborative"):
            predict = STRATEGIES[strategy].predict
            upright = predict(model, picture, spec)
            turned = predict(model, torch.rot90(picture, 1, (-2, -1)), spec)
            same = (torch.rot90(upright, 1, (-2, -1)) == turned).float().mean()
            assert same > 0.99, strategy  # rounding may break a tie


def test_official_turning_cuts_patches_from_the_unturned_image() -> None:
    picture = image(64, 64)
    labels = []
    for spec in (
        odd(test_time=("turns",)),
        odd("unturned-patches", test_time=("turns",)),
        odd("unturned-patches"),
        plain(),
    ):
        with torch.inference_mode():
            labels.append(STRATEGIES["global-to-local"].predict(network(spec), picture, spec))
    assert not labels[0].equal(labels[1])
    assert labels[2].equal(labels[3]), "without turning it changes nothing"
    spec = odd("unturned-patches", test_time=("turns",))
    with pytest.raises(UserError, match="not square"), torch.inference_mode():
        STRATEGIES["global-to-local"].predict(network(spec), image(70, 90), spec)


def test_the_eight_ways_to_lay_an_image() -> None:
    from bench.tiling import turn, turn_back, turnings

    ways = turnings(flips=True, turns=True)
    assert len(set(ways)) == 8
    assert turnings(flips=False, turns=False) == [Turning(False, 0)]
    picture = image(3, 4)
    laid = {tuple(turn(picture, way).flatten().tolist()) for way in ways}
    assert len(laid) == 8
    for way in ways:
        assert turn_back(turn(picture, way), way).equal(picture)


# --- training ---------------------------------------------------------------------------------


def gradient(spec: Spec, phase: str, views: int = 1) -> tuple[float, float]:
    """The logged loss and the gradient norm of the phase's aggregation, batch norm held."""
    model = network(spec).requires_grad_(False)
    plan = next(one for one in phases(model, spec) if one.name == phase)
    for module in plan.trains:
        module.requires_grad_(True)
    rng = torch.Generator().manual_seed(1)
    seen = [view(image(96, 96), label(96, 96), spec, phase, rng) for _ in range(views)]
    loss = backward(model, seen, spec, phase, Tensor.backward)
    norms = [p.grad.square().sum() for p in plan.trains[1].parameters() if p.grad is not None]
    return loss, float(sum(norms)) ** 0.5


@pytest.mark.parametrize("phase", THREE_PHASES[1:])
def test_summed_gradients_grow_with_the_number_of_groups(phase: str) -> None:
    """Of 16 patches: by 4 a group, not at all when all go at once; here never."""
    names = {4: 4.0, 16: 1.0}
    for sub_batch, factor in names.items():
        _, mean = gradient(plain(sub_batch=sub_batch), phase)
        _, summed = gradient(odd("summed-gradients", sub_batch=sub_batch), phase)
        assert summed / mean == pytest.approx(factor, rel=1e-3), sub_batch
    _, two = gradient(plain(), phase, views=2)
    _, one = gradient(plain(), phase, views=1)
    assert two / one < 1.1


def test_the_last_groups_loss_is_not_the_steps() -> None:
    whole, _ = gradient(plain(sub_batch=4), "global-to-local")
    last, _ = gradient(odd("last-loss", sub_batch=4), "global-to-local")
    assert whole != pytest.approx(last, rel=1e-3)
    only, _ = gradient(odd("last-loss", sub_batch=16), "global-to-local")
    all_at_once, _ = gradient(plain(sub_batch=16), "global-to-local")
    assert only == pytest.approx(all_at_once)


@pytest.mark.parametrize("size", [(30, 50), (51, 31), (45, 45)])
def test_a_kept_canvas_is_pillows(size: tuple[int, int]) -> None:
    """The corners of a turned image that is not square: black, and class 0."""
    picture, truth = image(*size), label(*size) + 1
    turned = 0
    for seed in range(40):
        ours = flip_and_turn(picture, truth, torch.Generator().manual_seed(seed), keep_canvas=True)
        free = flip_and_turn(picture, truth, torch.Generator().manual_seed(seed))
        assert ours[1].shape == truth.shape
        assert (free[1] != 0).all()
        if free[1].shape != truth.shape:
            turned += 1
            filled = int((ours[1] == 0).sum())
            assert filled == size[0] * size[1] - min(size) ** 2
            ways = [
                np.array(Image.fromarray(flipped).rotate(angle))
                for flipped in mirrored(truth.numpy())
                for angle in (90, 270)
            ]
            assert any((ours[1].numpy() == way).all() for way in ways)
    assert turned > 3 or size[0] == size[1]


def mirrored(pixels: np.ndarray) -> list[np.ndarray]:
    return [pixels, pixels[::-1].copy(), pixels[:, ::-1].copy(), pixels[::-1, ::-1].copy()]


def test_what_the_official_training_crashes_on_is_refused_by_name() -> None:
    rng = torch.Generator().manual_seed(0)
    unlabelled = label(96, 96)
    unlabelled[0, 0] = 255
    view(image(96, 96), unlabelled, plain(), "global", rng)
    with pytest.raises(UserError, match="no-unlabelled"):
        view(image(96, 96), unlabelled, odd("no-unlabelled"), "global", rng)
    view(image(96, 96), label(96, 96), plain(patch_px=30), "global-to-local", rng)
    with pytest.raises(UserError, match="30 x 30 px, which 4 does not divide"):
        view(image(96, 96), label(96, 96), odd("quarter-sides", patch_px=30), "local", rng)
    spec = odd("quarter-sides", global_px=(64, 60))
    with pytest.raises(UserError, match="global input of 64 x 60"), torch.inference_mode():
        STRATEGIES["global"].predict(network(spec), image(96, 96), spec)
    for spec, refused in ((plain(), False), (odd("equal-images"), True)):
        model = network(spec)
        seen = [view(image(*s), label(*s), spec, "global", rng) for s in ((96, 96), (96, 80))]
        if refused:
            with pytest.raises(UserError, match="images of different size"):
                backward(model, seen, spec, "global", lambda loss: None)
        else:
            backward(model, seen, spec, "global", lambda loss: None)


def test_official_true_is_all_of_it() -> None:
    every, none = Spec(official=True), Spec()
    assert every.quirk("template-merge")
    assert every.quirk("last-loss")
    assert not none.quirk("template-merge")
    assert Spec(official=("last-loss",)).quirk("last-loss")
    assert not Spec(official=("last-loss",)).quirk("template-merge")
    with pytest.raises(ValueError, match="official"):
        Spec(official=("last-losses",))  # type: ignore[arg-type]


# --- coarse to fine ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "everywhere_as"),
    [
        ("coarse-to-fine", "global-to-local"),
        ("coarse-to-fine-both-ways", "collaborative"),
    ],
)
def test_coarse_to_fine_refines_the_box_and_nothing_else(
    strategy: str, everywhere_as: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import glnet.inference as module

    spec = plain(margin=0.0)
    model, picture = network(spec), image(96, 120)
    found = Box(20, 40, 32, 44)
    with torch.inference_mode():
        coarse = STRATEGIES["global"].predict(model, picture, spec)
        fine = STRATEGIES[everywhere_as].predict(model, picture, spec)
        monkeypatch.setattr(module, "bounding_box", lambda mask: found)
        both = STRATEGIES[strategy].predict(model, picture, spec)
        monkeypatch.setattr(module, "bounding_box", lambda mask: Box(0, 0, 96, 120))
        everywhere = STRATEGIES[strategy].predict(model, picture, spec)
        monkeypatch.setattr(module, "bounding_box", lambda mask: None)
        nowhere = STRATEGIES[strategy].predict(model, picture, spec)
    outside = torch.ones(96, 120, dtype=torch.bool)
    found.of(outside).fill_(False)
    assert both[outside].equal(coarse[outside])
    assert not found.of(both).equal(found.of(coarse))
    assert everywhere.equal(fine)
    assert nowhere.equal(coarse)


def test_the_local_branch_can_learn_from_the_box_alone() -> None:
    truth = torch.zeros(200, 300, dtype=torch.uint8)
    truth[100:130, 150:200] = 1
    rng = torch.Generator().manual_seed(0)
    spec = plain(learn_in_box=True, patch_px=32, margin=0.1)
    boxes = view(image(200, 300), truth, spec, "global-to-local", rng)["boxes"]
    assert len(boxes) < len(boxes_of(200, 300, spec)) / 4
    no_foreground = view(image(200, 300), truth * 0, spec, "global-to-local", rng)["boxes"]
    assert len(no_foreground) == len(boxes_of(200, 300, spec))


# --- checkpoints ------------------------------------------------------------------------------


def test_keys_and_shapes_are_the_official_ones() -> None:
    shapes = {glnet_key(key): list(shape) for key, shape in shapes_of("glnet", 7).items()}
    assert shapes == {key: value["shape"] for key, value in KEYS.items()}


SMALL = Spec(encoder="resnet18", fpn_width=4, smooth_width=2)


def small_shapes(classes: int) -> Shapes:
    return shapes_of("glnet", classes, encoder="resnet18", fpn_width=4, smooth_width=2)


def official_files(classes: int = 3) -> list[dict[str, Tensor]]:
    """Three state dicts of one training: what a phase does not train is what it was before."""
    shapes = small_shapes(classes)
    states: list[dict[str, Tensor]] = []
    for number, moving in enumerate((("global",), ("local", "ensemble"), ("global", "ensemble"))):
        torch.manual_seed(number)
        fresh = {glnet_key(key): torch.randn(shape) for key, shape in shapes.items()}
        if states:
            kept = {
                key: value
                for key, value in states[-1].items()
                if not any(part in key for part in moving) or (number == 2 and plain_set(key))
            }
            fresh |= kept
        states.append(fresh)
    return states


def plain_set(key: str) -> bool:
    lent_only = ("_ext", ".smooth.", "classify")
    return key.startswith("fpn_global") and not any(part in key for part in lent_only)


def test_each_part_comes_from_the_phase_that_trained_it() -> None:
    first, second, third = official_files()
    state = from_glnet([first, second, third], small_shapes)
    assert state["global_branch.encoder.conv1.weight"].equal(first["resnet_global.conv1.weight"])
    assert state["local_branch.fpn.smooth3.weight"].equal(second["fpn_local.smooth.weight"])
    assert state["aggregation.conv.bias"].equal(second["ensemble_conv.bias"])
    borrowing = state["global_borrowing.fpn.lateral.0.weight"]
    assert borrowing.equal(third["fpn_global.toplayer_ext.weight"])
    assert state["global_borrowing.fpn.classify.bias"].equal(third["fpn_global.classify.bias"])
    assert state["aggregation_borrowing.conv.bias"].equal(third["ensemble_conv.bias"])
    build(SMALL, 3).load_state_dict(state)


def test_files_of_different_trainings_are_refused_or_serve_one_strategy() -> None:
    states = official_files()
    states[1] = {key: value + 1 for key, value in states[1].items()}
    with pytest.raises(UserError, match=r"G2L.pth does not go on from GLOBAL.pth: \d+ of \d+"):
        from_glnet(states, small_shapes)
    key = "local_branch.encoder.conv1.weight"
    for serve, source in (("global-to-local", 1), ("collaborative", 2)):
        state = from_glnet(states, small_shapes, serve=serve)
        assert state[key].equal(states[source][glnet_key(key)])


def test_missing_extra_and_misshapen_keys_are_listed() -> None:
    states = official_files()
    del states[1]["fpn_local.smooth.bias"]
    states[1]["fpn_local.surprise"] = torch.zeros(1)
    states[1]["resnet_local.conv1.weight"] = torch.zeros(1, 2)
    with pytest.raises(UserError) as caught:
        from_glnet(states, small_shapes)
    text = str(caught.value)
    assert "missing: fpn_local.smooth.bias;" in text
    assert "extra: fpn_local.surprise;" in text
    assert "of another shape: resnet_local.conv1.weight (1, 2) instead of (64, 3, 7, 7)" in text
    found = difference(states[0], {glnet_key(k): shape for k, shape in small_shapes(3).items()})
    assert not any(found.values())


def test_counters_that_torch_0_4_did_not_have_may_be_missing() -> None:
    states = [
        {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        for state in official_files()
    ]
    state = from_glnet(states, small_shapes)
    assert state["local_branch.encoder.bn1.num_batches_tracked"] == 0
    build(SMALL, 3).load_state_dict(state)


def test_a_file_of_torch_0_4_from_a_card_is_read(tmp_path: Path) -> None:
    """The format before zip archives, storages on a card, keys with the prefix of DataParallel."""
    path = tmp_path / "old.pth"
    content = {PREFIX + "a.weight": torch.arange(6.0).view(2, 3)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    data = data.replace(b"ctorch\nFloatStorage", b"ctorch.cuda\nFloatStorage")
    data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert b"cuda:0" in data
    path.write_bytes(data)
    assert read(path)["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never be run",))


@pytest.mark.parametrize("kind", ["code", "text", "list", "nested", "empty", "missing", "cut"])
def test_anything_else_is_refused(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.pth"
    if kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "cut":
        torch.save({"a": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:500])
    elif kind != "missing":
        content = {"code": {"a": Harmful()}, "list": [1], "nested": {"state_dict": {}}, "empty": {}}
        torch.save(content[kind], path)
    with pytest.raises(UserError, match=str(path)):
        read(path)
    assert "never" not in capsys.readouterr().out


@pytest.mark.slow
def test_import_and_export_at_full_size(tmp_path: Path) -> None:
    """Both commands: what is exported is imported again, key for key, at the paper's sizes."""
    torch.manual_seed(0)
    state = build(Spec(), 7).state_dict()
    checkpoint = tmp_path / "glnet.ckpt"
    torch.save(state, checkpoint)
    paths = export_glnet(checkpoint, tmp_path / "out")
    assert [path.name for path in paths] == list(GLNET_FILES)
    for path in paths:
        assert set(torch.load(path, weights_only=True, mmap=True)) == {PREFIX + k for k in KEYS}
    target = tmp_path / "again.ckpt"
    done = run(
        "python", "-m", "bench", "import-official", *map(str, paths), "-o", str(target), cwd=ROOT
    )
    assert done.stdout.strip() == str(target)
    again = torch.load(target, weights_only=True, mmap=True)
    assert again.keys() == state.keys()
    assert all(again[key].equal(state[key]) for key in state)


def test_what_cannot_be_exported_is_refused() -> None:
    with pytest.raises(UserError, match="has no aggregation, "):
        to_glnet({"global_branch.x": torch.zeros(1)})
    small = build(SMALL, 3).state_dict()
    with pytest.raises(UserError, match="no network of the official code"):
        to_glnet(small)
