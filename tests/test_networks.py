"""The rivals' networks: as many parameters as they state, any size, gradients everywhere."""

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import ROOT
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from baselines.generic.model import Colour, Network, build, start
from baselines.generic.networks import fcn8s
from baselines.generic.networks.vgg import VGG16, bilinear
from baselines.generic.spec import Spec
from bench.errors import UserError
from bench.memory.prediction import Building, fake_copy
from bench.method import load
from data.weights import encoder_state

CLASSES = 7


def network(name: str, **more: Any) -> Network:
    made = build(Spec(**{"network": name, "train_on": "patch", **more}), CLASSES)
    assert isinstance(made, Network)
    return made


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Worked out from the tables of the papers, layer by layer, for 7 classes.
COUNTS: list[tuple[str, dict[str, Any], int]] = [
    ("unet2015", {}, 31_032_135),
    ("fcn8s", {}, 134_296_181),
    ("segnet", {}, 29_447_047),
    ("enet", {}, 361_814),
    ("icnet", {}, 24_582_325),
    ("pspnet", {}, 48_946_510),
    ("deeplabv3plus", {}, 26_679_127),
    ("fpn", {}, 26_116_807),
    ("unet", {"encoder": "mobilenet_v2"}, 6_629_815),
    # With 150 classes instead of 7 these are the papers' 3.8, 27.5 and 343 million; UPerNet's 60
    # million include an auxiliary head.
    ("segformer", {"encoder": "mit_b0"}, 3_715_943),
    ("segformer", {"encoder": "mit_b2"}, 27_352_007),
    ("upernet", {"encoder": "tu-convnext_tiny"}, 59_245_479),
    ("dpt", {"encoder": "tu-vit_large_patch16_384"}, 343_292_679),
    ("linear", {"encoder": "tu-vit_small_patch14_dinov2"}, 22_058_887),
]


@pytest.mark.parametrize(("name", "more", "count"), COUNTS, ids=[f"{c[0]}-{c[2]}" for c in COUNTS])
def test_as_many_parameters_as_stated(name: str, more: dict[str, Any], count: int) -> None:
    with Building():
        assert parameters(network(name, **more)) == count
    own = ROOT / "baselines/generic/networks" / f"{name}.py"
    stated = (own if own.is_file() else ROOT / "baselines/generic/model.py").read_text()
    assert f"{count:,}" in stated


SMALL: dict[str, dict[str, Any]] = {
    "unet2015": {"width": 4},
    "fcn8s": {"width": 4},
    "segnet": {"width": 4},
    "enet": {"width": 8},
    "icnet": {"encoder": "resnet18", "decoder_width": 16},
    "pspnet": {"encoder": "tu-mobilenetv3_small_050", "decoder_width": 16},
    "deeplabv3plus": {"encoder": "tu-mobilenetv3_small_050", "decoder_width": 16},
    "fpn": {"encoder": "tu-mobilenetv3_small_050", "decoder_width": 64},
    "unet": {"encoder": "mobilenet_v2", "decoder_width": 16},
    "segformer": {"encoder": "mit_b0", "decoder_width": 16},
    "upernet": {"encoder": "tu-test_convnext", "decoder_width": 16},
    "dpt": {"encoder": "tu-test_vit", "decoder_width": 16},
    "linear": {"encoder": "tu-test_vit"},
}


@pytest.mark.parametrize("name", SMALL)
def test_scores_at_the_size_of_the_image_and_a_gradient_everywhere(name: str) -> None:
    torch.manual_seed(0)
    net = network(name, **SMALL[name])
    for parameter in net.parameters():  # FCN's scores start at 0, and pass no gradient on
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    for height, width in ((101, 75), (67, 130)):
        images = torch.randint(0, 255, (2, 3, height, width), dtype=torch.uint8)
        heads = net.train().heads(images)
        assert all(scores.shape == (2, CLASSES, height, width) for _, scores in heads)
    torch.stack([(scores * torch.randn_like(scores)).sum() for _, scores in heads]).sum().backward()
    without = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    with torch.inference_mode():
        net.eval()
        torch.testing.assert_close(net(images), net.heads(images)[0][1])


@pytest.mark.parametrize(
    ("name", "weights"), [("icnet", [1.0, 0.4, 0.16]), ("pspnet", [1.0, 0.4]), ("segnet", [1.0])]
)
def test_auxiliary_losses_weigh_as_published(name: str, weights: list[float]) -> None:
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    assert [weight for weight, _ in network(name, **SMALL[name]).heads(images)] == weights


def test_the_loss_is_that_of_all_heads() -> None:
    torch.manual_seed(0)
    method, spec = (
        load("baselines/generic"),
        Spec(network="icnet", train_on="patch", **SMALL["icnet"]),
    )
    net = network("icnet", **SMALL["icnet"]).eval()
    image = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    label = torch.randint(0, CLASSES, (64, 64), dtype=torch.uint8)
    views = [{"image": image, "label": label}]
    found = method.backward(net, views, spec, "train", torch.Tensor.backward)
    with torch.no_grad():
        by_hand = sum(
            weight * nn.functional.cross_entropy(scores, label[None].long())
            for weight, scores in net.heads(image[None])
        )
    assert found == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("name", ["linear", "dpt", "segformer", "upernet"])
def test_a_frozen_encoder_is_not_trained(name: str) -> None:
    net = network(name, **SMALL[name])
    spec = Spec(network=name, train_on="patch", frozen_encoder=True)
    (phase,) = load("baselines/generic").phases(net, spec)
    trained = {id(p) for module in phase.trains for p in module.parameters()}
    frozen = {key for key, p in net.named_parameters() if id(p) not in trained}
    assert frozen == {key for key, _ in net.named_parameters() if ".encoder." in key}
    assert trained


