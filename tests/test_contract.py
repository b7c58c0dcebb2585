"""One test for every method x strategy: what the harness relies on."""

import copy
import importlib
import pickle
from dataclasses import replace
from functools import cache
from typing import Any, get_args

import pytest
import torch
from conftest import CASCADEPSP, FCTL, GLNET, MAGNET, PLAIN, POINTREND, SGNET, THREE_PHASES
from torch import nn

import glnet.spec
from baselines.cascadepsp import spec as cascadepsp
from baselines.f2net import spec as f2net
from baselines.fctl import spec as fctl
from baselines.generic import spec as generic
from baselines.isdnet import spec as isdnet
from baselines.magnet import spec as magnet
from baselines.pointrend import spec as pointrend
from baselines.rue import spec as rue
from baselines.sgnet import spec as sgnet
from bench.memory.runs import predict_run
from bench.method import load, network_for
from bench.run import run_of
from bench.tiling import importance
from bench.windows import device_image

CLASSES = 3
FULL_RESOLUTION = ("whole", "progressive", "fast")
"""Strategies whose maps of the image's size lie on the device."""
SMALL_PX, LARGE_PX = 104, 200
"""Sides of images: one batch of patches fills the first, several the second."""
NETWORKS = get_args(generic.Network)
ENCODERS = {
    "icnet": "resnet18",
    "segformer": "mit_b0",
    "upernet": "tu-test_convnext",
    "dpt": "tu-test_vit",
    "linear": "tu-test_vit",
}
"""Where the others' does not fit."""
FCTL_VARIANTS = ("inria", "deepglobe")


def spec(method: str, network: str = "", **more: Any) -> Any:
    if method == "glnet":
        phases = ["local"] if network == "alone" else THREE_PHASES
        return glnet.spec.Spec(**{**GLNET, "phases": phases, **more})
    if method == "baselines/fctl":
        return fctl.Spec(**{**FCTL, "variant": network, **more})
    if method == "baselines/isdnet":
        more.pop("sub_batch", None)  # it has no patches
        return isdnet.Spec(crop_px=64, **more)
    if method == "baselines/cascadepsp":
        more.pop("sub_batch", None)
        return cascadepsp.Spec(**{**CASCADEPSP, **more})
    if method == "baselines/pointrend":
        more.pop("sub_batch", None)
        return pointrend.Spec(**{**POINTREND, **more})
    if method == "baselines/rue":
        more.pop("sub_batch", None)
        return rue.Spec(patches=4, train_patches=2, crop_px=64, **more)
    if method == "baselines/f2net":
        more.pop("sub_batch", None)
        return f2net.Spec(crop_px=64, **more)
    if method == "baselines/sgnet":
        return sgnet.Spec(**{**SGNET, **more})
    if method == "baselines/magnet":
        return magnet.Spec(**{**MAGNET, **more})
    encoder = ENCODERS.get(network)
    own = {"encoder": encoder, "decoder_width": 16} if encoder else {}
    return generic.Spec(**{**PLAIN, **own, "network": network, "train_on": "patch", **more})


CASES = [("baselines/generic", n, s) for n in NETWORKS for s in get_args(generic.Strategy)] + [
    ("glnet", "alone" if s == "local" else "", s) for s in get_args(glnet.spec.Strategy)
]
CASES += [("baselines/fctl", "inria", s) for s in get_args(fctl.Strategy)]
CASES += [
    ("baselines/fctl", "deepglobe", s) for s in ("large", "contexts")
]  # the others are the same
CASES += [("baselines/isdnet", "", s) for s in get_args(isdnet.Strategy)]
CASES += [("baselines/cascadepsp", "", s) for s in get_args(cascadepsp.Strategy)]
CASES += [("baselines/pointrend", "", s) for s in get_args(pointrend.Strategy)]
CASES += [("baselines/magnet", "", s) for s in get_args(magnet.Strategy)]
CASES += [("baselines/rue", "", s) for s in get_args(rue.Strategy)]
CASES += [("baselines/sgnet", "", s) for s in get_args(sgnet.Strategy)]
CASES += [("baselines/f2net", "", s) for s in get_args(f2net.Strategy)]
ids = [f"{network or method}-{strategy}" for method, network, strategy in CASES]


def made(method: str, network: str, strategy: str, **more: Any) -> tuple[nn.Module, Any, Any]:
    """A prepared network that belongs to the caller, its strategy and its spec."""
    model, plan, settings = prepared(method, network, strategy)
    return copy.deepcopy(model), plan, replace(settings, **more)


@cache
def prepared(method: str, network: str, strategy: str) -> tuple[nn.Module, Any, Any]:
    """As `made`, but shared by all tests of this process: to be read, not changed."""
    package, settings = load(method), spec(method, network)
    torch.manual_seed(0)
    plan = package.strategies[strategy]
    return plan.prepare(network_for(package, plan, settings, CLASSES), settings), plan, settings


@pytest.mark.parametrize("method", list(dict.fromkeys(method for method, _, _ in CASES)))
def test_the_names_of_strategies_are_those_in_the_spec(method: str) -> None:
    named = get_args(importlib.import_module(f"{method.replace('/', '.')}.spec").Strategy)
    assert tuple(load(method).strategies) == named


@pytest.mark.parametrize(("method", "network", "strategy"), CASES, ids=ids)
@pytest.mark.parametrize("size", [(70, 90), (21, 75), (17, 13)], ids=str)
def test_labels_for_an_image_of_any_size(
    method: str, network: str, strategy: str, size: tuple[int, int]
) -> None:
    model, plan, settings = prepared(method, network, strategy)
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    before = image.clone()
    with torch.inference_mode():
        labels = plan.predict(model, image, settings)
        again = plan.predict(model, image, settings)
    assert labels.shape == size
    assert labels.dtype == torch.uint8
    assert labels.max() < CLASSES
    assert torch.equal(image, before), "the image is not the strategy's to change"
    assert torch.equal(labels, again), "nothing is remembered from one image to the next"


