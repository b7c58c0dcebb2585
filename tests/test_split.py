"""Training by split convolutions, against the convolutions of doubled maps that it stands for."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import GLNET, THREE_PHASES
from torch import Tensor, nn

import glnet.fast.split_convolution
import glnet.training
from glnet.fast.composed_convolution import resizing
from glnet.fast.split_convolution import convolved, of_enlarged
from glnet.model import FPN, Aggregation, GLNet, build
from glnet.spec import Spec

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


@pytest.mark.parametrize("learns", [(True, True, True), (False, True, True), (True, True, False)])
def test_a_convolution_that_learns_in_another_layout(
    learns: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    map = torch.randn(2, 6, 7, 9, dtype=torch.float64).to(memory_format=torch.channels_last)
    weight = torch.randn(5, 12, 3, 3, dtype=torch.float64)
    leaves = [
        one.requires_grad_(needed)
        for one, needed in zip(
            (map, weight, torch.randn(5, dtype=torch.float64)), learns, strict=True
        )
    ]
    back = torch.randn(2, 5, 7, 9, dtype=torch.float64)
    gradients = []
    for slow in (False, True):
        monkeypatch.setattr(
            glnet.fast.split_convolution, "_slow_in_nhwc", lambda map, weight, slow=slow: slow
        )
        found = convolved(map, weight[:, 6:], leaves[2])
        assert ("WeightGradientInNCHW" in type(found.grad_fn).__name__) == slow
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        gradients.append([found, *torch.autograd.grad(found, wanted, back)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_where_a_layout_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    map, weight = torch.zeros(1, 64, 64, 64), torch.zeros(64, 64, 3, 3, requires_grad=True)
    for capability, slow in (("AVX2", True), ("AVX512", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda is_=capability: is_)
        assert glnet.fast.split_convolution._slow_in_nhwc(map, weight) == slow
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not glnet.fast.split_convolution._slow_in_nhwc(map, weight.detach())
    assert not glnet.fast.split_convolution._slow_in_nhwc(map[..., :32], weight)
    assert not glnet.fast.split_convolution._slow_in_nhwc(map, weight[:32])
    assert not glnet.fast.split_convolution._slow_in_nhwc(map, weight[..., :1, :1])
    with torch.no_grad():
        assert not glnet.fast.split_convolution._slow_in_nhwc(map, weight)


class Formed:
    """`ComposedAggregation`, with a fused map that is formed as `glnet.model` does."""

    def __init__(self, fpn: FPN, aggregation: Aggregation) -> None:
        self.fpn, self.aggregation = fpn, aggregation

    def scores(self, last: Sequence[Tensor], received: Sequence[Tensor], shared: Tensor) -> Tensor:
        size = last[-1].shape[-2:]

        def enlarged(map: Tensor, size: torch.Size) -> Tensor:
            return nn.functional.interpolate(map, size, mode="bilinear", align_corners=False)

        maps = []
        for level, own in enumerate(last):
            maps.append(enlarged(own, size))
            if received:
                maps.append(enlarged(enlarged(received[level], own.shape[-2:]), size))
        fused = torch.cat(maps, 1)
        if self.fpn.smooth3 is not None:
            fused = self.fpn.smooth3(fused)
        scores: Tensor = self.aggregation(fused, shared)
        return scores

    def backward(self) -> None:
        """Gradients have come to the aggregation with each group."""


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
        glnet.fast.split_convolution, "_pays", differs
    )  # it says what is faster, never what is right
    monkeypatch.setattr(glnet.fast.split_convolution, "of_enlarged", counted)
    loss, gradients = step(network, spec, phase)
    assert mixed_first, "some map is mixed at its own size"
    monkeypatch.setattr(glnet.training, "pyramid", None)
    monkeypatch.setattr(glnet.training, "levels", None)
    monkeypatch.setattr(glnet.training, "ComposedAggregation", Formed)
    monkeypatch.setattr(glnet.training, "aggregate", None)
    mixed_first.clear()
    expected, theirs = step(network, spec, phase)
    assert not mixed_first
    assert loss == pytest.approx(expected, rel=1e-12)
    assert gradients.keys() == theirs.keys()
    for name, one in gradients.items():
        largest = float(theirs[name].abs().max())
        torch.testing.assert_close(one, theirs[name], rtol=0, atol=1e-9 * max(largest, 1e-3))