@pytest.mark.parametrize(
    ("encoder", "patch_px"),
    [("tu-vit_small_patch14_dinov2", 14), ("tu-samvit_base_patch16", 16)],
)
def test_a_linear_head_takes_published_encoders_at_any_size(encoder: str, patch_px: int) -> None:
    with Building():
        net = network("linear", encoder=encoder)
    assert net.stride == patch_px
    fake = FakeTensorMode()
    with fake:
        images = torch.empty(1, 3, 101, 75, dtype=torch.uint8)
        copied = fake_copy(net, fake, "cpu").eval()
        assert copied(images).shape == (1, CLASSES, 101, 75)
        # 112 x 84 for patches of 14 px: 64 px at least, and whole patches.
        assert all(side % patch_px == 0 and side >= 64 for side in copied._input(images).shape[-2:])


@pytest.mark.parametrize("pad_px", [0, 100])
@pytest.mark.parametrize("path", ["score", "score4", "score3"])
def test_each_path_of_fcn_answers_where_it_was_asked(path: str, pad_px: int) -> None:
    """Every convolution passes on the first channel: a bright square comes out where it was, within
    half a pixel of pool5, although crops differ from path to path."""
    net = fcn8s.FCN8s(2, width=4, pad_px=pad_px).eval()
    closed = {net.score, net.score4, net.score3} - {getattr(net, path)}
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            side = module.kernel_size[0] // 2
            with torch.no_grad():
                module.weight[0, 0, side, side] = module not in closed
    image = torch.zeros(1, 3, 200, 260)
    image[..., 64:128, 96:160] = 1
    with torch.inference_mode():
        scores = net(image)[0, 0]
    assert scores.shape == (200, 260)
    mass = scores / scores.sum()
    row = float((mass.sum(1) * torch.arange(200)).sum())
    column = float((mass.sum(0) * torch.arange(260)).sum())
    limit = {"score": 16, "score4": 8, "score3": 4}[path]
    assert abs(row - 95.5) <= limit
    assert abs(column - 127.5) <= limit


def test_bilinear_kernels_keep_a_constant() -> None:
    ones = torch.ones(1, 3, 6, 6)
    for factor in (2, 8):
        up = nn.functional.conv_transpose2d(ones, bilinear(3, factor), stride=factor)
        inner = up[..., factor:-factor, factor:-factor]
        torch.testing.assert_close(inner, torch.ones_like(inner))


@pytest.mark.parametrize(("encoder", "batch_norm"), [("vgg16", False), ("vgg16_bn", True)])
def test_vgg_is_the_librarys_and_takes_its_weights(encoder: str, batch_norm: bool) -> None:
    with torch.device("meta"):
        theirs = smp.encoders.get_encoder(encoder, weights=None).state_dict()
        own = VGG16(64, batch_norm).state_dict()
    assert {key: value.shape for key, value in own.items()} == {
        key: value.shape for key, value in theirs.items()
    }


def test_start_weights_arrive() -> None:
    net = network("segnet", **SMALL["segnet"])
    encoder = net.network.encoder
    assert isinstance(encoder, nn.Module)
    state = {key: torch.full_like(value, 2) for key, value in encoder.state_dict().items()}
    start(net, state)
    assert all((value == 2).all() for value in encoder.state_dict().values())
    start(Colour(3), state)  # the floor has none to take


@pytest.mark.parametrize(
    ("name", "message"), [("enet", "has no encoder"), ("segnet", "are of another encoder")]
)
def test_start_weights_that_do_not_fit_are_refused(name: str, message: str) -> None:
    net, other = network(name, **SMALL[name]), VGG16(4, batch_norm=False).state_dict()
    with pytest.raises(UserError, match=message):
        load("baselines/generic").start(net, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "icnet", "encoder": "mobilenet_v2"}, "take resnet50"),
        ({"network": "icnet", "encoder": "resnet51"}, "no encoder 'resnet51'"),
        ({"network": "fcn8s", "fcn_pad_px": 50}, "pads its input by 100 px"),
        ({"network": "linear"}, "takes a ViT of timm"),
        ({"network": "linear", "encoder": "tu-test_convnext"}, "test_convnext is none"),
        ({"network": "dpt", "encoder": "mit_b0"}, "takes a ViT of timm"),
        ({"network": "dpt", "encoder": "tu-test_convnext"}, "dpt does not take tu-test_convnext"),
        ({"network": "dpt", "encoder": "tu-vit_small_patch14_dinov2"}, "patches of 14 px"),
        ({"network": "segformer", "encoder": "tu-test_vit"}, "Unsupported model downsampling"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("baselines/generic").build(Spec(**{"train_on": "patch", **settings}), CLASSES)


@pytest.mark.parametrize("encoder", ["vgg16", "vgg16_bn", "mobilenet_v2", "resnet50"])
def test_a_hub_out_of_reach_is_one_sentence_with_a_way_out(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = smp.encoders.get_encoder

    def unreachable(name: str, weights: str | None) -> nn.Module:
        if weights:
            raise OSError("no route to host")
        with torch.device("meta"):
            made: nn.Module = known(name, weights=None)
        return made

    monkeypatch.setattr(smp.encoders, "get_encoder", unreachable)
    with pytest.raises(UserError, match=f"weights of {encoder} could not .* source to `none`"):
        encoder_state(encoder, "hub")
    assert encoder_state(encoder, "none") == {}
