"""Training by split convolutions, against the convolutions of doubled maps that it stands for."""

from typing import Any

import pytest
import torch
from conftest import GLNET, THREE_PHASES
from torch import Tensor, nn

import glnet.split
import glnet.training
from glnet.model import GLNet, build
from glnet.spec import Spec
from glnet.split import of_enlarged
from glnet.stencil import resizing

IMAGE = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8, generator=torch.manual_seed(3))
LABEL = torch.randint(0, 3, (70, 90), dtype=torch.uint8, generator=torch.manual_seed(4))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("size", "target"), [((3, 5), (13, 11)), ((1, 2), (9, 4))], ids=str)
def test_a_convolution_of_an_enlarged_map(
    kernel: int, size: tuple[int, int], target: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    map = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, kernel, kernel, dtype=torch.float64, requires_grad=True)
    enlarged = nn.functional.interpolate(map, target, mode="bilinear", align_corners=False)
    expected = nn.functional.conv2d(enlarged, weight, padding=kernel // 2)
    rows, columns = (resizing(*sides, map) for sides in zip(size, target, strict=True))
    found = of_enlarged(map, weight, rows, columns)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    back = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, (map, weight), back),
        torch.autograd.grad(expected, (map, weight), back),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def step(network: GLNet, spec: Spec, phase: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one optimiser step of two views."""
    network.zero_grad()
    plan = next(one for one in glnet.training.phases(network, spec) if one.name == phase)
    network.eval().requires_grad_(False)
    for module in plan.trains:
        module.train().requires_grad_(True)
    rng = torch.Generator().manual_seed(2)
    views = [glnet.training.seen(IMAGE, LABEL, spec, phase, rng) for _ in range(2)]
    loss = glnet.training.backward(network, views, spec, phase, Tensor.backward)
    named = network.named_parameters()
    return loss, {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("phase", THREE_PHASES[1:])
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"sharing": "shallow"}, id="shallow"),
        pytest.param({"official": True, "patch_px": 52, "overlap_px": 10}, id="as released"),
        pytest.param({"patch_px": (33, 45), "overlap_px": 7}, id="odd"),
    ],
)
def test_losses_and_gradients_of_a_step(
    phase: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    settings = {**GLNET, "phases": THREE_PHASES, "fpn_width": 24, "smooth_width": 20, **more}
    spec = Spec(**settings)
    network = build(spec, 3).double()
    mixed_first = []

    def counted(*args: Tensor) -> Tensor:
        mixed_first.append(args[0].shape)
        return of_enlarged(*args)

    def differs(map: Tensor, weight: Tensor, size: tuple[int, int]) -> bool:
        return map.shape[-2:] != size

    monkeypatch.setattr(
        glnet.split, "_pays", differs
    )  # it says what is faster, never what is right
    monkeypatch.setattr(glnet.split, "of_enlarged", counted)
    loss, gradients = step(network, spec, phase)
    assert mixed_first, "some map is mixed at its own size"
    monkeypatch.setattr(glnet.training, "pyramid", None)
    monkeypatch.setattr(glnet.training, "aggregate", None)
    mixed_first.clear()
    expected, theirs = step(network, spec, phase)
    assert not mixed_first
    assert loss == pytest.approx(expected, rel=1e-12)
    assert gradients.keys() == theirs.keys()
    for name, one in gradients.items():
        largest = float(theirs[name].abs().max())
        torch.testing.assert_close(one, theirs[name], rtol=0, atol=1e-9 * max(largest, 1e-3))
