"""PointRend: its size, how its points are chosen, and what its loss sees."""

import json
from pathlib import Path

import pytest
import torch
from conftest import POINTREND

from baselines.pointrend.inference import centres, scores, subdivided, whole
from baselines.pointrend.model import PointRend, build, sample, start, uncertainty
from baselines.pointrend.spec import Spec
from baselines.pointrend.training import drawn, losses
from bench.optim import UNLABELLED
from reference.keys import pointrend_key

SMALL = Spec(**POINTREND)
IMAGE = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8, generator=torch.manual_seed(3))


@pytest.fixture(scope="module")
def network() -> PointRend:
    torch.manual_seed(0)
    return build(SMALL, 3).eval().requires_grad_(False)


def test_it_has_the_parameters_of_its_parts() -> None:
    with torch.device("meta"):
        model = build(Spec(), 7)
    counted = {n: sum(p.numel() for p in part.parameters()) for n, part in model.named_children()}
    assert counted == {
        "encoder": 23_527_264,  # ResNet-50 v1c
        "pyramid": (256 + 512 + 1024 + 2048 + 4) * 256 + 4 * (9 * 256 + 1) * 256,
        "coarse": 4 * (9 * 256 + 2) * 128 + 3 * (9 * 128 + 2) * 128 + 7 * 129,
        "point": 3 * 256 * (256 + 7 + 1) + 7 * (256 + 7 + 1),
    }
    assert sum(counted.values()) == 28_700_959


def test_its_keys_are_mmsegmentation_s_under_other_names() -> None:
    path = Path(__file__).parent / "golden/pointrend/state_dict_keys.json"
    with torch.device("meta"):
        own = build(Spec(), 7).state_dict()
    shapes = {pointrend_key(key): list(value.shape) for key, value in own.items()}
    assert shapes == json.loads(path.read_text())["keys_7_classes"]


def test_the_least_certain_place_has_the_two_best_scores_closest() -> None:
    scores = torch.tensor([[5.0, 1, 0], [1, 3, 0], [4, 2, 0]]).T[None]  # (1, K, P)
    assert uncertainty(torch.tensor([[[5.0, 1], [1, 3], [4, 2]]])).tolist() == [[-1, -1]]
    assert uncertainty(scores).tolist() == [[-4, -2, -2]]
    more = torch.rand(2, 5, 4, 6)
    best = more.topk(2, 1).values
    assert torch.equal(uncertainty(more), best[:, 1] - best[:, 0])


def test_points_are_sampled_between_the_cells_that_they_lie_between() -> None:
    map = torch.tensor([[0.0, 10, 20, 30], [40, 50, 60, 70]])[None, None]
    cells = torch.tensor([[0, 3, 5]])
    places = centres(cells, (2, 4))
    assert places.tolist() == [[[0.125, 0.25], [0.875, 0.25], [0.375, 0.75]]]
    assert sample(map, places).tolist() == [[[0, 30, 50]]]
    between = torch.tensor([[[0.5, 0.5]]])
    assert sample(map, between).item() == 35
    assert sample(map, torch.tensor([[[0.3, 0.1]]]), "nearest").item() == 10


def test_a_subdivision_predicts_the_least_certain_cells_again_and_no_other() -> None:
    class Says(torch.nn.Module):
        def point(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
            return torch.stack([fine[:, 0], coarse[:, 0]], 1)

    coarse = torch.zeros(1, 2, 2, 2)
    coarse[0, 0] = torch.tensor([[9.0, 9], [9, 1]])  # the last cell is the least certain
    fine = torch.full((1, 1, 2, 2), 7.0)
    found = subdivided(Says(), coarse, fine, coarse, 1)  # type: ignore[arg-type]
    plain = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear")
    changed = (found != plain).any(1)[0]
    assert changed.nonzero().tolist() == [[3, 3]]
    inside = 0.75**2  # of the square of a cell around the place; beyond the edge is 0
    assert found[0, :, 3, 3].tolist() == [7 * inside, 1 * inside]
    everywhere = subdivided(Says(), coarse, fine, coarse, 100)  # type: ignore[arg-type]
    assert (everywhere[0, 0, 1:3, 1:3] == 7).all(), "no more cells than there are"


def test_two_subdivisions_end_at_the_images_size(network: PointRend) -> None:
    with torch.inference_mode():
        assert scores(network, network.normalise(IMAGE[None]), SMALL).shape == (1, 3, 72, 92)
        even = scores(network, network.normalise(IMAGE[None, :, :64, :64]), SMALL)
        none = Spec(**{**POINTREND, "subdivisions": 0})
        _, coarse = network.maps(network.normalise(IMAGE[None, :, :64, :64]))
        bare = scores(network, network.normalise(IMAGE[None, :, :64, :64]), none)
        labels = whole(network, IMAGE[:, :64, :64], SMALL)
    assert even.shape == (1, 3, 64, 64)
    assert torch.equal(bare, coarse)
    assert torch.equal(labels, even[0].argmax(0).to(torch.uint8))


def test_training_points_lean_to_what_is_uncertain() -> None:
    torch.manual_seed(1)
    coarse = torch.zeros(1, 2, 8, 8)
    coarse[0, 0, :, :6] = 5  # certain but in the last two columns
    settings = Spec(**{**POINTREND, "points": 400})
    places = drawn(coarse, settings)
    assert places.shape == (1, 400, 2)
    inside = (places[0, :, 0] > 0.75).float()
    # 1,200 evenly drawn ones have some 300 there, which is all that 300 kept can be.
    assert inside[:300].mean() > 0.9
    assert inside[300:].mean() == pytest.approx(0.25, abs=0.1)


def test_both_losses_reach_what_they_are_of() -> None:
    torch.manual_seed(2)
    model = build(SMALL, 3).train()
    images, labels = IMAGE[None, :, :64, :64].repeat(2, 1, 1, 1), IMAGE[None, 0, :64, :64] % 3
    labels = labels.repeat(2, 1, 1)
    found = losses(model, images, labels, SMALL)
    found["points"].backward()
    assert model.point.layers[0].weight.grad is not None
    first = next(model.encoder.parameters()).grad
    assert first is not None
    assert first.abs().sum() > 0
    model.zero_grad()
    losses(model, images, labels, SMALL)["coarse"].backward()
    assert model.point.layers[0].weight.grad is None
    nothing = losses(model, images, torch.full_like(labels, UNLABELLED), SMALL)
    assert {name: loss.item() for name, loss in nothing.items()} == {"coarse": 0, "points": 0}


def test_unlabelled_pixels_count_in_the_mean_as_released(network: PointRend) -> None:
    half = torch.zeros(1, 64, 64, dtype=torch.uint8)
    half[:, :32] = UNLABELLED
    ours, theirs = (
        losses(network, IMAGE[None, :, :64, :64], half, Spec(**POINTREND, official=official))
        for official in ((), ("ignored-in-mean",))
    )
    assert theirs["coarse"].item() == pytest.approx(ours["coarse"].item() / 2, rel=1e-5)


def test_start_weights_are_those_of_its_encoder(network: PointRend) -> None:
    torch.manual_seed(5)
    donor = build(SMALL, 3).encoder.state_dict()
    model = build(SMALL, 3)
    start(model, donor)
    assert all(torch.equal(value, donor[key]) for key, value in model.encoder.state_dict().items())
    with pytest.raises(ValueError, match="another encoder"):
        start(model, {"conv1.weight": torch.zeros(64, 3, 7, 7)})
