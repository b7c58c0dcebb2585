"""RUE: what is seen and weighted, what its quirks do, what it costs, and its weights' names."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.nn import functional as F

from baselines.rue.inference import STRATEGIES, scores, streams
from baselines.rue.model import RUE, Deep, build, start
from baselines.rue.patches import cut, grid_of, join, patch_scores, select, uncertainty
from baselines.rue.spec import Quirk, Spec
from baselines.rue.training import backward, loss_weights, losses, view
from bench.errors import UserError
from bench.memory.runs import predict_run
from bench.optim import UNLABELLED
from bench.run import run_of
from reference.checkpoint_io import shapes_of
from reference.keys import rue_key

GOLDEN = Path(__file__).parent / "golden/rue"
IMAGE = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8, generator=torch.manual_seed(3))
LABEL = torch.randint(0, 3, (70, 90), dtype=torch.uint8, generator=torch.manual_seed(4))


@pytest.fixture(scope="module")
def network() -> RUE:
    torch.manual_seed(0)
    return build(Spec(), 3).eval().requires_grad_(False)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def deep(residual: torch.Tensor, entropy: torch.Tensor, classes: int = 7) -> Deep:
    """With nothing else of the deep stream."""
    empty = torch.empty(0)
    return Deep(empty, empty, torch.empty(1, classes, 1, 1), entropy, residual)


def test_names_and_shapes_are_those_of_the_released_weights() -> None:
    golden = json.loads((GOLDEN / "state_dict_keys.json").read_text())
    ours = shapes_of("baselines.rue", 7, official=True)
    assert {rue_key(key): list(shape) for key, shape in ours.items()} == golden["keys"]
    own = shapes_of("baselines.rue", 7)
    assert ours.keys() - own.keys() == {"idle.weight", "idle.bias"}


def test_what_it_costs_is_what_is_known_of_the_released_code() -> None:
    """Operations, and memory without weights. The released code also holds the deep stream's input
    and three of the backbone's maps."""
    released, lean = (
        predict_run(run_of("baselines/rue", "whole", spec, 7), (2448, 2448), "cuda")
        for spec in (Spec(official=True), Spec())
    )
    assert released.flops == pytest.approx(298.3e9, rel=1e-3)
    live = (released.device_bytes - released.weights_bytes) / 2**20
    held = (3 * 612**2 + 64 * 153**2 + (128 + 512) * 77**2) * 4 / 2**20
    assert live + held == pytest.approx(889, rel=2e-3)
    assert lean.flops < 0.85 * released.flops
    assert lean.device_bytes < 0.6 * released.device_bytes


@pytest.mark.parametrize("size", [(17, 13), (70, 90), (90, 70), (1, 400), (2448, 2448)])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_patches_are_whole_cells_and_cover_the_image(size: tuple[int, int], count: int) -> None:
    grid = grid_of(size, count, Spec())
    assert grid.patch_px[0] % 8 == 0
    assert max(grid.rows, grid.columns) <= count
    for number, px, cells, side in zip(grid[:2], grid.patch_px, grid.cells, size, strict=True):
        assert (number - 1) * px < side <= number * px
        assert (cells - 1) * 8 < side <= cells * 8


def test_the_released_grid_leaves_the_last_pixels_unseen() -> None:
    spec = Spec(official=("truncated-grid",))
    grid = grid_of((2448, 2448), 20, spec)
    assert (grid.patch_px, grid.patch_cells, grid.cells) == ((122, 122), (16, 16), (320, 320))
    assert 2448 - grid.rows * grid.patch_px[0] == 8
    for size in ((1024, 2048), (19, 19), (39, 39)):
        with pytest.raises(UserError, match="`truncated-grid`"):
            grid_of(size, 20, spec)


@pytest.mark.parametrize(("official", "changed"), [((), True), (("truncated-grid",), False)])
def test_the_last_pixel_is_seen_but_by_the_released_shallow_stream(
    network: RUE, official: tuple[Quirk, ...], changed: bool
) -> None:
    """The deep stream is made blind to it: it sees every fourth pixel."""
    spec = Spec(patches=4, selected=1, official=(*official, "nearest-input"))
    x = torch.randn(1, 3, 67, 67, generator=rng())
    other = x.clone()
    other[..., 66, 66] += 3
    logits = [streams(network, one, spec, 4).logits for one in (x, other)]
    assert torch.equal(*logits) != changed


