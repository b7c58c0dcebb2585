"""One case in one mode: a single patch map by map, then the whole image's scores and labels."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.fctl.inference import (
    boxes_of,
    contexts,
    medium_logits,
    scores_contexts,
    scores_medium,
    scores_plain,
)
from baselines.fctl.model import VGG, Correlation, Decoder, FCtL, Maps
from baselines.fctl.spec import Spec
from bench.metrics import confusion
from bench.tiling import cut
from reference.check import RELATIVE, Check, Comparing
from reference.fctl.checkpoint import SUFFIX
from reference.fctl.networks import MODES, network_of, pictures, shrink, spec_of
from reference.golden import arrays, fingerprint, format_of

SCORES = {1: scores_plain, 2: scores_medium, 3: scores_contexts, 4: scores_contexts}
Found = dict[str, NDArray[Any]]


def modes_of(golden: Mapping[str, Any]) -> list[int]:
    """The modes that a case has; the DeepGlobe variant's one is 4."""
    return [int(mode) for mode in golden["modes"]] if "modes" in golden else [4]


def check_case(path: Path, golden: Mapping[str, Any], mode: int, dtype: str) -> list[Check]:
    """All comparisons of one case in one mode and precision.

    Raises:
        UserError: the case's files are not what they should be.
    """
    comparing = Comparing(path.stem.removeprefix("golden_"), MODES[mode][1], dtype, [])
    kept = arrays(path.with_suffix(".npz"))
    prefix = f"m{mode}_" if mode < 4 else ""
    with format_of(path):
        config, stats = golden["config"], golden["stats"]
        spec, network = prepared(golden, mode, dtype)
        image, label = pictures(config, config["seed"])
        expected = golden if mode == 4 else golden["modes"][str(mode)]
        _check_inputs(comparing, golden, spec, image, label)
        found = patch_maps(golden, mode, spec, network)
    with torch.inference_mode():
        found["scores"] = SCORES[mode](network, image, spec, shrink).numpy()
    with format_of(path):
        names = {name.removeprefix(prefix) for name in stats if name.startswith(prefix)}
        for name in sorted(names):
            if name not in found:
                comparing.equal(f"{name} is not worked out here", True, False)
                continue
            comparing.statistics(name, found[name], stats[prefix + name])
            if prefix + name in kept:
                stride, theirs = config.get("score_stride", 3), kept[prefix + name]
                ours = _sampled(name, found[name], theirs.shape, stride)
                comparing.array(name, ours, theirs, stats[prefix + name]["absmax"])
        labels = comparing.labels(
            "labels",
            found["scores"],
            kept.get(f"{prefix}pred"),
            expected["pred_sha256"],
            expected["class_counts"],
        )
        classes = config["n_class"]
        ours = confusion(label.numpy(), labels, classes)[:-1]
        moved = int(np.abs(ours - np.array(expected["confusion"])).sum()) / 2
        best = np.sort(found["scores"], 0)
        tied = int((best[-1] - best[-2] <= 2 * RELATIVE * np.abs(best).max()).sum())
        comparing.check("confusion (pixels that no tie explains)", max(moved - tied, 0), 0)
    return comparing.checks


