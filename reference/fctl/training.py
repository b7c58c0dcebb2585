"""One optimiser step of one phase: losses, gradients, updates, and what moves at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines.fctl.inference import boxes_of, contexts
from baselines.fctl.training import backward, phases
from bench.optim import adam
from bench.tiling import cut
from reference.check import Check, Comparing
from reference.fctl.checkpoint import source_of
from reference.fctl.networks import MODES, network_of, pictures, shrink, spec_of
from reference.golden import format_of

LOSS = 1e-6
GRADIENT = 1e-3
UPDATE = 1e-2
"""Shares that the released code's own float32 noise supports. Adam's first step is nearly the sign
of the gradient, so that updates are compared by their absolute sums."""
ENLARGED = ("adj_pool3.weight", "adj_pool4.weight")
"""An update is below float32's resolution of these weights."""


def check_step(path: Path, golden: Mapping[str, Any], dtype: str) -> list[Check]:
    """All comparisons of one training step in one precision.

    Raises:
        UserError: the file is not what it should be.
    """
    with format_of(path):
        mode, config = int(golden["mode"]), golden["config"]
        spec, network = spec_of(golden, mode), network_of(golden, mode, dtype)
        name = MODES[mode][0]
        views = []
        for seed in golden["image_seeds"]:
            image, label = pictures(config, seed)
            boxes = boxes_of(config["h"], config["w"], spec)
            view = {"patches": cut(image, boxes), "labels": cut(label, boxes)}
            view["medium"] = contexts(image, boxes, spec.medium, shrink)
            view["large"] = contexts(image, boxes, spec.large_factor, shrink)
            views.append(view)
    comparing = Comparing(path.stem.removeprefix("train_"), name, dtype, [])
    moving = phases(network, spec)[0].trains
    for module in moving:
        module.train().requires_grad_(True)
    # The phase's start from earlier ones (`begin`) is in the weights already.
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    optimizer = adam(moving, golden["weight_decay"])
    assert optimizer is not None
    for group in optimizer.param_groups:
        group["lr"] = golden["lr"]
    losses: list[float] = []

    def back(loss: Tensor) -> None:
        losses.append(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]

    logged = backward(network, views, spec, name, back)
    optimizer.step()
    with format_of(path), torch.no_grad():
        comparing.close("logged loss", logged, golden["returned_loss"], LOSS)
        expected = [call[0] for call in golden["losses_in_call_order"]]
        comparing.equal("number of losses", len(losses), len(expected))
        for number, (ours, theirs) in enumerate(zip(losses, expected, strict=False)):
            comparing.close(f"loss {number}", ours, theirs, LOSS)
        found = {
            source_of(key, spec.variant).key: (p.grad.double(), p.double() - before[key].double())
            for key, p in network.named_parameters()
            if p.grad is not None
        }
        theirs_moving = {
            key for key, value in golden["per_param"].items() if value is not None
        } - set(golden["without_grad"])
        comparing.equal("parameters that move", sorted(found), sorted(theirs_moving))
        for key in found.keys() & theirs_moving:
            theirs = golden["per_param"][key]
            gradient, delta = found[key]
            if "conv_key" in key and key.endswith(".bias"):
                continue  # 0 in theory, noise in practice
            comparing.close(
                f"gradient norm of {key}", float(gradient.norm()), theirs["grad_l2"], GRADIENT
            )
            if key not in ENLARGED:
                moved = float(delta.abs().sum())
                comparing.close(f"update of {key}", moved, theirs["delta_abssum"], UPDATE)
    return comparing.checks