def test_patches_go_back_to_where_they_were_cut() -> None:
    grid = grid_of((70, 90), 3, Spec())  # of 32 px: 3 x 3, of 4 x 4 cells
    x = torch.randn(2, 3, 70, 90, generator=rng())
    chosen = torch.tensor([[0, 4, 8], [1, 2, 5]])
    seen = cut(x, grid, chosen)
    assert torch.equal(seen[1], x[0, :, 32:64, 32:64])
    assert torch.equal(seen[4, :, :, :26], x[1, :, :32, 64:])
    assert not seen[4, :, :, 26:].any()
    joined, known = join(F.avg_pool2d(seen, 8), grid, chosen)
    assert joined.shape == (2, 3, 9, 12)
    cells = F.avg_pool2d(F.pad(x, (0, 6, 0, 26)), 8)[..., :9, :]
    assert torch.allclose(joined, cells * known)
    assert known.sum((1, 2, 3)).tolist() == [16 + 16 + 4, 16 + 16 + 16]


def test_the_most_uncertain_patches_are_selected() -> None:
    score = torch.tensor([[0.1, 0.9, 0.3, 0.8], [0.9, 0.2, 0.8, 0.1]])
    assert select(score, Spec()).tolist() == [[1, 3], [0, 2]]
    assert select(score, Spec(selected=0.01)).tolist() == [[1], [0]]
    assert select(score, Spec(official=("select-all",))).tolist() == [[0, 1, 2, 3]] * 2


