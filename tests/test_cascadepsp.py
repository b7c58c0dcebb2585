"""CascadePSP: its size and cost, where its crops lie, how masks are damaged, and what it learns."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CASCADEPSP
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from baselines.cascadepsp.components import box_of, masks_of
from baselines.cascadepsp.damage import damaged, overlap, redrawn
from baselines.cascadepsp.inference import (
    _resized,
    base,
    cascade,
    crops,
    inner,
    merged,
    refined,
    worth_refining,
)
from baselines.cascadepsp.model import CascadePSP, build, start
from baselines.cascadepsp.spec import Spec
from baselines.cascadepsp.training import edges, losses, view
from bench.optim import UNLABELLED
from bench.tiling import Box
from reference.keys import cascadepsp_key

SMALL = Spec(**CASCADEPSP)
IMAGE = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8, generator=torch.manual_seed(3))


@pytest.fixture(scope="module")
def network() -> CascadePSP:
    torch.manual_seed(0)
    return build(SMALL, 3).eval().requires_grad_(False)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_refiner_has_the_released_ones_parameters_and_operations() -> None:
    with torch.device("meta"):
        model = build(Spec(), 7).eval()
        image, mask = torch.empty(1, 3, 904, 904), torch.empty(1, 1, 904, 904)
        counted = {n: sum(p.numel() for p in m.parameters()) for n, m in model.named_children()}
        assert counted == {"base": 26_116_807, "refiner": 67_683_433}
        with torch.no_grad(), FlopCounterMode(display=False) as three:
            model.passes(image, mask)
        with torch.no_grad(), FlopCounterMode(display=False) as two:
            model.passes(image, mask, (mask, mask))
    assert three.get_total_flops() == pytest.approx(6.95e12, rel=1e-3)
    assert two.get_total_flops() == pytest.approx(6.05e12, rel=1e-3)


def test_the_refiner_s_keys_are_the_released_ones_under_other_names() -> None:
    path = Path(__file__).parent / "golden/cascadepsp/state_dict_keys.json"
    with torch.device("meta"):
        own = build(Spec(), 7).state_dict()
    shapes = {
        cascadepsp_key(key): list(value.shape)
        for key, value in own.items()
        if key.startswith("refiner.")
    }
    assert shapes == json.loads(path.read_text())["keys"]


def test_only_blocks_after_a_stages_first_are_dilated(network: CascadePSP) -> None:
    dilations = [
        [block.conv2.dilation[0] for block in network.refiner.encoder.get_submodule(f"layer{n}")]
        for n in (1, 2, 3, 4)
    ]
    assert dilations == [[1] * 3, [1] * 4, [1] + [2] * 5, [1, 4, 4]]


@pytest.mark.parametrize(("side", "count"), [(2448, 25), (5000, 121), (901, 4), (900, 1), (300, 1)])
def test_crops_as_released(side: int, count: int) -> None:
    boxes = crops((side, side), Spec())
    assert len(boxes) == count
    assert boxes[-1].top + boxes[-1].height == side
    tops = sorted({box.top for box in boxes})
    assert all(0 < after - before <= 418 for before, after in itertools.pairwise(tops))


def test_margins_are_dropped_inside_alone_and_leave_no_gap() -> None:
    assert inner(Box(0, 10, 50, 50), (100, 60), 4) == Box(0, 14, 46, 46)
    size, settings = (131, 90), SMALL
    covered = torch.zeros(size)
    for box in crops(size, settings):
        inner(box, size, settings.margin_px).of(covered).add_(1)
    assert covered.min() >= 1


def test_a_crop_of_one_side_alone_is_left_out() -> None:
    inside = torch.zeros(10, 10, dtype=torch.bool)
    shares = []
    for row in range(10):
        inside[row] = True
        shares.append(worth_refining(inside, 0.1))
    assert shares == [True] * 9 + [False]
    assert not worth_refining(torch.zeros(4, 4, dtype=torch.bool), 0.1)


class Told(torch.nn.Module):
    """Stands for the network; every mask comes back as it was given, `sure` of it."""

    mean = torch.zeros(3, 1, 1)

    def __init__(self, sure: float) -> None:
        super().__init__()
        self.sure, self.calls = sure, list[tuple[int, bool]]()

    def normalise(self, images: Tensor) -> Tensor:
        return images.float()

    def passes(
        self, image: Tensor, seed: Tensor, slots: tuple[Tensor, Tensor] | None = None
    ) -> list[list[Tensor]]:
        assert image.shape[-2:] == seed.shape[-2:]
        assert all(side % 8 == 0 for side in seed.shape[-2:])
        self.calls.append((seed.shape[-1], slots is None))
        return [[self.sure * seed] * 3]


def test_a_large_mask_is_seen_in_the_whole_and_then_crop_by_crop() -> None:
    image = torch.zeros(3, 96, 96, dtype=torch.uint8)
    mask = torch.zeros(96, 96, dtype=torch.bool)
    mask[:, :40] = True
    says = Told(4.0)
    likely = refined(says, image, mask, SMALL)  # type: ignore[arg-type]
    assert says.calls[0] == (48, True), "three passes in the whole"
    # Crops begin at 0, 40 and 48; from 40 on there is no foreground, and they are left out.
    assert says.calls[1:] == [(48, False)] * 3
    assert torch.equal(likely > 0.5, mask)
    assert likely[0, 0] == torch.tensor(4.0).sigmoid()
    assert likely[0, 95] == 0, "where no crop was seen the seed stands"
    small = Told(4.0)
    refined(small, image[:, :40, :40], mask[:40, :40], SMALL)  # type: ignore[arg-type]
    assert small.calls == [(40, True)], "there is no background for a crop"
    small.calls.clear()
    refined(small, image[:, :40, :80], mask[:40, :80], replace(SMALL, side_px=80))  # type: ignore[arg-type]
    assert small.calls == [(80, True), (80, False)], "what fits is one crop"


def test_a_mask_is_refined_as_a_whole_alone() -> None:
    image = torch.zeros(3, 96, 96, dtype=torch.uint8)
    mask = torch.zeros(96, 96, dtype=torch.bool)
    mask[:, :40] = True
    whole = replace(SMALL, by_crops=False)
    says = Told(4.0)
    plain, aligned = (
        refined(says, image, mask, replace(whole, official=official))  # type: ignore[arg-type]
        for official in ((), ("aligned-corners",))
    )
    assert says.calls == [(48, True)] * 2
    assert torch.equal(plain > 0.5, mask)
    assert plain[:, 0].eq(plain[0, 0]).all()
    inside, outside = torch.tensor([4.0, -4.0]).sigmoid().tolist()
    assert plain[0, 39].item() == pytest.approx(0.75 * inside + 0.25 * outside)
    right = 39 * 47 / 95 - 19  # 95 steps between the corners of 96 are 47 of 48
    assert aligned[0, 39].item() == pytest.approx((1 - right) * inside + right * outside)
    small = Told(4.0)
    given = image[:, :24, :24], mask[:24, 20:44], replace(whole, enlarged_px=40)
    assert refined(small, *given).shape == (24, 24)  # type: ignore[arg-type]
    assert small.calls == [(40, True)]


def test_sides_as_released() -> None:
    map, ratio = torch.zeros(1, 1129, 4), 900 / 1129
    assert [
        _resized(map, ratio, "bilinear", Spec(official=official)).shape
        for official in (False, True)
    ] == [(1, 900, 3), (1, 899, 3)]
    says = Told(4.0)
    image, mask = torch.zeros(3, 42, 40, dtype=torch.uint8), torch.ones(42, 40, dtype=torch.bool)
    for official in ((), ("both-sides-padded",)):
        refined(says, image, mask, replace(SMALL, official=official))  # type: ignore[arg-type]
    assert says.calls == [(40, True), (48, True)]


def test_a_pixel_takes_the_surest_class_or_keeps_its_label(
    network: CascadePSP, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = torch.zeros(40, 40, dtype=torch.uint8)
    labels[:, 20:] = 1
    likely = {0: torch.full((40, 40), 0.2), 1: torch.full((40, 40), 0.2)}
    likely[1][0] = 0.7  # class 1 takes the first row
    likely[0][:, 39] = 0.9  # class 0 the last column
    numbers = iter((0, 1))
    monkeypatch.setattr("baselines.cascadepsp.inference.base", lambda *_: labels)
    monkeypatch.setattr("baselines.cascadepsp.components.relaxed", lambda *_: Box(0, 0, 40, 40))
    monkeypatch.setattr("baselines.cascadepsp.inference.refined", lambda *_: likely[next(numbers)])
    found = cascade(network, IMAGE[:, :40, :40], SMALL)
    expected = labels.clone()
    expected[0] = 1
    expected[:, 39] = 0
    assert torch.equal(found, expected)


def test_a_class_is_split_as_released() -> None:
    mask = torch.zeros(60, 200, dtype=torch.bool)
    mask[10:50, :40] = mask[10:50, 46:86] = True  # a gap of 6 px is closed
    mask[10:50, 106:146] = True
    mask[10:30, 170:190] = True  # too small
    split = Spec(components=True)
    parts = list(masks_of(mask, split))
    rows = [part.any(1).nonzero()[[0, -1], 0].tolist() for part in parts]
    columns = [part.any(0).nonzero()[[0, -1], 0].tolist() for part in parts]
    # The disc has even sides: a component loses its first row and column inside the image.
    assert rows == [[11, 49], [11, 49]]
    assert columns == [[0, 85], [107, 145]]
    assert not list(masks_of(mask & (mask.cumsum(1) < 20), split)), "a class of 760 px"
    assert [part.equal(mask) for part in masks_of(mask, Spec())] == [True]


def test_a_box_as_released_leaves_out_its_last_row_and_column() -> None:
    mask = torch.zeros(160, 200, dtype=torch.bool)
    assert box_of(mask, Spec()) is None
    mask[41:100, 61:100] = True
    # 41 - 58 / 8 = 33.75, 99 + 58 / 8 = 106.25; 61 - 38 / 8 = 56.25, 99 + 38 / 8 = 103.75
    assert box_of(mask, Spec(official=("open-boxes",))) == Box(33, 56, 106 - 33, 103 - 56)


def test_doubtful_classes_and_grey_levels() -> None:
    labels, box = torch.zeros(1, 4, dtype=torch.uint8), Box(0, 0, 1, 4)
    likely = torch.tensor([[0.5019, 0.97, 0.99, 0.4]])
    found = [
        merged(labels, [(1, box, likely)], Spec(doubtful=doubtful, official=official)).tolist()
        for doubtful, official in (((), ()), ((1,), ()), ((), ("grey-levels",)))
    ]
    assert found == [[[1, 1, 1, 0]], [[0, 0, 1, 0]], [[0, 1, 1, 0]]]


def test_a_damaged_mask_is_like_the_true_one_but_not_the_same() -> None:
    disc = (torch.arange(64) - 31.5).square()
    mask = disc[:, None] + disc[None] < 30**2
    mask[18:46, 18:46] = False
    for seed in range(5):
        drawn, bad = redrawn(mask, rng(seed)), damaged(mask, rng(seed))
        assert overlap(drawn, mask) > 0.7
        assert not drawn[30:34, 30:34].any(), "a hole stays one"
        assert 0.6 < overlap(bad, mask) < 1
    assert not damaged(torch.zeros(32, 32, dtype=torch.bool), rng()).all()
    one = torch.zeros(32, 32, dtype=torch.bool)
    one[5, 7] = True
    assert damaged(one, rng()).shape == (32, 32)


def test_overlap_by_hand() -> None:
    one, other = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)
    assert overlap(one, other) == 1
    one[0], other[:, 0] = True, True
    assert overlap(one, other) == pytest.approx(1 / 5)


def test_edges_are_where_a_mask_changes() -> None:
    map = torch.zeros(1, 1, 12, 12)
    map[..., 6:] = 1
    steep = edges(map)[0, 0, 6]
    assert steep[5] == pytest.approx(steep[6])
    assert steep[5] == pytest.approx(4 / 4 * 2 / 3, rel=1e-2)
    assert steep[2] == pytest.approx(0.01)


def test_the_refiner_sees_a_class_of_its_crop() -> None:
    label = torch.full((70, 90), 2, dtype=torch.uint8)
    label[:40] = 1
    label[:, :8] = UNLABELLED
    for seed in range(4):
        seen = view(IMAGE, label, SMALL, "refiner", rng(seed))
        assert seen["image"].shape == (3, 64, 64)
        assert set(seen["mask"].unique().tolist()) <= {0, 1, UNLABELLED}
        assert (seen["mask"] == 1).any()
    nothing = view(IMAGE, torch.full_like(label, UNLABELLED), SMALL, "refiner", rng())
    assert (nothing["mask"] == UNLABELLED).all()
    seen = view(IMAGE, label, SMALL, "base", rng())
    assert seen["image"].shape == (3, 128, 128)


def test_every_pass_is_judged_and_unlabelled_pixels_are_not() -> None:
    torch.manual_seed(1)
    model = build(SMALL, 3).train()
    images = model.normalise(IMAGE[None, :, :64, :64].repeat(2, 1, 1, 1))
    masks = (IMAGE[None, None, 0, :64, :64] > 127).to(torch.uint8).repeat(2, 1, 1, 1)
    found = losses(model, images, masks, masks == 1)
    assert list(found) == [
        *(f"1/8, pass {number}" for number in (1, 2, 3)),
        *(f"1/4, pass {number}" for number in (2, 3)),
        *("1/1", "edges"),
    ]
    found["1/8, pass 1"].backward()
    assert model.refiner.score8[0].weight.grad is not None
    assert model.refiner.up1.shortcut.weight.grad is None, "the first pass ends at 1/8"
    model.zero_grad()
    sum(losses(model, images, masks, masks == 1).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in model.refiner.parameters())
    nothing = losses(model, images, torch.full_like(masks, UNLABELLED), masks == 1)
    assert {value.item() for value in nothing.values()} == {0}


def test_start_weights_go_where_they_fit() -> None:
    torch.manual_seed(4)
    model = build(SMALL, 3)
    before = model.refiner.encoder.conv1.weight.clone()
    state = {key: value + 1 for key, value in model.base.network.encoder.state_dict().items()}
    start(model, state)
    taken = model.base.network.encoder.state_dict()
    assert all(torch.equal(value, taken[key]) for key, value in state.items())
    assert torch.equal(model.refiner.encoder.conv1.weight, before), "another encoder's"
    with torch.device("meta"):
        donor = build(Spec(), 3).base.network.encoder.state_dict()
    donor = {key: torch.full(value.shape, 0.5, dtype=value.dtype) for key, value in donor.items()}
    wide = build(Spec(), 3)
    start(wide, donor)
    first = wide.refiner.encoder.conv1.weight
    assert (first[:, :3] == 0.5).all()
    assert (first[:, 3:] == 0).all()
    with pytest.raises(ValueError, match="another encoder"):
        start(model, {"conv1.weight": torch.zeros(64, 3, 7, 7)})


def test_the_base_is_the_shrunk_images_labels(network: CascadePSP) -> None:
    with torch.inference_mode():
        image = IMAGE.repeat(1, 2, 2)[:, :128, :128]
        labels = base(network, image, SMALL)
        scores = network.base(network.normalise(image[None]))
    assert torch.equal(labels, scores[0].argmax(0).to(torch.uint8))
