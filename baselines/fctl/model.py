"""FCtL: a patch is segmented with its surroundings (ICCV 2021, arXiv 2109.02580).

Three FCN-8s on VGG-16 are trained on patches, on patches with a medium context, and with a large
context. The last network takes the VGGs of the latter two, frozen, and correlates its own coarsest
map with theirs. Each phase has its own modules, so that one checkpoint serves every strategy:

    plain                    phase plain    an FCN-8s on a patch alone
    medium_vgg, medium_rest  phase medium   one VGG for patch and medium context, correlated
    large_vgg, large_rest    phase large    the same with the large context; in the `deepglobe`
                                            variant an FCN-8s on the shrunk whole image
    local                    phase all      an FCN-8s that receives the maps of both VGGs

`idle_*` are weights that the released code keeps on the GPU and never uses."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.fctl.spec import Spec
from baselines.parts import Normalised, kaiming, small, start_encoder

BORDER_PX = 100  # zeros around the input, so that the 7 x 7 convolution needs none
STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # (width in units of the first, convolutions)
IMAGENET = 1000  # classes of the unused classifier
SCALES = (0.01, 0.0001)  # of pool4 and pool3 before they are adapted


class Maps(NamedTuple):
    """VGG's last three pooled maps, at 1/8, 1/16 and 1/32 of the bordered input."""

    pool3: Tensor
    pool4: Tensor
    pool5: Tensor


class VGG(nn.Module):
    """VGG-16's features without batch norm, numbered as torchvision numbers them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, padding = 3, BORDER_PX
        self.pools: list[int] = []
        for times, count in STAGES:
            for _ in range(count):
                layers += [
                    nn.Conv2d(inputs, times * width, 3, padding=padding),
                    nn.ReLU(inplace=True),
                ]
                inputs, padding = times * width, 1
            self.pools.append(len(layers))
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                kaiming(layer)

    def forward(self, x: Tensor) -> Maps:
        """(N, 3, H, W) normalised -> its maps; 508 px give 89, 45 and 23."""
        found = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.pools[2:]:
                found.append(x)
        return Maps(*found)


class Enlarge(nn.Module):
    """Fixed bilinear enlarging without padding: n -> times * (n - 1) + 2 * times."""

    kernel: Tensor

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        side = 2 * times
        row = 1 - (torch.arange(side) - (side - 1) / 2).abs() / times
        self.register_buffer("kernel", torch.outer(row, row)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, K, h, w); classes are not mixed."""
        kernel = self.kernel.expand(x.shape[1], -1, -1, -1)
        enlarged: Tensor = F.conv_transpose2d(x, kernel, stride=self.times, groups=x.shape[1])
        return enlarged


