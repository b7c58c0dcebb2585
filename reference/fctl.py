"""FCtL against its released code: evaluation of the repository's head (modes 1 to 3) and of the
DeepGlobe variant of its history (mode 4); training steps. Weights that are never used are left
out; dropout is off, as in the golden data."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.fctl import inference
from baselines.fctl.inference import boxes_of, contexts
from baselines.fctl.spec import Spec
from bench.tiling import Box, cut
from reference import formulas, replay
from reference.check import Comparison, Method, ties
from reference.golden import Golden
from reference.keys import fctl_source

MODES = {"1": "plain", "2": "medium", "3": "contexts"}
"""The released code's number of a mode -> our strategy; the DeepGlobe variant has the last."""
PHASES = {"1": "plain", "2": "medium", "3": "all"}
PARTS = {
    "plain": ("plain",),
    "medium": ("medium_vgg", "medium_rest"),
    "all": ("medium_vgg", "large_vgg", "local"),
}
LIKE_VGG = ("vgg.features.", "output.0.", "output.3.")
LOUDER = {"adj_pool4.weight": 128, "adj_pool3.weight": 8192}
"""So that the finer maps, which are scaled down before, matter; their updates are below float32's
resolution of these weights."""
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
DECODER = {
    "head": "head",
    "enlarge5": "up_output",
    "adapt4": "adj_pool4",
    "enlarge4": "up_pool4",
    "adapt3": "adj_pool3",
}
VGGS = {"plain": "plain.vgg", "medium": "medium_vgg", "contexts": "local.vgg"}
"""That of the patch."""
LOSS = 1e-6
GRADIENT = 1e-3
UPDATE = 1e-2
"""Shares that the released code's own float32 noise supports. Adam's first step is nearly the sign
of the gradient, so that updates are compared by their absolute sums."""


def weight(key: str, shape: Sequence[int], seed: int) -> formulas.Weight:
    """The value of a parameter of the released network, by its official name."""
    name = f"resnet_{key}" if key.startswith(LIKE_VGG) else key
    found = np.asarray(formulas.weight(name, shape, seed), np.float32)
    return found * np.float32(LOUDER.get(key, 1))


def is_deepglobe(golden: Golden) -> bool:
    """Whether it is a case of the DeepGlobe variant."""
    return not golden.is_step and "modes" not in golden.table


def spec_of(golden: Golden, mode: str) -> Spec:
    """The settings of a case, those of the released code, for a strategy or phase."""
    config = golden["config"]
    own: dict[str, Any] = {"medium_factor": config.get("context10")}
    if is_deepglobe(golden):
        own = {"medium_factor": config["context"], "whole_px": tuple(config["size_g"])}
        own["variant"] = "deepglobe"
    elif "context15" in config:
        own["large_factor"] = config["context15"]
    return Spec(
        phases=("all" if mode == "contexts" else mode,),  # type: ignore[arg-type]
        patch_px=tuple(config["size_p"]),
        sub_batch=config["sub_batch"],
        dropout=0,
        official=("float64-scores", "summed-gradients", "last-loss", "kept-canvas"),
        **own,
    )


def prepared(golden: Golden, mode: str, dtype: str) -> tuple[Spec, Any]:
    """The settings and the network of a case, and only what the mode needs; in evaluation with its
    logits centred as the golden data has them."""
    spec, seed = spec_of(golden, mode), golden["config"]["seed"]
    phase = spec.phases[0]
    seeds = {
        "medium_vgg": golden.table.get("medium_seed", seed + 100),
        "large_vgg": golden.table.get("large_seed", seed + 200),
    }

    def own(key: str, shape: Sequence[int]) -> formulas.Weight:
        chosen = seeds.get(key.split(".", 1)[0], seed) if phase == "all" else seed
        return weight(fctl_source(key, spec.variant).key, shape, chosen)

    classes = golden["config"].get("n_class", 7)
    network = replay.network_of("baselines.fctl", spec, classes, own, PARTS[phase])
    if not golden.is_step:
        shift = golden["output_6_bias_shift"]
        number = next(number for number, name in MODES.items() if name == mode)
        bias = next(
            b for key, b in network.named_parameters() if key.endswith("decoder.head.6.bias")
        )
        bias.add_(torch.tensor(shift if is_deepglobe(golden) else shift[number]))
    return spec, network.to(replay.FLOAT[dtype])


