"""GLNet's parts: sizes from GLNET's paper and code, the affine FPN, which maps are shared, what a
step learns from."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from conftest import GLNET, THREE_PHASES
from torch import nn
from torch.nn import functional as F

from bench.tiling import Box, Merger, crop, grid, shrink_image
from glnet.inference import STRATEGIES, shared_crops
from glnet.model import FPN, GLNet, Maps, build
from glnet.spec import Spec
from glnet.training import backward, phases, seen, view

ENCODER_CHANNELS = (2048, 1024, 512, 256)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_of_the_paper() -> None:
    """For 7 classes, by part; the official network shares `classify` between its two global
    FPNs."""
    with torch.device("meta"):
        network = build(Spec(), 7)
    plain, receiving = network.global_branch.fpn, network.global_borrowing.fpn
    assert count(network.global_branch.encoder) == 23_508_032
    assert count(plain) == 4_556_807
    assert count(receiving) == count(network.local_branch.fpn) == 13_797_895
    assert count(network.aggregation) == 64_519
    official = (
        count(network.global_branch)
        + count(receiving)
        - count(plain.classify)
        + count(network.local_branch)
        + count(network.aggregation)
    )
    assert official == 79_200_917


def test_map_sizes_of_the_paper() -> None:
    with torch.device("meta"):
        network = build(Spec(phases=("global",)), 7)
        output = network.global_branch(torch.zeros(1, 3, 508, 508))
    assert [map.shape[-1] for map in output.maps.features] == [16, 32, 64, 127]
    assert [map.shape[1] for map in output.maps.features] == [*ENCODER_CHANNELS]
    assert [map.shape[1] for map in output.maps.smooth1] == [256] * 4
    assert [map.shape[1] for map in output.maps.smooth2] == [128] * 4
    assert output.fused.shape == (1, 512, 127, 127)
    assert output.logits.shape == (1, 7, 127, 127)


def test_initialisation_is_the_official_one() -> None:
    network = build(Spec(encoder="tu-mobilenetv3_small_050", phases=("global",)), 7)
    for module in network.global_branch.fpn.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.1)
            assert module.bias is not None
            assert module.bias.abs().max() == 0


def maps_like(features: list[torch.Tensor], width: int, smooth: int) -> Maps:
    kinds = [
        [torch.randn(1, channels or map.shape[1], *map.shape[-2:]).double() for map in features]
        for channels in (0, width, width, smooth)
    ]
    return Maps(*kinds)


def test_the_fpn_is_affine_in_features_and_received_maps() -> None:
    """No activation, no normalisation: f(a) + f(b) = f(a + b) + f(0)."""
    torch.manual_seed(0)
    fpn = FPN((8, 6, 4, 4), 8, 4, 3, receives=4).double()
    sides = (2, 4, 7, 14)

    def some() -> tuple[list[torch.Tensor], Maps]:
        features = [
            torch.randn(1, c, s, s).double() for c, s in zip((8, 6, 4, 4), sides, strict=True)
        ]
        return features, maps_like(features, 8, 4)

    def combined(one: tuple, other: tuple, sign: float) -> tuple[list[torch.Tensor], Maps]:
        features = [a + sign * b for a, b in zip(one[0], other[0], strict=True)]
        shared = [
            [a + sign * b for a, b in zip(x, y, strict=True)]
            for x, y in zip(one[1], other[1], strict=True)
        ]
        return features, Maps(*shared)

    a, b = some(), some()
    zero = combined(a, a, -1)
    left = fpn(*a).logits + fpn(*b).logits
    right = fpn(*combined(a, b, 1)).logits + fpn(*zero).logits
    torch.testing.assert_close(left, right, atol=1e-12, rtol=0)


def test_own_and_received_maps_never_interact() -> None:
    """What docs/mosaic.md says: with any weights, the logits of a patch are f(patch) + g(image),
    so that f(a) + g(x) - f(b) - g(x) is what it is with y shared in place of x."""
    network, spec = small()
    network.double().eval()
    places = grid(64, 64, 32, 0)

    def logits(patches: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        output = network.global_branch(whole)
        local = network.local_branch(patches, shared_crops(output.maps, places, (64, 64), spec))
        return network.aggregation(local.fused, crop(output.fused, places, (64, 64)))

    def merged_logits(patches: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        output = network.global_branch(whole)
        local = network.local_branch(patches, shared_crops(output.maps, places, (64, 64), spec))
        merger = Merger(output.maps.features, (64, 64))
        merger.add(local.maps, places)
        shared = network.global_borrowing(whole, merger.mean()).fused
        return network.aggregation_borrowing(local.fused, crop(shared, places, (64, 64)))

    torch.manual_seed(5)
    a, b = torch.rand(2, 4, 3, 32, 32).double()
    x, y = torch.rand(2, 1, 3, 64, 64).double()
    with torch.inference_mode():
        for score in (logits, merged_logits):
            at_x, at_y = score(a, x) - score(b, x), score(a, y) - score(b, y)
            assert at_x.abs().max() > 1e-3, "the patch counts"
            assert (score(a, x) - score(a, y)).abs().max() > 1e-3, "the received maps count"
            torch.testing.assert_close(at_x, at_y, atol=1e-10, rtol=0)


def small(phases: list[str] = THREE_PHASES, **more: object) -> tuple[GLNet, Spec]:
    torch.manual_seed(0)
    spec = Spec(**{**GLNET, "phases": phases, **more})
    return build(spec, 3), spec


IMAGE = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8, generator=torch.manual_seed(3))
LABEL = torch.randint(0, 3, (70, 90), dtype=torch.uint8, generator=torch.manual_seed(4))


@pytest.mark.parametrize(
    ("part", "strategies"),
    [
        ("global_branch", {"global", "global-to-local", "collaborative"}),
        ("local_branch", {"global-to-local", "collaborative"}),
        ("aggregation", {"global-to-local"}),
        ("global_borrowing", {"collaborative"}),
        ("aggregation_borrowing", {"collaborative"}),
    ],
)
def test_a_strategy_depends_on_just_its_parts(part: str, strategies: set[str]) -> None:
    """Breaking a part changes the labels of the strategies that declare it, and of no other."""
    network, spec = small()
    network.eval()
    names = ("global", "global-to-local", "collaborative")
    with torch.inference_mode():
        before = {name: STRATEGIES[name].predict(network, IMAGE, spec) for name in names}
    with torch.no_grad():
        for parameter in getattr(network, part).parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    with torch.inference_mode():
        after = {name: STRATEGIES[name].predict(network, IMAGE, spec) for name in names}
    assert {name for name in names if not torch.equal(before[name], after[name])} == strategies
    declared = {name for name in names if part in (STRATEGIES[name].parts or ())}
    assert declared == strategies


def test_the_view_of_each_phase() -> None:
    _, spec = small(patches_per_image=4)
    rng = torch.Generator().manual_seed(0)
    seen = view(IMAGE, LABEL, spec, "global", rng)
    assert set(seen) == {"size", "global", "global_label"}
    assert seen["global"].shape == (3, 64, 64)
    assert seen["global_label"].shape == (16, 16)
    local = view(IMAGE, LABEL, spec, "global-to-local", rng)
    assert local["patches"].shape == (4, 3, 32, 32)
    assert local["labels"].shape == (4, 8, 8)
    merged = view(IMAGE, LABEL, spec, "local-to-global", rng)
    assert len(merged["patches"]) == 12  # all of them are merged, four are learnt from
    assert len(merged["labels"]) == len(merged["chosen"]) == 4


@pytest.mark.parametrize("phase", ["local", "local-to-global"])
def test_patches_are_drawn_by_class_where_the_spec_says_so(phase: str) -> None:
    """One pixel is of a rare class: half of the draws choose a patch that shows it."""
    _, spec = small(patches_per_image=1, sample_classes=True)
    label = torch.zeros_like(LABEL)
    label[3, 3] = 1
    rng = torch.Generator().manual_seed(0)
    views = [seen(IMAGE, label, spec, phase, rng) for _ in range(40)]
    chosen = [Box(*one["boxes"][one["chosen"]][0].tolist()) for one in views]
    assert 15 <= sum(box.shows(3, 3) for box in chosen) <= 30
    unlabelled = torch.full_like(LABEL, 255)
    assert len(seen(IMAGE, unlabelled, spec, phase, rng)["chosen"]) == 1


@pytest.mark.parametrize("phase", ["local", *THREE_PHASES[1:]])
def test_the_sub_batch_does_not_change_the_gradient(phase: str) -> None:
    """Batch norm apart, whose statistics are those of a group: it is held in eval mode here."""
    gradients = []
    for sub_batch in (1, 5, 12):
        network, spec = small(["local"] if phase == "local" else THREE_PHASES, sub_batch=sub_batch)
        network.double().eval().requires_grad_(False)
        plan = next(one for one in phases(network, spec) if one.name == phase)
        for module in plan.trains:
            module.requires_grad_(True)
        network.mean, network.std = network.mean.double(), network.std.double()
        seen = view(IMAGE, LABEL, spec, phase, torch.Generator().manual_seed(2))
        network.normalise = lambda images, n=network: (images.double() / 255 - n.mean) / n.std  # type: ignore[method-assign]
        loss = backward(network, [seen, seen], spec, phase, torch.Tensor.backward)
        gradients.append((loss, [p.grad for p in network.parameters() if p.grad is not None]))
    for loss, gradient in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-12)
        for one, other in zip(gradient, gradients[0][1], strict=True):
            torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


def test_the_last_phase_starts_from_what_was_learnt() -> None:
    network, spec = small()
    last = phases(network, spec)[2]
    last.begin()
    pairs = [
        (network.global_branch.encoder, network.global_borrowing.encoder),
        (network.global_branch.fpn.classify, network.global_borrowing.fpn.classify),
        (network.aggregation, network.aggregation_borrowing),
    ]
    for source, target in pairs:
        for one, other in zip(
            source.state_dict().values(), target.state_dict().values(), strict=True
        ):
            assert torch.equal(one, other)
            assert one.data_ptr() != other.data_ptr()


def test_crops_of_the_global_map_depend_on_the_global_image() -> None:
    network, _ = small()
    network.eval()
    with torch.inference_mode():
        maps = network.global_branch(network.normalise(IMAGE[None, :, :64, :64])).maps
        left, right = (
            crop(maps.features[-1], [Box(0, start, 32, 32)], (64, 64)) for start in (0, 32)
        )
    assert left.shape == right.shape == (1, maps.features[-1].shape[1], 8, 8)
    assert not torch.equal(left, right)


@pytest.mark.parametrize("enlarge", ["nearest", "bilinear"])
def test_enlarged_scores_of_the_global_branch(enlarge: Literal["nearest", "bilinear"]) -> None:
    network, spec = small()
    network.eval()
    spec = replace(spec, enlarge=enlarge)
    strategy = STRATEGIES["global"]
    assert strategy.scores
    with torch.inference_mode():
        scores = strategy.scores(network, IMAGE, spec)
        coarse = network.global_branch(
            network.normalise(shrink_image(IMAGE, spec.global_size)[None])
        )
        corners = False if enlarge == "bilinear" else None
        wanted = F.interpolate(coarse.logits, IMAGE.shape[-2:], mode=enlarge, align_corners=corners)
        torch.testing.assert_close(scores, wanted[0])
        labels = strategy.predict(network, IMAGE, spec)
    assert torch.equal(labels, scores.argmax(0).to(labels.dtype))