def test_an_unselected_patch_has_the_deep_stream_alone(network: RUE) -> None:
    x = torch.randn(1, 3, 64, 64, generator=rng())
    found = streams(network, x, Spec(), 4)
    assert found.chosen.shape == (1, 8)
    left = next(n for n in range(16) if n not in found.chosen[0])
    inside = (..., slice(16 * (left // 4), None), slice(16 * (left % 4), None))
    other = x.clone()
    other[inside][..., :16, :16] += torch.randn(1, 3, 16, 16, generator=rng())
    # The same uncertainty, so that only the shallow stream could differ.
    network_deep = network.deep
    kept = network_deep(F.interpolate(x, (16, 16), mode="bilinear", antialias=True))
    try:
        network.deep = lambda small: kept  # type: ignore[method-assign]
        assert torch.equal(streams(network, other, Spec(), 4).logits, found.logits)
        every = Spec(selected=1)
        logits = [streams(network, one, every, 4).logits for one in (x, other)]
    finally:
        del network.deep
    assert not torch.equal(*logits)


def test_weights_stay_below_1_but_in_the_released_code() -> None:
    sure = deep(torch.full((1, 1, 2, 2), 50.0), torch.full((1, 1, 1, 1), 7.0).log())
    assert torch.allclose(uncertainty(sure, (3, 5), Spec()) / 2, torch.ones(1, 1, 3, 5))
    released = uncertainty(sure, (1, 1), Spec(official=("unbounded-weights",))) / 2
    assert released.item() == pytest.approx((1 + 1.9459101 / 0.7) / 2)
    assert loss_weights(released).item() == pytest.approx(583, rel=1e-2)


def test_a_patch_s_score_is_its_mean_or_its_centre() -> None:
    weights = torch.zeros(1, 1, 5, 3)
    weights[..., 0, 0] = 1.0
    weights[..., 4, 2] = 0.5
    grid = grid_of((40, 24), 2, Spec())  # patches of 3 x 3 cells, the second of 2 x 3
    assert patch_scores(deep(weights, weights), weights, grid, Spec()).tolist() == [
        [pytest.approx(1 / 9), pytest.approx(0.5 / 6)]
    ]
    flat = deep(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2))
    centre = Spec(official=("centre-scores",))
    assert patch_scores(flat, weights, grid, centre).tolist() == [[0.5, 0.5]]


def test_losses_are_means_over_what_is_labelled(network: RUE) -> None:
    x = network.normalise(torch.stack([IMAGE[:, :64, :64]] * 2))
    labels = torch.stack([LABEL[:64, :64]] * 2)
    labels[:, 32:] = UNLABELLED
    ours = Spec(dropout=0)
    found = streams(network, x, ours, 2)
    own, theirs, plain = (
        losses(network, found, labels, Spec(official=official))
        for official in ((), ("ignored-in-mean",), ("unnormalised-loss",))
    )
    assert theirs["deep"].item() == pytest.approx(own["deep"].item() / 2, rel=1e-5)
    factors = F.interpolate(loss_weights(found.weights), (64, 64), mode="bilinear")[:, 0, :32]
    per_pixel = F.cross_entropy(
        F.interpolate(found.logits, (64, 64), mode="bilinear")[..., :32, :],
        labels[:, :32].long(),
        reduction="none",
    )
    expected = (factors * per_pixel).sum() / factors.sum()
    assert own["final"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert plain["final"].item() == pytest.approx((factors * per_pixel).mean().item(), rel=1e-5)


def test_class_weights_scale_each_loss_of_a_pixel(network: RUE) -> None:
    x = network.normalise(torch.stack([IMAGE[:, :64, :64]] * 2))
    labels = torch.stack([LABEL[:64, :64]] * 2)
    found = streams(network, x, Spec(dropout=0), 2)

    def loss(name: str, labels: torch.Tensor, *weights: float) -> float:
        terms = losses(network, found, labels, Spec(class_weights=weights))
        return terms[name].item() * 2 * 64 * 64  # with `deep` alone the sum over pixels

    only_last = torch.where(labels == 2, labels, UNLABELLED)
    share = float((labels == 2).float().mean())
    rest = loss("deep", labels) - loss("deep", only_last) * share
    expected = rest + 5 * loss("deep", only_last) * share
    assert loss("deep", labels, 1, 1, 5) == pytest.approx(expected, rel=1e-5)
    assert loss("final", labels, 2, 2, 2) == pytest.approx(2 * loss("final", labels), rel=1e-5)
    with pytest.raises(UserError, match="2 numbers, but the data set has 3 classes"):
        loss("deep", labels, 1, 1)


def test_crops_show_rare_classes_where_the_spec_says_so() -> None:
    label = torch.zeros(300, 300, dtype=torch.uint8)
    label[7, 9] = 1
    image = torch.zeros(3, 300, 300, dtype=torch.uint8)

    def shows(spec: Spec) -> int:
        views = [view(image, label, spec, "train", rng(seed)) for seed in range(40)]
        return sum(bool((seen["label"] == 1).any()) for seen in views)

    plain, by_class = (
        Spec(crop_px=64, distort=False, sample_classes=drawn) for drawn in (False, True)
    )
    assert shows(by_class) > 10 > 5 > shows(plain)


def test_nothing_is_kept_without_an_effect_on_labels(network: RUE) -> None:
    """Scores of the whole image are those that labels are made of."""
    predict = STRATEGIES["whole"].predict
    kept = Spec(official=("kept-maps",))
    with torch.inference_mode():
        labels = predict(network, IMAGE, Spec())
        assert torch.equal(labels, predict(network, IMAGE, kept))
        found = scores(network, network.normalise(IMAGE[None]), Spec())
    assert torch.equal(labels, found[0].argmax(0).to(torch.uint8))


def test_each_quirk_is_named_once() -> None:
    names = get_args(Quirk)
    assert all(Spec(official=(name,)).quirk(name) and not Spec().quirk(name) for name in names)
    assert all(Spec(official=True).quirk(name) for name in names)


def test_a_view_is_a_crop_whose_labels_move_with_it() -> None:
    label = (IMAGE[0] > 127).to(torch.uint8)
    for seed in range(6):
        seen = view(IMAGE, label, Spec(crop_px=64, distort=False), "train", rng(seed))
        assert torch.equal((seen["image"][0] > 127).to(torch.uint8), seen["label"])
    some: dict[str, Any] = view(IMAGE, label, Spec(crop_px=64), "train", rng(2))
    assert some["image"].dtype == torch.uint8


def test_one_image_a_step_is_refused(network: RUE) -> None:
    seen = view(IMAGE, LABEL, Spec(crop_px=64), "train", rng())
    network.train()
    with pytest.raises(UserError, match="`batch` to 2 or more"):
        backward(network, [seen], Spec(), "train", lambda _: None)
    network.eval()


def test_start_weights_of_both_streams(network: RUE) -> None:
    resnet = {k: v for k, v in network.backbone.state_dict().items() if not k.startswith("stem")}
    stdc = {
        rue_key(f"shallow.parts.{key}").removeprefix("refine_head.stdc_net."): value
        for key, value in network.shallow.parts.state_dict().items()
    }
    torch.manual_seed(5)
    model = build(Spec(), 3)
    start(model, resnet | stdc | {"conv1.weight": torch.zeros(64, 3, 7, 7)})
    assert torch.equal(
        model.get_parameter("backbone.layer4.1.conv2.weight"), resnet["layer4.1.conv2.weight"]
    )
    assert torch.equal(model.shallow.parts[0].conv.weight, stdc["features.0.conv.weight"])
    del stdc["features.5.conv_list.0.bn.weight"]
    with pytest.raises(ValueError, match=r"features\.5\.conv_list\.0\.bn\.weight is missing"):
        start(model, stdc)
    with pytest.raises(ValueError, match="another ResNet"):
        start(model, {"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="from a ResNet"):
        start(model, {"fc.weight": torch.zeros(1)})
