"""SGNet: where surroundings lie, what of them a patch sees, its attention, and its losses."""

import pytest
import torch
from conftest import SGNET
from torch.nn import functional as F

from baselines.sgnet.inference import STRATEGIES, corners, enlarged, surroundings
from baselines.sgnet.model import SGNet, WindowAttention, build, located, start
from baselines.sgnet.spec import Spec
from baselines.sgnet.training import losses, view
from bench.tiling import Box

SMALL = Spec(**SGNET)
IMAGE = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8, generator=torch.manual_seed(3))
LABEL = torch.randint(0, 3, (70, 90), dtype=torch.uint8, generator=torch.manual_seed(4))


@pytest.fixture(scope="module")
def network() -> SGNet:
    torch.manual_seed(0)
    return build(SMALL, 3).eval().requires_grad_(False)


def test_surroundings_are_moved_inside_the_image() -> None:
    spec = Spec()
    assert surroundings(Box(0, 1936, 512, 512), (2448, 2448), spec) == (0, 1424, 1024, 1024)
    assert surroundings(Box(968, 968, 512, 512), (2448, 2448), spec) == (712, 712, 1024, 1024)
    assert surroundings(Box(0, 0, 512, 300), (800, 300), spec) == (0, 0, 800, 300)
    assert corners([Box(968, 968, 512, 512)], [Box(712, 712, 1024, 1024)]).tolist() == [[256, 256]]


def test_a_patch_sees_its_own_part_of_the_surroundings() -> None:
    """A map that is its own place in pixels, at 1/16."""
    cells = 16 * (torch.arange(8.0) + 0.5)
    maps = torch.stack([cells[:, None].expand(8, 8), cells.expand(8, 8)])[None].expand(
        2, -1, -1, -1
    )
    found = located(maps, torch.tensor([[32, 16], [40, 60]]), (8, 4))
    for number, (top, left) in enumerate(((32, 16), (40, 60))):
        assert torch.allclose(found[number, 0, :, 0], top + 4 * (torch.arange(8.0) + 0.5))
        assert torch.allclose(found[number, 1, 0], left + 4 * (torch.arange(4.0) + 0.5))


def test_attention_stays_in_its_window() -> None:
    torch.manual_seed(1)
    module, x = WindowAttention(8, 2, 4), torch.randn(2, 8, 6, 9)
    found = module(x)
    query, key, value = module.qkv(x)[0, :, :4, 4:8].reshape(3, 2, 4, 16).transpose(2, 3)
    mixed = (query @ key.transpose(1, 2) / 2).softmax(-1) @ value  # heads of 4 channels
    expected = module.project(mixed.transpose(1, 2).reshape(1, 8, 4, 4))
    assert torch.allclose(found[0, :, :4, 4:8], expected[0], atol=1e-5)
    other = x.clone()
    other[..., 5, 8] += 1
    changed = (module(other) - found).abs().amax((0, 1)) > 1e-6
    assert changed.nonzero().min(0).values.tolist() == [4, 8]


def test_labels_depend_on_what_lies_around_a_patch(network: SGNet) -> None:
    patch, around = IMAGE[None, :, :32, :32], IMAGE[None, :, :64, :64]
    other = around.clone()
    other[..., 48:, 48:] = 255
    place = torch.zeros(1, 2)
    found, changed = (network(patch, one, place) for one in (around, other))
    assert not torch.allclose(found.patch, changed.patch)
    assert found.patch.shape == (1, 3, 8, 8)
    assert found.around.shape == (1, 3, 4, 4)


def test_scores_are_those_of_the_patches(network: SGNet) -> None:
    with torch.inference_mode():
        labels = STRATEGIES["surround"].predict(network, IMAGE[:, :32, :64], SMALL)
        halves = []
        for left in (0, 32):
            patch = IMAGE[None, :, :32, left : left + 32]
            place = torch.tensor([[0, left]])
            halves.append(network(patch, IMAGE[None, :, :32, :64], place).patch)
    expected = torch.cat([enlarged(half, (32, 32)) for half in halves], 3)
    assert torch.equal(labels, expected[0].argmax(0).to(torch.uint8))


def test_the_loss_has_the_papers_weights(network: SGNet) -> None:
    seen = view(IMAGE, LABEL, SMALL, "train", torch.Generator().manual_seed(5))
    batch = {key: value[None] for key, value in seen.items()}
    top, left = seen["corner"].tolist()
    assert torch.equal(seen["around"][:, top : top + 32, left : left + 32], seen["patch"])
    assert torch.equal(seen["label_around"][top : top + 32, left : left + 32], seen["label"])
    terms = losses(network, batch, SMALL)
    found = network(batch["patch"], batch["around"], batch["corner"])
    scores = F.interpolate(found.patch, (32, 32), mode="bilinear")
    around = F.interpolate(found.around, (64, 64), mode="bilinear")
    expected = F.cross_entropy(scores, batch["label"].long())
    assert terms["patch"].item() == pytest.approx(expected.item(), rel=1e-5)
    expected = F.cross_entropy(around, batch["label_around"].long())
    assert terms["around"].item() == pytest.approx(0.4 * expected.item(), rel=1e-5)
    part = located(found.around, batch["corner"], (8, 8)).softmax(1)
    expected = F.l1_loss(found.patch.softmax(1), part)
    assert terms["agreement"].item() == pytest.approx(0.1 * expected.item(), rel=1e-5)


def test_start_weights_of_both_branches(network: SGNet) -> None:
    encoder = network.encoder.state_dict()
    torch.manual_seed(5)
    model = build(SMALL, 3)
    start(model, encoder)
    assert all(torch.equal(model.encoder.state_dict()[key], encoder[key]) for key in encoder)
    with pytest.raises(ValueError, match=r"features\.0\.conv\.weight is missing"):
        start(model, {"features.1.conv.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="starts from its encoder"):
        start(model, {"fc.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "settings", [{"overlap_px": 512}, {"context_px": 256}, {"heads": 3}], ids=str
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="has to"):
        Spec(**settings)  # type: ignore[arg-type]
