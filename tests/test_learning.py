"""The loss and the augmentation that all methods share."""

import pytest
import torch
from torch.nn import functional as F

from bench.errors import UserError
from bench.optim import (
    adamw,
    flip_and_turn,
    focal_loss,
    pixel_by_class,
    poly,
    random_crop,
    sgd,
    stepped,
)

LOGITS = torch.randn(2, 3, 5, 7, generator=torch.manual_seed(0))
LABEL = torch.randint(0, 3, (2, 5, 7), dtype=torch.uint8, generator=torch.manual_seed(1))


def test_gamma_zero_is_cross_entropy() -> None:
    torch.testing.assert_close(focal_loss(LOGITS, LABEL, 0), F.cross_entropy(LOGITS, LABEL.long()))


def test_focal_loss_by_hand() -> None:
    """One pixel, q = 1/4 for the true class: (3/4)^3 log 4."""
    logits = torch.log(torch.tensor([1.0, 3.0])).view(1, 2, 1, 1)
    label = torch.zeros(1, 1, 1, dtype=torch.uint8)
    assert focal_loss(logits, label, 3).item() == pytest.approx(0.75**3 * 1.3862944, rel=1e-6)


def test_unlabelled_pixels_do_not_count() -> None:
    label = LABEL.clone()
    label[0] = 255
    torch.testing.assert_close(focal_loss(LOGITS, label, 3), focal_loss(LOGITS[1:], LABEL[1:], 3))
    assert focal_loss(LOGITS, torch.full_like(LABEL, 255), 3).item() == 0


def test_certain_pixels_are_clamped() -> None:
    logits = torch.tensor([100.0, -100.0]).view(1, 2, 1, 1).requires_grad_()
    for true in (0, 1):
        label = torch.full((1, 1, 1), true, dtype=torch.uint8)
        loss = focal_loss(logits, label, 3)
        loss.backward()
        assert torch.isfinite(loss)
    assert loss.item() == pytest.approx(16.118, rel=1e-3)


def test_image_and_label_turn_together() -> None:
    label = torch.arange(6 * 9).view(6, 9).to(torch.uint8)
    image = label.expand(3, 6, 9)
    rng, shapes, seen = torch.Generator().manual_seed(0), set(), set()
    for _ in range(300):
        turned, turned_label = flip_and_turn(image, label, rng)
        assert torch.equal(turned[0], turned_label)
        shapes.add(tuple(turned_label.shape))
        seen.add(tuple(turned_label.flatten().tolist()))
    assert shapes == {(6, 9), (9, 6)}
    assert len(seen) == 8  # all elements of the square's symmetry group


def test_the_learning_rate_falls_from_the_first_to_the_least() -> None:
    assert poly(0.01, 0.0001, 0, 80, 0.9) == pytest.approx(0.01)
    assert poly(0.01, 0.0001, 40, 80, 0.9) == pytest.approx(0.0099 * 0.5**0.9 + 0.0001)
    assert poly(0.01, 0.0001, 80, 80, 0.9) == 0.0001
    assert poly(0.01, 0, 90, 80, 0.9) == 0
    # A training that is taken up in the middle is one of half the length from the rate there.
    halfway = 5e-5 * 0.5**0.9
    assert halfway == pytest.approx(2.679433656e-5)
    assert poly(halfway, 0, 25, 50, 0.9) == pytest.approx(poly(5e-5, 0, 75, 100, 0.9))


def test_a_learning_rate_that_drops() -> None:
    found = [stepped(1e-3, step, (10, 20)) for step in (0, 9, 10, 19, 20, 99)]
    assert found == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_adamw_decays_weights_and_not_gradients() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(2)
    optimiser = adamw([layer], 0.5)
    assert optimiser is not None
    optimiser.param_groups[0]["lr"] = 0.1
    layer.weight.grad = torch.full_like(layer.weight, 3)
    optimiser.step()
    assert layer.weight.item() == pytest.approx(2 - 0.1 * 0.5 * 2 - 0.1, abs=1e-5)
    assert adamw([torch.nn.ReLU()], 0.5) is None


def test_sgd_has_momentum_and_decays_weights() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(2)
    optimiser = sgd([layer], 0.5)
    assert optimiser is not None
    optimiser.param_groups[0]["lr"] = 0.1
    seen = []
    for _ in range(2):
        optimiser.zero_grad()
        layer(torch.ones(1, 1)).sum().backward()
        optimiser.step()
        seen.append(layer.weight.item())
    # v = 1 + .5 * 2 = 2; then v = .9 * 2 + 1 + .5 * 1.8
    assert seen == pytest.approx([1.8, 1.8 - 0.1 * 3.7])
    assert sgd([torch.nn.ReLU()], 0.5) is None


def test_class_weights_scale_the_loss_of_a_pixel_by_its_true_class() -> None:
    label = LABEL.clone()
    label[0, 0] = 255
    weights = (0.5, 2.0, 7.0)
    expected = 0.0
    for k, weight in enumerate(weights):
        of_class = torch.where(label == k, label, 255).to(torch.uint8)
        expected += weight * float(focal_loss(LOGITS, of_class, 2) * (label == k).sum())
    found = focal_loss(LOGITS, label, 2, class_weights=weights)
    assert found.item() == pytest.approx(expected / int((label != 255).sum()), rel=1e-5)


def test_class_weights_have_to_fit_the_classes() -> None:
    with pytest.raises(UserError, match="2 numbers, but the data set has 3 classes"):
        focal_loss(LOGITS, LABEL, 0, class_weights=(1, 2))


def test_rare_classes_are_drawn_as_often_as_frequent_ones() -> None:
    label = torch.zeros(60, 80, dtype=torch.uint8)
    label[:30] = 1
    label[40, 7:10] = 2
    label[:, 70:] = 255
    rng = torch.manual_seed(0)
    pixels = [pixel_by_class(label, rng) for _ in range(900)]
    drawn = torch.tensor([int(label[pixel]) for pixel in pixels if pixel])
    assert all(250 < (drawn == k).sum() < 350 for k in range(3))
    assert {pixel for pixel in pixels if pixel and label[pixel] == 2} == {(40, 7), (40, 8), (40, 9)}
    ones = [pixel for pixel in pixels if pixel and label[pixel] == 1]
    assert {row for row, _ in ones} == set(range(30))
    columns = {column for _, column in ones}
    assert columns <= set(range(70))
    assert len(columns) > 60


def test_nothing_is_drawn_without_labels() -> None:
    assert pixel_by_class(torch.full((4, 5), 255, dtype=torch.uint8), torch.manual_seed(0)) is None


def test_crops_by_class_show_the_class_at_any_place() -> None:
    label = torch.zeros(50, 60, dtype=torch.uint8)
    label[0, 59] = 1
    label[25, 30] = 1
    image = label.expand(3, -1, -1)
    rng = torch.manual_seed(0)
    crops = [random_crop(image, label, 16, rng, by_class=True) for _ in range(300)]
    shown = torch.stack([crop for _, crop in crops])
    assert all(torch.equal(image[0], crop) for image, crop in crops)
    assert 130 < shown.amax((1, 2)).sum() < 220  # of the half drawn for class 1, all
    places = shown.nonzero()
    assert len(set(places[:, 1].tolist())) == len(set(places[:, 2].tolist())) == 16
    small = random_crop(image, label, 70, rng, by_class=True)[1]
    assert small.shape == (70, 70)