def windows(image: Tensor, boxes: Sequence[Box], spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
    """Patches, and what both context networks see of each."""
    medium, large = (
        contexts(image, boxes, factor, replay.shrink) for factor in (spec.medium, spec.large_factor)
    )
    return cut(image, boxes), medium, large


# --- evaluation -------------------------------------------------------------------------------


def check_case(golden: Golden, mode: str, compare: Comparison) -> None:
    """A single patch map by map, then the whole image's scores and labels."""
    config, stats, kept = golden["config"], golden["stats"], golden.arrays
    number = next(number for number, name in MODES.items() if name == mode)
    deepglobe = is_deepglobe(golden)
    expected = golden if deepglobe else golden["modes"][number]
    prefix = "" if deepglobe else f"m{number}_"
    spec, network = prepared(golden, mode, compare.dtype)
    image = replay.image_of(config["h"], config["w"], config["seed"])
    label = replay.label_of(
        config["h"], config["w"], config["seed"], config.get("n_class", 7)
    ).numpy()
    _check_inputs(compare, golden, spec, image, label)
    found = patch_maps(golden, mode, spec, network)
    with torch.inference_mode():
        found["scores"] = inference.scores(network, image, spec, mode, replay.shrink).numpy()
    for name in sorted(key.removeprefix(prefix) for key in stats if key.startswith(prefix)):
        if name not in found:
            compare.equal(f"{name} is not computed here", True, False)
            continue
        compare.map(name, found[name], stats[prefix + name], kept.get(prefix + name))
    labels = compare.labels(
        "labels",
        found["scores"],
        kept.get(f"{prefix}pred"),
        expected["pred_sha256"],
        expected["class_counts"],
    )
    tied = float(ties(found["scores"]).sum())
    compare.confusion("confusion", label, labels, expected["confusion"], tied)


def patch_maps(golden: Golden, mode: str, spec: Spec, network: Any) -> replay.Arrays:
    """Every map of the case's single patch, by the names of the golden data."""
    config = golden["config"]
    image = replay.image_of(config["h"], config["w"], config["seed"])
    box = boxes_of(config["h"], config["w"], spec)[config["patch"]]
    patch, medium, large = windows(image, [box], spec)
    if spec.variant == "deepglobe":
        large = replay.shrink(image, spec.whole_size)[None]
    patch, medium, large = (network.normalise(one) for one in (patch, medium, large))
    found: dict[str, Tensor] = {}
    names = r".*vgg|.*correlate(\.\w+)?|.*blend\.(trans|out\.\d)|.*decoder(\.\w+)?"
    with torch.inference_mode(), replay.calls_of(network, names) as calls:
        if mode == "plain":
            found["logits"] = network.plain(patch)
        elif mode == "medium":
            found["logits"] = inference.context_logits(network, "medium", patch, medium)
        else:
            around = [network.medium_vgg(medium).pool5, network.large_vgg(large).pool5]
            found["pool5_medium"], found["pool5_large"] = around
            found["logits"] = network.local(patch, *around)
    with torch.inference_mode():
        found |= calls[VGGS[mode]][-1].output._asdict()
        found |= _inside(network, {name: done[-1] for name, done in calls.items()})
    arrays = {f"patch_{name}": value.numpy() for name, value in found.items()}
    if spec.variant == "deepglobe":
        return {DEEPGLOBE[name]: value for name, value in arrays.items() if name in DEEPGLOBE}
    return arrays


def _inside(network: nn.Module, calls: Mapping[str, replay.Call]) -> dict[str, Tensor]:
    """Maps of correlations, their fusion, and the decoder."""
    found: dict[str, Tensor] = {}
    gates = []
    for name, call in calls.items():
        *_, parent, last = f".{name}".split(".")
        if "correlate" in (parent, last) and hasattr(network.get_submodule(name), "query"):
            which = last if parent == "correlate" else "medium"
            found |= _correlation(network.get_submodule(name), which, call)
        elif parent == "out":
            found[f"out_{int(last) + 1}"] = call.output
            gates.append(call.output.sigmoid())
        elif last == "trans":
            found["trans"] = call.output
        elif last == "decoder":
            found["fused"] = call.given[0].pool5
        elif parent == "decoder" and last in DECODER:
            found[DECODER[last]] = call.output
    if gates:
        found["fusion_weights"] = torch.stack(gates).softmax(0)
    return found


def _correlation(module: Any, which: str, call: replay.Call) -> dict[str, Tensor]:
    x, context = call.given
    query, key = module.query(x).flatten(2), module.key(context).flatten(2)
    if module.centred:
        query, key = (one - one.mean(2, keepdim=True) for one in (query, key))
    alike = query.transpose(1, 2) @ key  # (N, P, Q)
    weights = alike.softmax(2)
    found = {
        f"corr_logits_{which}": alike,
        f"corr_max_{which}": weights.amax(2),
        f"corr_entropy_{which}": -(weights * alike.log_softmax(2)).sum(2),
        f"context_{which}": call.output,
    }
    if which == "medium":
        found["conv_query"] = module.query(x)
        found |= {f"conv_{part}": getattr(module, part)(context) for part in ("key", "value")}
    return found


def _check_inputs(
    compare: Comparison, golden: Golden, spec: Spec, image: Tensor, label: NDArray[np.uint8]
) -> None:
    """Images, labels, windows and the grid, byte by byte."""
    boxes = boxes_of(image.shape[-2], image.shape[-1], spec)
    patch, medium, large = windows(image, [boxes[golden["config"]["patch"]]], spec)
    inputs = {
        "patch": patch[0],
        "context10": medium[0],
        "context15": large[0],
        "medium": medium[0],
        "whole_image_resized": replay.shrink(image, spec.whole_size),
    }
    arrays = {name: replay.pixels_of(pixels) for name, pixels in inputs.items()}
    compare.bytes_equal(arrays, golden["inputs_sha256"])
    compare.bytes_equal(
        {"image_sha256": replay.pixels_of(image), "label_sha256": label}, golden.table
    )
    if "grid" in golden.table:
        places = [[box.top, box.left] for box in boxes]
        compare.equal("grid", places, [list(map(int, p)) for p in golden["grid"]["top_left_px"]])


# --- training ---------------------------------------------------------------------------------


def check_step(golden: Golden, mode: str, compare: Comparison) -> None:
    """One optimiser step: losses, gradients, updates, and what moves at all."""
    config = golden["config"]
    spec, network = prepared(golden, mode, compare.dtype)
    boxes = boxes_of(config["h"], config["w"], spec)
    views = []
    for seed in golden["image_seeds"]:
        names = ("patches", "medium", "large")
        image = replay.image_of(config["h"], config["w"], seed)
        label = replay.label_of(config["h"], config["w"], seed, config.get("n_class", 7))
        view = dict(zip(names, windows(image, boxes, spec), strict=True))
        views.append(view | {"labels": cut(label, boxes)})

    def official(key: str) -> str:
        return fctl_source(key, spec.variant).key

    done = replay.train(network, "baselines.fctl", spec, mode, views, golden, official)
    compare.close("logged loss", done.logged, golden["returned_loss"], LOSS)
    compare.losses(done.losses, [call[0] for call in golden["losses_in_call_order"]], LOSS)
    theirs = {key: value for key, value in golden["per_param"].items() if value is not None}
    expected = theirs.keys() - set(golden["without_grad"])
    compare.equal("parameters that move", sorted(done.gradients), sorted(expected))
    for key in done.gradients.keys() & expected:
        if re.search(r"conv_key.*\.bias$", key):
            continue  # 0 in theory, noise in practice
        norm = theirs[key]["grad_l2"]
        compare.vector(f"gradient of {key}", done.gradients[key], norm, None, GRADIENT)
        if key not in LOUDER:
            moved = float(done.updates[key].abs().sum())
            compare.close(f"update of {key}", moved, theirs[key]["delta_abssum"], UPDATE)


def _modes(golden: Golden) -> list[str]:
    return (
        ["contexts"] if is_deepglobe(golden) else golden.modes(PHASES if golden.is_step else MODES)
    )


METHOD = Method(
    marks=("context", "context10"),
    modes=_modes,
    check=lambda golden, *how: (check_step if golden.is_step else check_case)(golden, *how),
)