class Decoder(nn.Module):
    """FCN-8s behind VGG: scores of the coarsest map, and of two finer ones added to them."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__()
        channels, width = 8 * spec.width, spec.head_width
        self.head = nn.Sequential(
            nn.Conv2d(channels, width, 7),
            nn.ReLU(inplace=True),
            nn.Dropout(spec.dropout),
            nn.Conv2d(width, width, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(spec.dropout),
            nn.Conv2d(width, classes, 1),
        )
        self.adapt4 = nn.Conv2d(channels, classes, 1)
        self.adapt3 = nn.Conv2d(channels // 2, classes, 1)
        self.enlarge5, self.enlarge4, self.enlarge3 = Enlarge(2), Enlarge(2), Enlarge(8)

    def forward(self, maps: Maps, size: tuple[int, int]) -> Tensor:
        """Maps of an input of `size` (H, W), the coarsest perhaps fused -> scores (N, K, H, W)."""
        x = self.enlarge5(self.head(maps.pool5))
        # The factors come before the convolutions, so that their biases are not scaled.
        x = x + _window(self.adapt4(SCALES[0] * maps.pool4), 5, x.shape[-2:])
        x = self.enlarge4(x)
        x = x + _window(self.adapt3(SCALES[1] * maps.pool3), 9, x.shape[-2:])
        return _window(self.enlarge3(x), 31, size)


class Correlation(nn.Module):
    """Attention of every position of a patch over the positions of its context, without scaling,
    heads or normalisation."""

    def __init__(self, channels: int, centred: bool) -> None:
        super().__init__()
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.gain = nn.Parameter(torch.zeros(1))  # the identity at the start
        self.centred = centred
        _narrow(self)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """A patch's map (N, C, h, w) and its context's (N or 1, C, h', w') -> (N, C, h, w)."""
        query, key = self.query(x).flatten(2), self.key(context).flatten(2)  # (N, C, P), (N, C, Q)
        if self.centred:
            query = query - query.mean(2, keepdim=True)
            key = key - key.mean(2, keepdim=True)
        weights = (query.transpose(1, 2) @ key).softmax(2)  # (N, P, Q)
        value = self.value(context).flatten(2)
        attended: Tensor = self.gain * (value @ weights.transpose(1, 2)).view_as(x)
        return attended


class Blend(nn.Module):
    """Three correlations and their adaptive fusion, with a weight for each channel and position.

    Between `into`, `trans` and `out` there is no activation; the sigmoid before the softmax keeps
    every share between 0.155 and 0.576."""

    def __init__(self, channels: int, order: Sequence[str], centred: bool) -> None:
        super().__init__()
        self.order = tuple(order)
        self.correlate = nn.ModuleDict({name: Correlation(channels, centred) for name in order})
        self.into = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in order)
        self.trans = nn.Conv2d(3 * channels, 3 * channels, 1)
        self.out = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in order)
        _narrow(self)

    def forward(self, x: Tensor, medium: Tensor, large: Tensor) -> Tensor:
        """A patch's map (N, C, h, w) and those of its contexts -> the fused map (N, C, h, w)."""
        context = {"medium": medium, "large": large, "local": x}
        found = [self.correlate[name](x, context[name]) for name in self.order]
        mixed = [into(one) for into, one in zip(self.into, found, strict=True)]
        parts = self.trans(torch.cat(mixed, 1)).chunk(3, 1)
        gates = [out(part).sigmoid() for out, part in zip(self.out, parts, strict=True)]
        shares = self.shares(gates)
        for share, one in zip(shares, found, strict=True):
            x = x + share * one
        return x

    @staticmethod
    def shares(gates: Sequence[Tensor]) -> Tensor:
        """Three gates (N, C, h, w) -> shares (3, N, C, h, w) that add up to 1."""
        return torch.stack(list(gates)).softmax(0)


class FCN(nn.Module):
    """FCN-8s on a patch alone."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__()
        self.vgg = VGG(spec.width)
        self.decoder = Decoder(spec, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised -> scores (N, K, H, W)."""
        scores: Tensor = self.decoder(self.vgg(x), (x.shape[-2], x.shape[-1]))
        return scores


