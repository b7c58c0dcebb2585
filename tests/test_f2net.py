"""F2Net: what its modules do by definition, its scan, its losses, and its weights' names."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from baselines.f2net.inference import STRATEGIES, features, scores
from baselines.f2net.model import Alignment, F2Net, Split, build, start
from baselines.f2net.scan import selective_scan
from baselines.f2net.spec import Spec
from baselines.f2net.training import gradient_norms, losses, view
from reference.checkpoint_io import shapes_of
from reference.keys import f2net_key

GOLDEN = Path(__file__).parent / "golden/f2net"


@pytest.fixture(scope="module")
def network() -> F2Net:
    torch.manual_seed(0)
    return build(Spec(), 3).eval().requires_grad_(False)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_names_and_shapes_are_those_of_the_released_modules() -> None:
    golden = json.loads((GOLDEN / "state_dict_keys.json").read_text())
    ours = shapes_of("baselines.f2net", 7)
    assert {f2net_key(key): list(shape) for key, shape in ours.items()} == golden["keys"]


@pytest.mark.parametrize("length", [1, 7, 32, 33, 1100])
def test_the_scan_is_the_recurrence(length: int) -> None:
    """Step by step; 1,100 steps are more than 32 chunks of 32."""
    x = torch.randn(2, length, 3, 4, generator=rng(), dtype=torch.float64)
    into, out = torch.randn(2, 2, length, 5, generator=rng(1), dtype=torch.float64)
    decay = -0.1 * torch.rand(2, length, 3, generator=rng(2), dtype=torch.float64)
    state = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    expected = []
    for step in range(length):
        state = decay[:, step].exp()[..., None, None] * state
        state = state + x[:, step, :, :, None] * into[:, step, None, None]
        expected.append((state * out[:, step, None, None]).sum(-1))
    found = selective_scan(x, decay, into, out)
    assert torch.allclose(found, torch.stack(expected, 1), atol=1e-12)


def test_low_and_high_frequencies_add_up_and_a_constant_is_low() -> None:
    torch.manual_seed(1)
    split, x = Split(), torch.randn(1, 3, 21, 34, generator=rng())
    with torch.inference_mode():
        low, high = split(x)
        assert torch.allclose(low + high, split.project(x), atol=1e-6)
        flat = split(torch.ones(1, 3, 9, 9))[1]
        half = split(x, 0.5)[0]
    assert flat[..., 1:-1, 1:-1].abs().max() < 1e-6
    assert flat[..., 0, :].abs().max() > 1e-3, "kernels lose what lies in the padding"
    assert torch.allclose(half, F.interpolate(low, (10, 17), mode="bilinear"))
    with_gradient = split(x)
    assert torch.allclose(low, with_gradient[0], atol=1e-6)
    assert torch.allclose(high, with_gradient[1], atol=1e-6)


def test_the_alignment_is_zero_for_equal_distributions_and_symmetric() -> None:
    torch.manual_seed(2)
    module = Alignment()
    low, high = torch.randn(2, 128, 4, 5, generator=rng()), torch.randn(2, 512, 4, 5)
    p, q = module.low(low).softmax(1), module.high(high).softmax(1)
    both = F.kl_div(q.log(), p, reduction="none") + F.kl_div(p.log(), q, reduction="none")
    assert module(low, high).item() == pytest.approx(both.sum(1).mean().item() / 2, rel=1e-4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert module(low, high).item() == 0


def test_the_balance_is_the_spread_of_three_gradients() -> None:
    torch.manual_seed(3)
    model = build(Spec(), 3).eval()
    x = torch.randn(1, 3, 32, 48, generator=rng())
    labels = torch.randint(0, 3, (1, 32, 48), generator=rng(), dtype=torch.uint8)
    found = features(model, x, Spec())
    terms = losses(model, found, labels, Spec())
    norms = gradient_norms(model, terms["entropy"])
    spread = (norms - norms.mean()).abs().sum()
    assert terms["balance"].item() == pytest.approx(0.1 * spread.item(), rel=1e-5)
    blocks = (
        model.short.pyramid.join,
        model.long.blocks[-1],
        model.high.get_submodule("stages.3.1"),
    )
    terms["entropy"].backward(retain_graph=True)  # type: ignore[no-untyped-call]
    for block, norm in zip(blocks, norms, strict=True):
        own = torch.cat([p.grad.flatten() for p in block.parameters() if p.grad is not None])
        assert norm.item() == pytest.approx(own.norm().item(), rel=1e-3)  # float32
    assert norms.requires_grad, "the optimiser can change them"
    assert losses(model, found, labels, Spec(balance_weight=0)).keys() == {"entropy", "alignment"}


def test_labels_are_those_of_the_scores(network: F2Net) -> None:
    image = torch.randint(0, 255, (3, 41, 33), dtype=torch.uint8, generator=rng())
    with torch.inference_mode():
        labels = STRATEGIES["whole"].predict(network, image, Spec())
        found = scores(network, network.normalise(image[None]), Spec())
    assert torch.equal(labels, found[0].argmax(0).to(torch.uint8))


def test_a_view_is_a_crop_whose_labels_move_with_it() -> None:
    image = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8, generator=rng())
    label = (image[0] > 127).to(torch.uint8)
    for seed in range(4):
        seen = view(image, label, Spec(crop_px=64), "train", rng(seed))
        assert torch.equal((seen["image"][0] > 127).to(torch.uint8), seen["label"])


def test_start_weights_are_refused(network: F2Net) -> None:
    with pytest.raises(ValueError, match="leave `start` out"):
        start(network, {})
