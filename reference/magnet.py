"""MagNet against its released code: whole images through all scales, the networks alone, and steps
of the refinement's training.

Compared is what `baselines.magnet.inference.progress` computes on its way, with every quirk of the
released code; images are resized as OpenCV does. Which of equally good pixels are replaced depends
on topk's internals, and is taken from the golden data once it is clear that only such pixels
differ."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.magnet.inference import Plan, Ways, highest, progress
from baselines.magnet.patches import boxes_of
from baselines.magnet.spec import Spec
from baselines.magnet.training import hard_example_loss
from bench.optim import sgd
from bench.tiling import resize
from reference import formulas, replay
from reference.check import RELATIVE, Comparison, Method, ties
from reference.golden import Golden
from reference.keys import magnet_key

MODULES = "ref_logits"
"""A table of the networks alone has this key."""
LOUDER = 8
"""By so much the last convolution of a refinement is multiplied: its probabilities are far from
even then."""
AREA = 2
"""Where OpenCV shrinks both sides by exactly this it takes means."""
BITS = 11
"""Of the weights between two pixels."""
NOISE = 2e-5
"""Of probabilities: what the released code's 32 bits differ from its own 64 bits by, about."""
TIE = 1e-5
"""Scores that are nearer to the last chosen one are as good."""
LISTS = ("early", "coarse_crop", "refined")
"""What comes patch by patch."""

IMAGE_SEED = 3
RATE, DECAY = 1e-3, 5e-4
MAPS = ("c2", "c3", "c4", "c5")
GRADIENT = {"float32": 5e-4, "float64": RELATIVE}
"""With 32 bits an activation that is 0 up to rounding lets its place's gradient through or not."""


def spec_of(config: Mapping[str, Any]) -> Spec:
    """The settings of a case, those of the released code; its sizes are (width, height)."""
    return Spec(
        refinements=config["refs"],
        scales=tuple((height, width) for width, height in config["scales_wh"]),
        patch_px=(config["crop"][1], config["crop"][0]),
        input_px=(config["inp"][1], config["inp"][0]),
        smooth_px=config["smooth"],
        official=True,
    )


def plan_of(config: Mapping[str, Any]) -> Plan:
    """How much of each later scale a case looks at, and replaces."""
    patches = config["n_patches"]
    return Plan(None if patches < 0 else patches, config["n_points"])


def network(spec: Spec, classes: int, seed: int, dtype: str) -> Any:
    """The network with the weights that the formulas make."""

    def weight(key: str, shape: Sequence[int]) -> formulas.Weight:
        if key.startswith("backbone."):
            return formulas.weight(magnet_key(key.removeprefix("backbone.")), shape, seed)
        number, inner = key.removeprefix("refine.").split(".", 1)
        found = formulas.weight(f"resnet_refine{int(number) + 1}.{inner}", shape, seed)
        return found * np.float32(LOUDER) if inner == "seg_conv.weight" else found

    return replay.network_of("baselines.magnet", spec, classes, weight, dtype=dtype)


# --- whole images -----------------------------------------------------------------------------


def check_case(golden: Golden, mode: str, compare: Comparison) -> None:
    """One image through all scales: every map on the way to the labels."""
    config, stats = golden["config"], golden["arrays"]
    classes = stats["s0_prob"]["shape"][1]
    spec = spec_of(config)
    size = spec.scale_sizes(0, 0)[-1]
    image = replay.image_of(*size, config["seed"])
    label = replay.label_of(*size, config["seed"], classes).numpy()
    _check_inputs(golden, spec, image, label, compare)
    watched = Watched(golden, compare)
    ways = Ways(resize_as_opencv, watched.pick, watched.see)
    with torch.inference_mode():
        own = network(spec, classes, config["seed"], compare.dtype)
        last = progress(own, image, spec, plan_of(config), ways)
    found = watched.maps()
    for name, whole in found.items():
        if name not in stats:
            continue
        compare.statistics(name, whole, stats[name])
        compare.map(name, whole, {"absmax": 1.0}, golden.arrays[name], 2 * NOISE)
    compare.complete(found, stats)
    first = torch.from_numpy(found["s0_prob"])
    for kind, map in (("coarse", resize(first, size)), ("final", last)):
        name, scores = f"labels_{kind}", map[0].numpy()
        theirs = np.array(golden["metrics"][kind]["confusion"])
        kept, counts = golden.arrays.get(name), theirs.sum(0).tolist()
        labels = compare.labels(name, scores, kept, golden[f"{name}_sha256"], counts)
        tied = float(ties(scores, 2 * NOISE).sum())
        compare.confusion(f"confusion {kind}", label, labels, theirs.tolist(), tied)