@pytest.mark.parametrize(("method", "network", "strategy"), CASES, ids=ids)
def test_a_gpu_holds_weights_and_no_full_resolution_but_in_whole(
    method: str, network: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs the device code on fake CUDA tensors: a tensor left on the wrong device fails here."""
    monkeypatch.setattr(device_image, "CHUNK_BYTES", 2**12)  # smaller than either image
    run = run_of(method, strategy, spec(method, network, sub_batch=16), CLASSES)
    small, large = (predict_run(run, (SMALL_PX, width), "cuda") for width in (SMALL_PX, LARGE_PX))
    assert small.device_bytes > small.weights_bytes > 0
    grown = large.device_bytes - small.device_bytes
    pixels = SMALL_PX * (LARGE_PX - SMALL_PX)
    if strategy in FULL_RESOLUTION:
        assert grown > 0
    else:
        # The image, its labels, and the sums that a row of patches leaves to the next.
        assert abs(grown) <= 0.02 * small.device_bytes + 8 * pixels
        assert abs(grown) < 4 * CLASSES * pixels, "less than the scores"
    assert large.host_bytes > small.host_bytes  # the image and the canvas


@pytest.mark.parametrize(("method", "network", "strategy"), CASES, ids=ids)
def test_the_sub_batch_does_not_change_the_labels(method: str, network: str, strategy: str) -> None:
    image = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8)
    model, plan, _ = prepared(method, network, strategy)
    labels = []
    for sub_batch in (1, 5):
        with torch.inference_mode():
            labels.append(plan.predict(model, image, spec(method, network, sub_batch=sub_batch)))
    assert (labels[0] == labels[1]).float().mean() > 0.999  # rounding may break a tie


@pytest.mark.parametrize(
    ("method", "network"),
    [
        *(("baselines/generic", n) for n in NETWORKS),
        ("glnet", ""),
        ("glnet", "alone"),
        ("baselines/isdnet", ""),
        ("baselines/cascadepsp", ""),
        ("baselines/pointrend", ""),
        ("baselines/magnet", ""),
        ("baselines/rue", ""),
        ("baselines/f2net", ""),
        ("baselines/sgnet", ""),
        *(("baselines/fctl", v) for v in FCTL_VARIANTS),
    ],
)
def test_each_phase_moves_its_modules_and_nothing_else(method: str, network: str) -> None:
    torch.manual_seed(0)
    package, settings = load(method), spec(method, network)
    model = package.build(settings, CLASSES)
    rng = torch.Generator().manual_seed(1)
    for phase in package.phases(model, settings):
        phase.begin()
        model.eval().requires_grad_(False)
        for module in phase.trains:
            module.train().requires_grad_(True)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        views = [
            package.view(
                torch.randint(0, 255, (3, *size), dtype=torch.uint8),
                torch.randint(0, CLASSES, size, dtype=torch.uint8),
                settings,
                phase.name,
                rng,
            )
            for size in ((70, 90), (70, 90))
        ]
        assert pickle.loads(pickle.dumps(views))  # noqa: S301 - what loader workers do with them
        loss = package.backward(model, views, settings, phase.name, torch.Tensor.backward)
        assert loss == loss
        own = {id(p) for module in phase.trains for p in module.parameters()}
        moved = {id(p) for p in model.parameters() if p.grad is not None}
        assert moved <= own
        assert moved == own
        if own:
            torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3).step()
        trained = {
            name
            for name, module in model.named_modules()
            if any(module is one for one in phase.trains)
        }
        for name, value in model.state_dict().items():
            inside = any(not part or name.startswith(part + ".") for part in trained)
            if not inside:
                assert torch.equal(value, before[name]), name
        model.zero_grad(set_to_none=True)


def test_an_unknown_encoder_is_one_sentence() -> None:
    from bench.errors import UserError

    for method in (
        "baselines/generic",
        "glnet",
        "baselines/magnet",
        "baselines/cascadepsp",
        "baselines/pointrend",
        "baselines/sgnet",
    ):
        network = "unet" if method == "baselines/generic" else ""
        for encoder in ("resnet51", "tu-resnet51", "tu-hf_hub:a/b", "tu-local-dir:."):
            with pytest.raises(UserError, match=f"no encoder '{encoder}'"):
                load(method).build(spec(method, network, encoder=encoder), CLASSES)


@pytest.mark.parametrize(
    ("method", "network", "strategy"),
    [
        ("baselines/generic", "unet", "patch"),
        ("baselines/fctl", "inria", "plain"),
        ("baselines/fctl", "inria", "contexts"),
        ("baselines/sgnet", "", "surround"),
        ("glnet", "alone", "local"),
        ("glnet", "", "global-to-local"),
        ("glnet", "", "collaborative"),
    ],
    ids=str,
)
def test_patches_may_be_weighted_by_a_gaussian(method: str, network: str, strategy: str) -> None:
    """An image of one patch: its sum is the patch's scores, each times its weight."""
    model, plan, settings = prepared(method, network, strategy)
    assert plan.scores is not None
    image = torch.randint(0, 255, (3, 24, 28), dtype=torch.uint8)
    with torch.inference_mode():
        plain, blended = (
            plan.scores(model, image, replace(settings, blend=blend))
            for blend in ("mean", "gaussian")
        )
    assert torch.allclose(blended, (plain * importance(24, 28)).to(blended))
    assert not torch.allclose(blended, plain)
