"""One image through the network: every map on the way to the labels, ours against theirs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.isdnet.inference import scores
from baselines.isdnet.model import Fused, ISDNet
from reference.check import Check, Comparing
from reference.golden import arrays, fingerprint, format_of
from reference.isdnet.networks import network_of, picture, spec_of

MAPS = {
    "backbone.layer1": "c2",
    "backbone.layer2": "c3",
    "backbone.layer3": "c4",
    "backbone.layer4": "c5",
    "pyramid.pool": "aspp_pool",
    **{f"pyramid.branches.{i}": f"aspp{i}" for i in range(4)},
    "pyramid": "deep_feat",
    "pyramid.classify": "deep_logits",
    "reduce": "deep_reduced",
    "shallow.parts.3": "shallow8",
    "shallow.parts.5": "shallow16",
    "classify": "logits8",
}
INPUTS = {"backbone": "deep_input", "shallow.parts.0": "shallow_input"}
VECTORS = {
    "shallow_vector": "s_att",
    "context_vector": "c_att",
    "shallow_mlp": "s_mlp",
    "context_mlp": "c_mlp",
}
KEPT = {  # (channels, rows and columns) between two values that the golden data keeps
    "deep_input": (1, 4),
    "shallow_input": (1, 8),
    "deep_feat": (16, 1),
    "deep_reduced": (16, 1),
    "shallow8": (64, 2),
    "shallow16": (64, 1),
    **{f"fuse16_{one}": (32, 1) for one in ("s", "c", "out")},
    **{f"fuse8_{one}": (32, 2) for one in ("s", "c", "out")},
    "output": (1, 8),
}


def check_case(path: Path, golden: Mapping[str, Any], dtype: str) -> list[Check]:
    """All comparisons of one case in one precision.

    Raises:
        UserError: the case's files are not what they should be.
    """
    comparing = Comparing(path.stem.removeprefix("golden_"), "whole", dtype, [])
    kept = arrays(path.with_suffix(".npz"))
    with format_of(path):
        config, stats = golden["config"], golden["stats"]
        image = picture(config, config["seed"])
        spec, network = spec_of(config), network_of(config, dtype)
        if "image_sha256" in golden:
            found_sha = fingerprint(image.permute(1, 2, 0).numpy())
            comparing.equal("image_sha256", found_sha, golden["image_sha256"])
    found: dict[str, NDArray[Any]] = {}
    with torch.inference_mode(), _listening(network, found):
        found["output"] = scores(network, network.normalise(image[None]), spec).numpy()
    with format_of(path):
        for name, whole in found.items():
            comparing.statistics(name, whole, stats[name])
        for name, theirs in kept.items():
            ours = _sampled(name, found[name]) if name in found else np.zeros(0)
            largest = stats[name]["absmax"] if name in stats else float(np.abs(theirs).max())
            comparing.array(name, ours, theirs, largest)
        missing = (set(stats) | set(kept)) - found.keys()
        comparing.equal("maps that are not worked out here", sorted(missing), [])
        comparing.labels(
            "labels",
            found["output"][0],
            sha256=golden["pred_sha256"],
            counts=golden["pred_counts"],
        )
    return comparing.checks


@contextmanager
def _listening(network: ISDNet, found: dict[str, NDArray[Any]]) -> Iterator[None]:
    """Inside it the network's maps are taken down by the names of the golden data."""
    handles = []

    def keep(name: str, value: Tensor) -> None:
        found[name] = value.numpy().copy()

    def output(name: str) -> Any:
        return lambda module, arguments, value: keep(name, value)

    def given(name: str) -> Any:
        return lambda module, arguments: keep(name, arguments[0])

    def fused(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, value: Fused) -> None:
            for part, map in zip(("s", "c", "out"), value, strict=True):
                keep(f"{name}_{part}", map)

        return hook

    for part, name in MAPS.items():
        if part == "reduce" and not hasattr(network, part):
            continue
        handles.append(network.get_submodule(part).register_forward_hook(output(name)))
    for part, name in INPUTS.items():
        handles.append(network.get_submodule(part).register_forward_pre_hook(given(name)))
    for fusion in ("fuse16", "fuse8"):
        module = network.get_submodule(fusion)
        handles.append(module.register_forward_hook(fused(fusion)))
        for part, name in VECTORS.items():
            own = module.get_submodule(part)
            handles.append(own.register_forward_hook(output(f"{fusion}_{name}")))
        mlp = module.get_submodule("shallow_mlp")
        handles.append(mlp.register_forward_pre_hook(given(f"{fusion}_affinity")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sampled(name: str, whole: NDArray[Any]) -> NDArray[Any]:
    """The part of an array (1, ..) that the golden data keeps."""
    channels, places = KEPT.get(name, (1, 1))
    if whole.ndim < 4:
        channels, places = 1, 1
        whole = whole[..., None, None]
    found: NDArray[Any] = whole[0, ::channels, ::places, ::places]
    return found