class Watched:
    """Takes down what is seen on the way, by the names of the golden data, and breaks ties as it
    does."""

    def __init__(self, golden: Golden, compare: Comparison) -> None:
        self.points = {point["stage"]: point for point in golden["points"]}
        self.kept, self.compare = golden.arrays, compare
        self.stage = 0
        self.found: dict[str, list[NDArray[Any]]] = defaultdict(list)

    def see(self, name: str, value: Tensor) -> None:
        """Take down a map, or compare it at once."""
        if name == "upscaled":
            self.stage += 1
        key = f"s{self.stage}_{name}"
        point = self.points.get(self.stage, {})
        if name == "patch_order":
            # Shares of the sides: left, top, right, bottom.
            sides = np.array(point["scale_wh"])
            theirs = np.rint(self.kept[f"{key}_coords"][:, :2] * sides).astype(int)
            self.compare.equal(key, value.flip(1).tolist(), theirs.tolist())
        elif name in ("inside", "replaced"):
            expected = point["mask_pixels" if name == "inside" else "pixels_changed"]
            self.compare.equal(f"{key}, pixels", int(value.sum()), expected)
        else:
            self.found[key].append(value.numpy().copy())
        if name == "merged":
            sums = value.sum(0)
            edges = [float(sums.min()), float(sums.max())]
            for ours, theirs in zip(edges, point["merged_sum_over_classes_min_max"], strict=True):
                self.compare.check(f"{key}, sum over classes", abs(ours - theirs), NOISE)

    def pick(self, scores: Tensor, count: int) -> Tensor:
        """Theirs, where they differ from ours in equally good pixels alone."""
        key = f"s{self.stage}_selected"
        self.compare.equal(f"{key}, count", count, self.points[self.stage]["n_points"])
        ours = highest(scores, count)
        bits = np.unpackbits(self.kept[f"{key}_bits"])[: scores.numel()]
        theirs = torch.from_numpy(bits).view_as(ours).bool()
        least = scores[ours].min() if count else scores.new_zeros(())
        worse = (ours != theirs) & ((scores - least).abs() > TIE)
        self.compare.check(f"{key} (pixels that no tie explains)", int(worse.sum()), 0)
        return theirs

    def maps(self) -> replay.Arrays:
        """Every map in the form of the golden data."""
        found = {}
        for name, parts in self.found.items():
            short = name.split("_", 1)[1]
            whole = np.concatenate(parts) if short in LISTS else parts[0]
            if short == "merged":
                whole = whole[None]
            found[name] = whole[None, None] if short == "error_score" else whole
        return found


def _check_inputs(
    golden: Golden, spec: Spec, image: Tensor, label: NDArray[np.uint8], compare: Comparison
) -> None:
    """Image, label, and every patch as the network sees it, byte by byte."""
    patches = []
    for number, size in enumerate(spec.scale_sizes(0, 0)):
        scaled = resize_as_opencv(image, size)
        boxes = boxes_of(size, spec)[: None if number else 1]
        patches += [resize_as_opencv(box.of(scaled), spec.input_size) for box in boxes]
    found = {
        "image_sha256": replay.pixels_of(image),
        "label_sha256": label,
        "patches_uint8_sha256": np.stack([replay.pixels_of(patch) for patch in patches]),
    }
    compare.bytes_equal(found, {name: golden[name] for name in found})


# --- the networks alone -----------------------------------------------------------------------


def check_modules(golden: Golden, mode: str, compare: Comparison) -> None:
    """The networks alone, and steps of the refinement's training."""
    seed = golden.config.get("seed", 0)
    shape = golden["ref_logits"]["shape"]
    spec = Spec(official=True)
    own = network(spec, shape[1], seed, compare.dtype)
    refine = own.refine[0]
    found: replay.Arrays = {}
    with torch.inference_mode():
        for size in _named(r"bb_(\d+x\d+)_", golden):
            found |= _backbone(own, size)
        fine, coarse = (
            (20 * _tensor(f"{name}.bias", shape, seed).to(replay.FLOAT[compare.dtype])).softmax(1)
            for name in ("fine", "coarse")
        )
        found["ref_logits"] = refine(fine, coarse).numpy()
        found["ref_logits_swapped"] = refine(coarse, fine).numpy()
    inputs = (coarse.clone(), fine.clone())  # in training the coarse map comes first
    for least in _named(r"train_minkept(\d+)_", golden):
        replay.fill(
            refine, lambda key, shape: formulas.weight(f"resnet_refine1.{key}", shape, seed)
        )
        refine.zero_grad()
        done = _step(refine.train().requires_grad_(True), inputs, int(least), spec.hard_share)
        found |= {f"train_minkept{least}_{name}": value for name, value in done.items()}
    for name, stats in golden.table.items():
        if name == "config":
            continue
        if name not in found:
            compare.equal(f"{name} is not computed here", True, False)
            continue
        # What 32 bits allow: changes of weights, for instance, carry the weights' own rounding.
        noise = 4 * stats["noise_max_abs"] / (stats["absmax"] or 1)
        moves = "_grad_" in name or "_delta_" in name
        allowed = max(GRADIENT[compare.dtype] if moves else RELATIVE, noise)
        compare.map(name, found[name], stats, golden.arrays.get(name), allowed)


