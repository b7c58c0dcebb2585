"""One forward and backward pass: losses and gradients."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines.isdnet.training import losses
from bench.optim import UNLABELLED
from reference.check import Check, Comparing
from reference.formulas import label
from reference.golden import format_of
from reference.isdnet.checkpoint import official_key
from reference.isdnet.networks import network_of, picture, spec_of

MODES = ("bn_eval", "bn_train")
NAMES = {
    "decode.loss_seg": "deep",
    "refine.loss_seg": "final",
    "aux_1.loss_seg": "context at 1/8",
    "aux_2.loss_seg": "context at 1/16",
    "aux_3.recon_losses": "detail",
    "aux_4.fa_loss": "affinity",
    "aux.loss_seg": "auxiliary",
}
LOSS = 1e-5
GRADIENT = {"bn_eval": 2e-4, "bn_train": 5e-2}
"""Of squared norms. In train mode batch norm of a 1 x 1 map sees two values, and what flows back
through it is mostly rounding: the released code is that far from itself in float64."""
SMALLEST = 1e-6
"""A norm below this share of the largest is noise."""


def check_step(path: Path, golden: Mapping[str, Any], mode: str, dtype: str) -> list[Check]:
    """All comparisons of one step with batch norm in one mode, in one precision.

    Raises:
        UserError: the file is not what it should be.
    """
    comparing = Comparing(path.stem.removeprefix("train_"), mode, dtype, [])
    with format_of(path):
        config, theirs = golden["config"], golden[mode]
        images, labels = _batch(config)
        spec, network = spec_of(config), network_of(config, dtype)
        network.train(mode == "bn_train").requires_grad_(True)
        found = losses(network, images, labels, spec)
        total = torch.stack([*found.values()]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        double = dtype == "float64"
        expected = theirs.get("losses_f64" if double else "losses") or theirs["losses"]
        for name, own in NAMES.items():
            comparing.close(f"loss {name}", float(found[own].detach()), expected[name], LOSS)
        comparing.close("loss", float(total.detach()), expected["loss"], LOSS)
        gradients = {
            official_key(key): parameter.grad.double()
            for key, parameter in network.named_parameters()
            if parameter.grad is not None
        }
        without = {official_key(key) for key, _ in network.named_parameters()} - gradients.keys()
        comparing.equal("parameters without gradient", without, set(theirs["no_gradient"]))
        groups = theirs["grad_sqsum_by_group"]
        groups = theirs.get("grad_sqsum_by_group_f64", groups) if double else groups
        for group, expected_sum in groups.items():
            own_keys = [key for key in gradients if key.startswith(group)]
            squares = sum(float(gradients[key].square().sum()) for key in own_keys)
            comparing.close(f"squared gradient of {group}", squares, expected_sum, GRADIENT[mode])
        norms = theirs["grad_norm_per_parameter"] or {}
        for key, norm in norms.items():
            if norm >= SMALLEST * max(norms.values()):
                own_norm = float(gradients[key].norm()) if key in gradients else float("nan")
                comparing.close(f"gradient norm of {key}", own_norm, norm, GRADIENT[mode] / 2)
    return comparing.checks


def _batch(config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) and labels (N, H, W), whose first corner has no label."""
    images = torch.stack([picture(config, seed) for seed in config["image_seeds"]])
    size = (config["h"], config["w"])
    classes = config.get("n_class", 7)
    labels = torch.stack(
        [torch.from_numpy(label(*size, config["seed"] + i, classes)) for i in range(len(images))]
    )
    corner = re.search(r"rows 0\.\.(\d+), columns 0\.\.(\d+)", config.get("label", ""))
    if corner:
        labels[:, : int(corner[1]) + 1, : int(corner[2]) + 1] = UNLABELLED
    return images, labels
