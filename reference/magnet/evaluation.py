"""One image through all scales: every map on the way to the labels, ours against theirs."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baselines.magnet.inference import Ways, highest, progress
from baselines.magnet.patches import boxes_of
from baselines.magnet.spec import Spec
from bench.metrics import confusion
from bench.tiling import resize
from reference.check import Check, Comparing
from reference.golden import arrays, fingerprint, format_of
from reference.magnet.networks import network_of, pictures, plan_of, resize_as_opencv, spec_of

NOISE = 2e-5
"""Of probabilities: what the released code's 32 bits differ from its own 64 bits by, about."""
TIE = 1e-5
"""Scores that are nearer to the last chosen one are as good."""
LISTS = ("early", "coarse_crop", "refined")
"""What comes patch by patch."""


def check_case(path: Path, golden: Mapping[str, Any], dtype: str) -> list[Check]:
    """All comparisons of one case in one precision.

    Raises:
        UserError: the case's files are not what they should be.
    """
    kept = arrays(path.with_suffix(".npz"))
    with format_of(path):
        config, stats = golden["config"], golden["arrays"]
        classes = stats["s0_prob"]["shape"][1]
        spec, plan = spec_of(config), plan_of(config)
        size = spec.scale_sizes(0, 0)[-1]
        mode = "progressive" if plan.patches is None else "fast"
        comparing = Comparing(path.stem.removeprefix("golden_"), mode, dtype, [])
        image, label = pictures(*size, config["seed"], classes)
        _check_inputs(comparing, golden, spec, image, label)
        network = network_of(spec, classes, config["seed"], dtype)
        watched = Watched(golden, kept, size, comparing)
        ways = Ways(resize_as_opencv, watched.pick, watched.see)
        with torch.inference_mode():
            last = progress(network, image, spec, plan, ways)
        found = watched.maps()
        for name, whole in found.items():
            if name not in stats:
                continue
            comparing.statistics(name, whole, stats[name])
            noise = golden.get("noise_f32_vs_f64", {}).get(name, {}).get("max_abs", NOISE)
            allowed = 2 * max(min(noise, NOISE), NOISE)
            ours = _sampled(whole, stats[name]["stored_slice"])
            comparing.array(name, ours, kept[name], 1, allowed)
        missing = set(stats) - found.keys()
        comparing.equal("maps that are not worked out here", sorted(missing), [])
        first = torch.from_numpy(found["s0_prob"])
        for kind, scores in (("coarse", resize(first, size)), ("final", last)):
            _check_labels(comparing, golden, kept, kind, scores[0].numpy(), label.numpy())
    return comparing.checks


class Watched:
    """Takes down what is seen on the way, by the names of the golden data, and breaks ties as it
    does."""

    def __init__(
        self,
        golden: Mapping[str, Any],
        kept: Mapping[str, NDArray[Any]],
        size: tuple[int, int],
        comparing: Comparing,
    ) -> None:
        self.points = {point["stage"]: point for point in golden["points"]}
        self.kept, self.size, self.comparing = kept, size, comparing
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
            self.comparing.equal(key, value.flip(1).tolist(), theirs.tolist())
        elif name == "inside":
            self.comparing.equal(f"{key}, pixels", int(value.sum()), point["mask_pixels"])
        elif name == "replaced":
            self.comparing.equal(f"{key}, pixels", int(value.sum()), point["pixels_changed"])
        else:
            self.found[key].append(value.numpy().copy())
        if name == "merged":
            sums = value.sum(0)
            edges = [float(sums.min()), float(sums.max())]
            for ours, theirs in zip(edges, point["merged_sum_over_classes_min_max"], strict=True):
                self.comparing.check(f"{key}, sum over classes", abs(ours - theirs), NOISE)

    def pick(self, scores: Tensor, count: int) -> Tensor:
        """Theirs, where they differ from ours in equally good pixels alone."""
        key = f"s{self.stage}_selected"
        self.comparing.equal(f"{key}, count", count, self.points[self.stage]["n_points"])
        ours = highest(scores, count)
        bits = np.unpackbits(self.kept[f"{key}_bits"])[: scores.numel()]
        theirs = torch.from_numpy(bits).view_as(ours).bool()
        least = scores[ours].min() if count else scores.new_zeros(())
        worse = (ours != theirs) & ((scores - least).abs() > TIE)
        self.comparing.check(f"{key} (pixels that no tie explains)", int(worse.sum()), 0)
        return theirs

    def maps(self) -> dict[str, NDArray[Any]]:
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
    comparing: Comparing, golden: Mapping[str, Any], spec: Spec, image: Tensor, label: Tensor
) -> None:
    """Image, label, and every patch as the network sees it, byte by byte."""
    patches = []
    for number, size in enumerate(spec.scale_sizes(0, 0)):
        seen = resize_as_opencv(image, size)
        boxes = boxes_of(size, spec)[: None if number else 1]
        patches += [resize_as_opencv(box.of(seen), spec.input_size) for box in boxes]
    found = {
        "image_sha256": image.permute(1, 2, 0),
        "label_sha256": label,
        "patches_uint8_sha256": torch.stack(patches).permute(0, 2, 3, 1),
    }
    for name, array in found.items():
        comparing.equal(name, fingerprint(array.numpy()), golden[name])


def _check_labels(
    comparing: Comparing,
    golden: Mapping[str, Any],
    kept: Mapping[str, NDArray[Any]],
    kind: str,
    scores: NDArray[Any],
    truth: NDArray[np.uint8],
) -> None:
    theirs = np.array(golden["metrics"][kind]["confusion"])
    name = f"labels_{kind}"
    found = comparing.labels(
        name, scores, kept.get(name), golden[f"{name}_sha256"], theirs.sum(0).tolist()
    )
    ours = confusion(truth, found, len(scores))[:-1]
    best = np.sort(scores, 0)
    tied = int((best[-1] - best[-2] <= 2 * NOISE).sum())
    moved = int(np.abs(ours - theirs).sum()) / 2
    comparing.check(f"confusion {kind} (pixels that no tie explains)", max(moved - tied, 0), 0)


def _sampled(whole: NDArray[Any], told: str) -> NDArray[Any]:
    """The part of an array that the golden data keeps, by what it says of itself: a slice an
    axis."""
    steps = re.findall(r"slice\(None, None, (None|\d+)\)", told)
    found: NDArray[Any] = whole[
        tuple(slice(None, None, None if step == "None" else int(step)) for step in steps)
    ]
    return found
