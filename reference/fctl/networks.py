"""The networks and images that golden data tells of."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from baselines.fctl.model import Enlarge, FCtL, build
from baselines.fctl.spec import PhaseName, Spec
from reference.fctl.checkpoint import source_of
from reference.formulas import generator, image, label

FLOAT = {"float32": torch.float32, "float64": torch.float64}
MODES: dict[int, tuple[PhaseName, str]] = {
    1: ("plain", "plain"),
    2: ("medium", "medium"),
    3: ("all", "contexts"),
    4: ("all", "contexts"),
}
"""The released code's number of a mode -> our phase and strategy."""
PARTS = {
    "plain": ("plain",),
    "medium": ("medium_vgg", "medium_rest"),
    "all": ("medium_vgg", "large_vgg", "local"),
}
LIKE_VGG = ("vgg.features.", "output.0.", "output.3.")
LOUDER = {"adj_pool4.weight": 128, "adj_pool3.weight": 8192}
"""So that the finer maps, which are scaled down before, weigh something."""


def weight(key: str, shape: Sequence[int], seed: int) -> NDArray[np.float32]:
    """The value of a parameter of the released network, by its official name."""
    name = f"resnet_{key}" if key.startswith(LIKE_VGG) else key
    values = generator(f"{name}:{seed}").standard_normal(tuple(shape))
    if key.endswith(".bias"):
        values *= 0.1
    elif len(shape) == 4:
        values *= np.sqrt((2.0 if name != key else 1.0) / np.prod(shape[1:]))
    else:  # the gain of a correlation
        values = 1 + 0.1 * values
    found: NDArray[np.float32] = values.astype(np.float32)
    return found * np.float32(LOUDER.get(key, 1))


def spec_of(golden: Mapping[str, Any], mode: int) -> Spec:
    """The settings of a case, those of the released code, for the phase of a mode."""
    config = golden["config"]
    variant: Literal["inria", "deepglobe"] = "deepglobe" if mode == 4 else "inria"
    own: dict[str, Any] = {"medium_factor": config.get("context10")}
    if variant == "deepglobe":
        own = {"medium_factor": config["context"], "whole_px": tuple(config["size_g"])}
    elif "context15" in config:
        own["large_factor"] = config["context15"]
    return Spec(
        variant=variant,
        phases=(MODES[mode][0],),
        patch_px=tuple(config["size_p"]),
        sub_batch=config["sub_batch"],
        dropout=0,
        official=("float64-scores", "summed-gradients", "last-loss", "kept-canvas"),
        **own,
    )


def network_of(golden: Mapping[str, Any], mode: int, dtype: str) -> FCtL:
    """The network with the weights of a case, in eval mode, and only what the mode needs."""
    spec = spec_of(golden, mode)
    config, seed = golden["config"], golden["config"]["seed"]
    seeds = {
        "medium_vgg": golden.get("medium_seed", seed + 100),
        "large_vgg": golden.get("large_seed", seed + 200),
    }
    with torch.device("meta"):
        network = build(spec, config.get("n_class", 7))
    for part in [name for name, _ in network.named_children()]:
        if part not in PARTS[spec.phases[0]]:
            delattr(network, part)
    # Buffers that no checkpoint holds are lost on meta.
    network = network.to_empty(device="cpu").to(FLOAT[dtype])
    network.mean.copy_(torch.tensor(spec.mean).view(3, 1, 1))
    network.std.copy_(torch.tensor(spec.std).view(3, 1, 1))
    for module in network.modules():
        if isinstance(module, Enlarge):
            module.kernel.copy_(Enlarge(module.times).kernel)
    network.eval().requires_grad_(False)
    for key, value in network.state_dict().items():
        name = source_of(key, spec.variant).key
        part = key.split(".", 1)[0]
        own = seeds.get(part, seed) if spec.phases == ("all",) else seed
        value.copy_(torch.from_numpy(weight(name, tuple(value.shape), own)))
    return network


def pictures(config: Mapping[str, Any], seed: int) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) uint8 of the case's size and its label (H, W)."""
    pixels = image(config["h"], config["w"], seed).transpose(2, 0, 1).copy()
    labels = label(config["h"], config["w"], seed, config.get("n_class", 7))
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def shrink(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 at another size, by Pillow itself, as in the released code."""
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    small = np.asarray(pixels.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return torch.from_numpy(small.transpose(2, 0, 1).copy())
