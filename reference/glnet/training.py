"""One optimiser step of one phase: losses, gradients, updates, and what moves at all."""

from typing import Any

import torch
from torch import Tensor, nn

from bench.optim import adam
from glnet.training import backward, phases, seen
from reference.glnet.cases import FLOAT, Check, Step, network_of, pictures
from reference.glnet.checkpoint import PARTS, official_key

PHASES = {1: "global", 2: "global-to-local", 3: "local-to-global"}
LOSS = 1e-5
GROUP = 1e-3
PARAMETER = 5e-3
"""Shares that the official code's own float32 noise supports; Adam's first step is nearly the sign
of the gradient, so that updates are compared by their absolute sums alone."""
SMALLEST = 1e-9
"""A gradient below this share of its module's is 0 in theory, and noise in practice."""


def check_step(step: Step, dtype: str) -> list[Check]:
    """All comparisons of one training step in one precision."""
    golden = step.golden
    network = network_of(step.setting, step.mode, FLOAT[dtype])
    spec = step.setting.spec
    phase = next(one for one in phases(network, spec) if one.name == PHASES[step.mode])
    # The last phase's start from the earlier ones (`phase.begin`) is in the weights already.
    for module in phase.trains:
        module.train().requires_grad_(True)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = adam(phase.trains, golden["weight_decay"])
    assert optimizer is not None
    for group in optimizer.param_groups:
        group["lr"] = golden["lr"]

    views = []
    for seed in golden["image_seeds"]:
        image, small, label = pictures(step.setting, seed)
        views.append(seen(image, label, spec, phase.name, torch.Generator()) | {"global": small})
    losses: list[float] = []

    def back(loss: Tensor) -> None:
        losses.append(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]

    logged = backward(network, views, spec, phase.name, back)
    gradients = {
        name: parameter.grad
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    optimizer.step()

    checks: list[Check] = []

    def check(quantity: str, difference: float, tolerance: float) -> None:
        checks.append(Check(step.name, step.mode, dtype, quantity, difference, tolerance))

    def close(quantity: str, ours: float, theirs: float, tolerance: float) -> None:
        check(f"{quantity} (share)", abs(ours - theirs) / (abs(theirs) or 1), tolerance)

    close("logged loss", logged, golden["returned_loss"], LOSS)
    expected = _losses(step)
    if step.mode == 3:  # ours walks the global loss back last, theirs first
        losses = losses[-1:] + losses[:-1]
    check("number of losses", abs(len(losses) - len(expected)), 0)
    for number, (ours, theirs) in enumerate(zip(losses, expected, strict=False)):
        close(f"loss {number}", ours, theirs, LOSS)

    found = {official_key(name): gradient for name, gradient in gradients.items()}
    theirs_moving = {key for key, value in golden["per_param"].items() if value is not None}
    check("parameters that move", len(found.keys() ^ theirs_moving), 0)
    deltas = {
        official_key(name): network.get_parameter(name).detach() - before[name]
        for name in gradients
    }
    for group, values in golden["groups"].items():
        own = [key for key in found if key.split(".")[0] == group]
        with_gradient = sum(found[key].numel() for key in own)
        check(f"{group} with gradient", abs(with_gradient - values["n_with_grad"]), 0)
        if not own:
            continue
        squares = sum(float(found[key].double().square().sum()) for key in own)
        moved = sum(float(deltas[key].double().abs().sum()) for key in own)
        close(f"{group} squared gradient", squares, values["grad_sqsum"], GROUP)
        close(f"{group} update", moved, values["delta_abssum"], GROUP)
        for key in own:
            gradient, theirs = found[key].double(), golden["per_param"][key]
            norm = theirs["grad_l2"]
            if norm**2 < SMALLEST * values["grad_sqsum"]:
                continue
            close(f"gradient norm of {key}", float(gradient.norm()), norm, PARAMETER)
            # Sums may cancel; what they could be at most is their scale.
            off = abs(float(gradient.sum()) - theirs["grad_sum"]) / (norm * gradient.numel() ** 0.5)
            check(f"gradient sum of {key} (share)", off, PARAMETER)
    _check_norms(step, network, phase.trains, check, close)
    return checks


def _losses(step: Step) -> list[float]:
    """The official losses, those of one group of patches added up as they are walked back."""
    calls = step.golden["losses_in_call_order"]
    if step.mode != 2:
        return [call[1] for call in calls]
    weight = {"mse": step.golden["lamb_fmreg"], "focal": 1.0}
    terms = [weight[call[0]] * call[1] for call in calls]
    return [sum(terms[first : first + 3]) for first in range(0, len(terms), 3)]


def _check_norms(
    step: Step, network: nn.Module, trains: tuple[nn.Module, ...], check: Any, close: Any
) -> None:
    """Batch norm's mode and running statistics in each encoder."""
    parts = {"resnet_global": "global_branch", "resnet_local": "local_branch"}
    if step.mode == 3:
        parts["resnet_global"] = "global_borrowing"
    for encoder, part in parts.items():
        assert PARTS[part][0] == encoder
        branch = network.get_submodule(part)
        trained = any(branch is module for module in trains)
        check(f"{encoder} in train mode", float(trained != step.golden["train_flags"][encoder]), 0)
        norms = [one for one in branch.modules() if isinstance(one, nn.BatchNorm2d)]
        golden = step.golden["bn_running"][encoder]
        for what in ("mean", "var"):
            total = sum(float(norm.get_buffer(f"running_{what}").double().sum()) for norm in norms)
            close(f"{encoder} running {what}", total, golden[f"{what}_sum"], LOSS)
        counted = [int(norm.get_buffer("num_batches_tracked")) for norm in norms]
        wrong = [count for count in counted if count != golden["num_batches_tracked"]]
        check(f"{encoder} batches counted", len(wrong), 0)