def _named(pattern: str, golden: Golden) -> list[str]:
    """What the names of golden data say of how it was made."""
    return sorted({match[1] for name in golden.table if (match := re.match(pattern, name))})


def _tensor(key: str, shape: Sequence[int], seed: int) -> Tensor:
    return torch.from_numpy(np.asarray(formulas.weight(key, shape, seed)))


def _backbone(own: Any, size: str) -> replay.Arrays:
    height, width = map(int, size.split("x"))
    x = own.normalise(replay.image_of(height, width, IMAGE_SEED)[None])
    features = own.backbone.encoder(x)[-len(MAPS) :]
    found = {f"bb_{size}_{name}": map.numpy() for name, map in zip(MAPS, features, strict=True)}
    return found | {f"bb_{size}_logits": own.backbone(x).numpy()}


def _step(
    module: nn.Module, inputs: tuple[Tensor, Tensor], least: int, hard_share: float
) -> replay.Arrays:
    """One step of the released training."""
    count, classes, height, width = inputs[0].shape
    labels = torch.stack([replay.label_of(height, width, seed, classes) for seed in range(count)])
    found: dict[str, Tensor] = {}

    def run(back: Any) -> float:
        logits = module(*inputs)
        loss = hard_example_loss(logits, labels, least, hard_share)
        found.update(loss=loss.detach(), logits=logits.detach())
        back(loss)
        return float(loss.detach())

    done = replay.step(module, run, str, sgd([module], DECAY), RATE)
    found |= {f"grad_{key}": value for key, value in done.gradients.items()}
    found |= {f"delta_{key}": value for key, value in done.updates.items()}
    found |= {f"stat_{key}": value.clone() for key, value in module.named_buffers()}
    return {name: value.numpy() for name, value in found.items()}


# --- images as OpenCV makes them --------------------------------------------------------------


def resize_as_opencv(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 at another size, to the bit as OpenCV's bilinear resizing of bytes.

    Weights have 11 bits; rows are mixed in two products that are cut off apart, also beyond the
    border, where both are of the same row.
    """
    if image.shape[-2:] == size:
        return image
    x = image.numpy().astype(np.int64)
    if image.shape[-2:] == (AREA * size[0], AREA * size[1]):
        total = x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
        return torch.from_numpy(((total + 2) >> 2).astype(np.uint8))
    rows, columns = (_between(*pair) for pair in zip(image.shape[1:], size, strict=True))
    inside = (columns.first >= 0) & (columns.first < x.shape[2] - 1)
    share = np.where(inside, columns.share, np.float32(0))
    left, right = (np.clip(columns.first + i, 0, x.shape[2] - 1) for i in (0, 1))
    x = x[:, :, left] * _weights(1 - share) + x[:, :, right] * _weights(share)
    top, bottom = (np.clip(rows.first + i, 0, x.shape[1] - 1) for i in (0, 1))
    upper = (x[:, top] >> 4) * _weights(1 - rows.share)[:, None] >> 16
    lower = (x[:, bottom] >> 4) * _weights(rows.share)[:, None] >> 16
    return torch.from_numpy(((upper + lower + 2) >> 2).astype(np.uint8))


class _Between(NamedTuple):
    """Where each new line lies: after which line, and how far beyond it, 0..1."""

    first: NDArray[np.int64]
    share: NDArray[np.float32]


def _between(side: int, cells: int) -> _Between:
    at = ((np.arange(cells) + 0.5) * (1 / (cells / side)) - 0.5).astype(np.float32)
    first = np.floor(at)
    return _Between(first.astype(np.int64), at - first)


def _weights(shares: NDArray[np.float32]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.rint(shares * np.float32(1 << BITS)).astype(np.int64)
    return found


def _modes(golden: Golden) -> list[str]:
    if MODULES in golden.table:
        return ["modules"]
    return ["progressive" if plan_of(golden["config"]).patches is None else "fast"]


METHOD = Method(
    marks=("scales_wh", MODULES),
    modes=_modes,
    check=lambda golden, *how: (check_modules if MODULES in golden.table else check_case)(
        golden, *how
    ),
)