def prepared(golden: Mapping[str, Any], mode: int, dtype: str) -> tuple[Spec, FCtL]:
    """The settings and the network of a case, with its logits centred as the golden data has
    them."""
    spec, network = spec_of(golden, mode), network_of(golden, mode, dtype)
    shift = golden["output_6_bias_shift"]
    decoder = next(one for one in network.modules() if isinstance(one, Decoder))
    last = decoder.head[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.bias.add_(torch.tensor(shift if mode == 4 else shift[str(mode)]))
    return spec, network


def patch_maps(golden: Mapping[str, Any], mode: int, spec: Spec, network: FCtL) -> Found:
    """Every map of the case's single patch, by the names of the golden data."""
    config = golden["config"]
    image, _ = pictures(config, config["seed"])
    box = boxes_of(config["h"], config["w"], spec)[config["patch"]]
    medium = contexts(image, [box], spec.medium, shrink)
    large = contexts(image, [box], spec.large_factor, shrink)
    if spec.variant == "deepglobe":
        large = shrink(image, spec.whole_size)[None]
    with torch.inference_mode():
        found = _patch(network, cut(image, [box]), medium, large, mode)
    if mode == 4:
        return {DEEPGLOBE[name]: value for name, value in found.items() if name in DEEPGLOBE}
    return found


DEEPGLOBE = {
    "patch_pool5": "patch_pool5",
    "patch_context_local": "patch_local",
    "patch_context_medium": "patch_medium",
    "patch_context_large": "patch_large",
    "patch_trans": "patch_trans",
    "patch_fusion_weights": "patch_softmax_H",
    "patch_head": "patch_output",
    "patch_logits": "patch_logits",
}
"""Our names of the maps -> those of the DeepGlobe variant's golden data."""


def _check_inputs(
    comparing: Comparing, golden: Mapping[str, Any], spec: Spec, image: Tensor, label: Tensor
) -> None:
    """Images, labels, windows and the grid, byte by byte."""
    size = (image.shape[-2], image.shape[-1])
    boxes = boxes_of(*size, spec)
    box = boxes[golden["config"]["patch"]]
    inputs = {
        "patch": box.of(image),
        "context10": contexts(image, [box], spec.medium, shrink)[0],
        "context15": contexts(image, [box], spec.large_factor, shrink)[0],
        "medium": contexts(image, [box], spec.medium, shrink)[0],
        "whole_image_resized": shrink(image, spec.whole_size),
    }
    expected = {"image": golden["image_sha256"], "label": golden["label_sha256"]}
    found = {"image": image.permute(1, 2, 0).numpy(), "label": label.numpy()}
    for name, pixels in inputs.items():
        if name in golden["inputs_sha256"]:
            expected[name] = golden["inputs_sha256"][name]
            found[name] = pixels.permute(1, 2, 0).numpy()
    for name, array in found.items():
        comparing.equal(name, fingerprint(array), expected[name])
    if "grid" in golden:
        places = [[box.top, box.left] for box in boxes]
        comparing.equal("grid", places, [list(map(int, p)) for p in golden["grid"]["top_left_px"]])


def _patch(network: FCtL, patch: Tensor, medium: Tensor, large: Tensor, mode: int) -> Found:
    """Every map of a single patch, by the names of the golden data."""
    patch, medium, large = (network.normalise(one) for one in (patch, medium, large))
    found: dict[str, Tensor] = {}
    with _listening(network, found):
        if mode == 1:
            found["logits"] = network.plain(patch)
        elif mode == 2:
            found["logits"] = medium_logits(network, patch, medium)
        else:
            around = [network.medium_vgg(medium).pool5, network.large_vgg(large).pool5]
            found["pool5_medium"], found["pool5_large"] = around
            found["logits"] = network.local(patch, *around)
    return {f"patch_{name}": value.numpy() for name, value in found.items()}


@contextmanager
def _listening(network: FCtL, found: dict[str, Tensor]) -> Iterator[None]:
    """Inside it maps are taken down: of the VGGs the last one, which is the patch's."""
    names = {"gates": list[Tensor]()}
    handles = []

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, value: Tensor) -> None:
            found[name] = value.clone()

        return hook

    def maps(module: nn.Module, arguments: Any, value: Maps) -> None:
        found.update({name: map.clone() for name, map in value._asdict().items()})

    def correlated(name: str, suffix: str) -> Any:
        def hook(module: Correlation, arguments: tuple[Tensor, Tensor], value: Tensor) -> None:
            x, context = arguments
            query, key = module.query(x).flatten(2), module.key(context).flatten(2)
            if module.centred:
                query = query - query.mean(2, keepdim=True)
                key = key - key.mean(2, keepdim=True)
            alike = query.transpose(1, 2) @ key  # (N, P, Q)
            weights = alike.softmax(2)
            found[f"corr_logits_{name}"] = alike
            found[f"corr_max_{name}"] = weights.amax(2)
            found[f"corr_entropy_{name}"] = -(weights * alike.log_softmax(2)).sum(2)
            found[f"context_{name}"] = value
            if not suffix:
                for part in ("value", "query", "key"):
                    given = x if part == "query" else context
                    found[f"conv_{part}"] = module.get_submodule(part)(given)

        return hook

    def gate(number: int) -> Any:
        def hook(module: nn.Module, arguments: Any, value: Tensor) -> None:
            found[f"out_{number + 1}"] = value.clone()
            names["gates"].append(value.sigmoid())
            if number == 2:
                found["fusion_weights"] = torch.stack(names["gates"]).softmax(0)

        return hook

    def decoded(module: nn.Module, arguments: tuple[Maps, Any]) -> None:
        found["fused"] = arguments[0].pool5

    for name, module in network.named_modules():
        if isinstance(module, VGG) and name not in _only_contexts(network):
            handles.append(module.register_forward_hook(maps))
        elif isinstance(module, Correlation):
            which = name.rsplit(".", 1)[-1]
            which = which if which in SUFFIX else "medium"
            handles.append(module.register_forward_hook(correlated(which, SUFFIX[which])))
        elif re.search(r"blend\.out\.\d$", name):
            handles.append(module.register_forward_hook(gate(int(name[-1]))))
        elif name.endswith("blend.trans"):
            handles.append(module.register_forward_hook(keep("trans")))
        elif isinstance(module, Decoder):
            handles.append(module.register_forward_pre_hook(decoded))
            for part, called in DECODER.items():
                handles.append(module.get_submodule(part).register_forward_hook(keep(called)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


DECODER = {
    "head": "head",
    "enlarge5": "up_output",
    "adapt4": "adj_pool4",
    "enlarge4": "up_pool4",
    "adapt3": "adj_pool3",
}


def _only_contexts(network: FCtL) -> tuple[str, ...]:
    return ("medium_vgg", "large_vgg") if hasattr(network, "local") else ()


def _sampled(
    name: str, whole: NDArray[Any], like: tuple[int, ...], score_stride: int
) -> NDArray[Any]:
    """The part of an array that the golden data keeps; large maps at every second place, as the
    shape of what is kept says."""
    name = name.removeprefix("patch_")
    if name == "scores":
        return whole[:, ::score_stride, ::score_stride]
    if name.startswith("corr_logits"):
        return whole[:, ::8, ::8]
    if whole.ndim == 5:
        return whole[:, :, ::16]
    if whole.ndim == 4:
        if whole.shape[1] >= 256:
            whole = whole[:, :: 32 if whole.shape[1] > 1000 else 16]
        return whole if whole.shape[2:] == like[2:] else whole[:, :, ::2, ::2]
    return whole
