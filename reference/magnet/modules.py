"""The networks alone, and one step of the refinement's training."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baselines.magnet.model import MagNet, Refinement
from baselines.magnet.spec import Spec
from baselines.magnet.training import hard_example_loss
from bench.optim import sgd
from reference.check import RELATIVE, Check, Comparing
from reference.formulas import label
from reference.golden import arrays, format_of
from reference.magnet.networks import FLOAT, network_of, pictures, weight

IMAGE_SEED = 3
RATE, DECAY = 1e-3, 5e-4
MAPS = ("c2", "c3", "c4", "c5")
GRADIENT = {"float32": 5e-4, "float64": RELATIVE}
"""With 32 bits an activation that is 0 up to rounding lets its place's gradient through or not."""
KEPT = {"logits": 3, "ref": 2, "train": 4}
"""Rows and columns between two values of logits that the golden data keeps."""


def check_modules(path: Path, golden: Mapping[str, Any], dtype: str) -> list[Check]:
    """All comparisons of the networks in one precision.

    Raises:
        UserError: the files are not what they should be.
    """
    comparing = Comparing("modules", "modules", dtype, [])
    kept = arrays(path.with_suffix(".npz"))
    with format_of(path):
        seed = golden.get("config", {}).get("seed", 0)
        shape = golden["ref_logits"]["shape"]
        classes = shape[1]
        spec = Spec(official=True)
        network = network_of(spec, classes, seed, dtype)
        found: dict[str, NDArray[Any]] = {}
        with torch.inference_mode():
            for size in _told(r"bb_(\d+x\d+)_", golden):
                found |= _backbone(network, size, classes)
            fine, coarse = (_probabilities(name, shape, seed, dtype) for name in ("fine", "coarse"))
            refine = network.refine[0]
            found["ref_logits"] = refine(fine, coarse).numpy()
            found["ref_logits_swapped"] = refine(coarse, fine).numpy()
        for least in _told(r"train_minkept(\d+)_", golden):
            module = network_of(spec, classes, seed, dtype, louder=1).refine[0]
            assert isinstance(module, Refinement)
            found |= _step(module, coarse, fine, int(least), spec, classes)
        for name, stats in golden.items():
            if name == "config":
                continue
            if name not in found:
                comparing.equal(f"{name} is not worked out here", True, False)
                continue
            # What 32 bits allow: changes of weights, for instance, carry the weights' own rounding.
            noise = 4 * stats["noise_max_abs"] / (stats["absmax"] or 1)
            moves = "_grad_" in name or "_delta_" in name
            allowed = max(GRADIENT[dtype] if moves else RELATIVE, noise)
            comparing.statistics(name, found[name], stats, allowed)
            if name in kept:
                ours = _sampled(name, found[name])
                comparing.array(name, ours, kept[name], stats["absmax"], allowed)
    return comparing.checks


def _told(pattern: str, names: Iterable[str]) -> list[str]:
    """What the names of golden data say of how it was made."""
    return sorted({match[1] for name in names if (match := re.match(pattern, name))})


def _backbone(network: MagNet, size: str, classes: int) -> dict[str, NDArray[Any]]:
    height, width = map(int, size.split("x"))
    image, _ = pictures(height, width, IMAGE_SEED, classes)
    x = network.normalise(image[None])
    features = network.backbone.encoder(x)[-len(MAPS) :]
    found = {f"bb_{size}_{name}": map for name, map in zip(MAPS, features, strict=True)}
    found[f"bb_{size}_logits"] = network.backbone(x)
    return {name: value.numpy() for name, value in found.items()}


def _probabilities(name: str, shape: list[int], seed: int, dtype: str) -> Tensor:
    values = torch.from_numpy(np.asarray(weight(f"{name}.bias", shape, seed)))
    return (20 * values.to(FLOAT[dtype])).softmax(1)


def _step(
    module: Refinement, first: Tensor, second: Tensor, least: int, spec: Spec, classes: int
) -> dict[str, NDArray[Any]]:
    """One step of the released training, in which the coarse map comes first."""
    labels = torch.stack(
        [
            torch.from_numpy(label(first.shape[-2], first.shape[-1], seed, classes))
            for seed in range(len(first))
        ]
    )
    module.train().requires_grad_(True)
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    logits = module(first.clone(), second.clone())
    loss = hard_example_loss(logits, labels, least, spec.hard_share)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser = sgd([module], DECAY)
    assert optimiser is not None
    optimiser.param_groups[0]["lr"] = RATE
    optimiser.step()
    found = {"loss": loss.detach(), "logits": logits.detach()}
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None
        found[f"grad_{key}"] = parameter.grad
        found[f"delta_{key}"] = parameter.detach() - before[key]
    for key, buffer in module.named_buffers():
        found[f"stat_{key}"] = buffer
    return {f"train_minkept{least}_{name}": value.numpy() for name, value in found.items()}


def _sampled(name: str, whole: NDArray[Any]) -> NDArray[Any]:
    """The part of a map that the golden data keeps."""
    kind = name.split("_", 1)[0]
    if kind == "bb" and not name.endswith("logits"):
        return whole[:, :: max(1, whole.shape[1] // 32), ::3, ::3]
    step = KEPT.get(kind, KEPT["logits"])
    return whole[:, :, ::step, ::step]