class Rest(nn.Module):
    """The layers behind the shared VGG of patch and context; without a correlation if there is no
    context."""

    def __init__(self, spec: Spec, classes: int, correlates: bool) -> None:
        super().__init__()
        self.decoder = Decoder(spec, classes)
        self.correlate = _correlation(spec) if correlates else None

    def forward(self, maps: Maps, context: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Maps of an input of `size` (H, W), its context's coarsest map -> scores (N, K, H, W)."""
        if self.correlate is not None:
            assert context is not None
            maps = maps._replace(pool5=maps.pool5 + self.correlate(maps.pool5, context))
        scores: Tensor = self.decoder(maps, size)
        return scores


class Local(FCN):
    """FCN-8s that receives the contexts' coarsest maps."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__(spec, classes)
        self.blend = Blend(8 * spec.width, order_of(spec), spec.variant == "deepglobe")

    def forward(  # type: ignore[override]
        self, x: Tensor, medium: Tensor, large: Tensor
    ) -> Tensor:
        """(N, 3, H, W) normalised, maps (N or 1, C, h, w) of its contexts -> scores (N, K, H,
        W)."""
        maps = self.vgg(x)
        maps = maps._replace(pool5=self.blend(maps.pool5, medium, large))
        scores: Tensor = self.decoder(maps, (x.shape[-2], x.shape[-1]))
        return scores


class Idle(nn.Module):
    """Weights on the device that are never used; not in checkpoints."""

    weights: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.empty(count), persistent=False)


class FCtL(Normalised):
    """The networks of the phases that a spec trains."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__(spec.mean, spec.std, divisor=255)
        together = "all" in spec.phases
        if "plain" in spec.phases:
            self.plain = FCN(spec, classes)
        if together or "medium" in spec.phases:
            self.medium_vgg = VGG(spec.width)
            self.medium_rest = Rest(spec, classes, correlates=True)
        if together or "large" in spec.phases:
            self.large_vgg = VGG(spec.width)
            self.large_rest = Rest(spec, classes, correlates=spec.variant == "inria")
        if together:
            self.local = Local(spec, classes)
        if spec.quirk("idle-weights"):
            # torchvision's classifier, of which every network keeps its own.
            for part in ("plain", "medium", "large", "local"):
                self.add_module(f"idle_{part}", Idle(_classifier(spec)))
            with torch.device("meta"):
                decoder, one = Decoder(spec, classes), _correlation(spec)
                block = Blend(8 * spec.width, order_of(spec), centred=False)
            if spec.variant == "deepglobe":  # the whole image's network with all its head
                kernels = classes**2 * (16 + 16 + 256)  # as released: dense, and nearly all 0
                self.idle_head = Idle(_count(decoder) + kernels)
            else:  # with one context, two of three correlations and their fusion
                self.idle_block = Idle(_count(block) - _count(one))


def order_of(spec: Spec) -> tuple[str, ...]:
    """The order in which the three correlations are fused."""
    if spec.variant == "inria":
        return ("medium", "large", "local")
    return ("local", "medium", "large")


def build(spec: Spec, classes: int) -> FCtL:
    """FCtL with random weights: with 7 classes 134,294,613 that learn in the phase `plain`,
    135,082,070 in `medium` and `large`, 140,593,752 in `all`."""
    return FCtL(spec, classes)


def start(network: nn.Module, encoder_state: Mapping[str, Tensor]) -> None:
    """Give every VGG its ImageNet weights, and every head VGG's fully connected layers where the
    state has them (`classifier.0`, `classifier.3`).

    Raises:
        ValueError: these are not VGG-16's weights, or not of the spec's width.
    """
    dense = {
        f"{layer}.{kind}": encoder_state[f"classifier.{layer}.{kind}"]
        for layer in (0, 3)
        for kind in ("weight", "bias")
        if f"classifier.{layer}.{kind}" in encoder_state
    }
    for module in network.modules():
        if isinstance(module, VGG):
            start_encoder(
                module,
                encoder_state,
                "the start weights are not those of VGG-16 without batch norm (encoder vgg16), "
                "or the spec's `width` is not 64.",
            )
        if isinstance(module, Decoder) and len(dense) == 4:
            own = module.head.state_dict()
            if any(value.numel() != own[key].numel() for key, value in dense.items()):
                raise ValueError(
                    "the spec's `head_width` is not that of VGG-16's classifier, 4096."
                )
            reshaped = {key: value.view_as(own[key]) for key, value in dense.items()}
            module.head.load_state_dict({**own, **reshaped})


def _correlation(spec: Spec) -> Correlation:
    return Correlation(8 * spec.width, spec.variant == "deepglobe")


def _classifier(spec: Spec) -> int:
    """Parameters of VGG-16's classifier: 123,642,856."""
    channels, width = 8 * spec.width, spec.head_width
    return (49 * channels + 1) * width + (width + 1) * width + (width + 1) * IMAGENET


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _narrow(module: nn.Module) -> None:
    for one in module.modules():
        if isinstance(one, nn.Conv2d):
            small(one)


def _window(x: Tensor, first: int, size: Sequence[int]) -> Tensor:
    return x[..., first : first + size[0], first : first + size[1]]
