"""Collapsed heads against plain ones: the same scores, whatever the sizes, weights and strategy."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import GLNET, THREE_PHASES
from torch import Tensor, nn

import glnet.spec
from bench.memory.runs import predict_run
from bench.method import load, network_for
from bench.run import run_of
from bench.tiling import labels_of, shrink_image
from bench.windows.weights import fold
from glnet.fast.collapsed_head import collapse
from glnet.fast.composed_convolution import (
    ComposedConvolution,
    UpsampledConvolution,
    inside,
    resizing,
    shrunk,
)
from glnet.inference import (
    Scores,
    scores_collaborative,
    scores_global,
    scores_global_to_local,
    scores_local,
)

SCORES: dict[str, Scores] = {
    "global": scores_global,
    "local": scores_local,
    "global-to-local": scores_global_to_local,
    "collaborative": scores_collaborative,
}
WIDE = {"fpn_width": 48, "smooth_width": 32}  # so that the finest level is taken in one step


def spec(strategy: str, **more: Any) -> glnet.spec.Spec:
    phases = ["local"] if strategy == "local" else THREE_PHASES
    return glnet.spec.Spec(**{**GLNET, "fpn_std": None, "phases": phases, **more})


def unsettled(network: nn.Module) -> nn.Module:
    """Statistics and biases that a training would leave, so that none of them can be forgotten."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.3)
    return network


def both(
    strategy: str, size: tuple[int, int], classes: int, dtype: torch.dtype, **more: Any
) -> tuple[Tensor, Tensor]:
    """Scores of the plain and of the collapsed network."""
    torch.manual_seed(0)
    settings, method = spec(strategy, **more), load("glnet")
    network = network_for(method, method.strategies[strategy], settings, classes)
    unsettled(network.to(dtype))
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    small = shrink_image(image, settings.global_size)
    with torch.inference_mode():
        plain = SCORES[strategy](network, image, small, settings)  # type: ignore[arg-type]
        collapsed = collapse(network)  # type: ignore[arg-type]
        found = SCORES[strategy](collapsed, image, small, settings)  # type: ignore[arg-type]
    return plain, found


@pytest.mark.parametrize("strategy", SCORES)
@pytest.mark.parametrize(
    ("size", "more"),
    [
        pytest.param((301, 417), {**WIDE, "global_px": 128, "patch_px": 128}, id="squares"),
        pytest.param(
            (391, 417), {**WIDE, "global_px": (97, 131), "patch_px": (121, 83)}, id="odd sides"
        ),
        pytest.param(
            (160, 90), {**WIDE, "global_px": (131, 97), "patch_px": 112}, id="narrower than a patch"
        ),
        pytest.param((200, 210), {"global_px": 96, "patch_px": 96}, id="narrow maps"),
        pytest.param((200, 210), {**WIDE, "patch_px": 96, "sharing": "shallow"}, id="shallow"),
        pytest.param((200, 210), {**WIDE, "patch_px": 96, "sharing": "none"}, id="no sharing"),
        pytest.param(
            (401, 417),
            {**WIDE, "global_px": 96, "patch_px": 96, "official": ("template-merge",)},
            id="merged as released",
        ),
    ],
)
def test_scores_in_double_precision(
    strategy: str, size: tuple[int, int], more: dict[str, Any]
) -> None:
    plain, found = both(strategy, size, 3, torch.float64, **{"overlap_px": 11, **more})
    assert found.shape == plain.shape
    assert float((found - plain).abs().max()) < 1e-9 * float(plain.max() - plain.min())


@pytest.mark.parametrize("strategy", SCORES)
@pytest.mark.parametrize("encoder", ["resnet18", "tu-tf_efficientnet_lite0", "mobilenet_v2"])
def test_scores_and_labels_in_single_precision(strategy: str, encoder: str) -> None:
    more = {**WIDE, "encoder": encoder, "global_px": 128, "patch_px": 128, "overlap_px": 16}
    plain, found = both(strategy, (260, 390), 5, torch.float32, **more)
    assert float((found - plain).abs().max()) < 1e-4 * float(plain.max() - plain.min())
    assert (labels_of(found) == labels_of(plain)).float().mean() > 0.9999


@pytest.mark.no_cover  # thousands of operators on fake tensors
def test_at_the_papers_size_a_quarter_of_the_operations_and_half_of_the_memory() -> None:
    specs = (glnet.spec.Spec(sub_batch=1, head=head) for head in ("plain", "collapsed"))
    plain, collapsed = (
        predict_run(run_of("glnet", "collaborative", spec, 7), (2448, 2448), "cuda")
        for spec in specs
    )
    assert plain.flops == pytest.approx(10.5e12, rel=0.01)
    assert collapsed.flops == pytest.approx(2.69e12, rel=0.01)
    assert collapsed.parameters == plain.parameters
    beyond = [one.device_bytes - one.weights_bytes for one in (plain, collapsed)]
    assert beyond[1] < beyond[0] / 2


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(7, 8), (9, 21), (30, 7)], ids=str)
@pytest.mark.parametrize("channels", [3, 17])
def test_a_chain_is_one_stencil_up_to_its_ring(
    length: int, size: tuple[int, int], channels: int
) -> None:
    torch.manual_seed(0)
    widths = [*[5, 6, 4, 7][:length], channels]
    chain = [
        torch.randn(after, before, 3, 3, dtype=torch.float64) for before, after in pairwise(widths)
    ]
    map = torch.randn(2, 5, *size, dtype=torch.float64)
    small = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    rows, columns = (resizing(*sides, map) for sides in zip((4, 3), size, strict=True))
    enlarged = nn.functional.interpolate(small, size, mode="bilinear", align_corners=False)
    for source, found in (
        (map, ComposedConvolution(chain)(map)),
        (enlarged, UpsampledConvolution(chain)(small, rows, columns)),
    ):
        expected = source
        for weight in chain:
            expected = nn.functional.conv2d(expected, weight, padding=1)
        assert torch.allclose(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize(("cells", "side"), [(127, 26), (64, 13), (21, 7), (20, 5)])
def test_what_taps_see_of_a_shrunk_map(cells: int, side: int) -> None:
    map = torch.randn(1, 1, cells, 1, dtype=torch.float64)
    assert inside(cells, side, ring=1)
    for tap, found in zip(range(-2, 3), shrunk(map[0], side, 1, 2), strict=True):
        moved = torch.zeros_like(map)
        for i in range(cells):
            if 0 <= i + tap < cells:
                moved[0, 0, i] = map[0, 0, i + tap]
        expected = nn.functional.interpolate(moved, (side, 1), mode="bilinear", align_corners=False)
        assert torch.allclose(found, expected[0], rtol=0, atol=1e-12)


def test_where_shrinking_reads_the_border() -> None:
    assert not inside(10, 10, ring=0)
    assert inside(20, 10, ring=0)
    assert not inside(20, 10, ring=1)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-tf_efficientnet_lite0"])
def test_folding_leaves_no_batch_norm_and_changes_nothing(encoder: str) -> None:
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    network = smp.encoders.get_encoder(encoder, weights=None).double().eval()
    unsettled(network)
    image = torch.randn(1, 3, 70, 90, dtype=torch.float64)
    with torch.no_grad():
        before = network(image)
        fold(network, lambda: network(image))
        after = network(image)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9 * float(one.abs().max()))
