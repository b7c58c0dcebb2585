"""The optimiser step that the stage `train` runs and whose memory `bench.memory` predicts."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from bench.config import ModelConfig, Schedule, Training
from bench.errors import UserError
from bench.method import Method, Phase, View
from bench.optim import adam, adamw, poly, sgd, stepped
from bench.parallel import distributed


@dataclass(frozen=True)
class PhaseTraining:
    """A network in one phase of training: all that an optimiser step needs except its views."""

    method: Method
    spec: Any
    network: nn.Module
    phase: Phase
    optimizer: torch.optim.Optimizer | None
    """None where no parameter is trained."""
    backward: Callable[[Tensor], None] = Tensor.backward
    """What the method calls with a loss."""
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    """The precision of the forward pass."""


def enter_phase(
    method: Method, spec: Any, network: nn.Module, phase: Phase, training: Training
) -> PhaseTraining:
    """Set the modes of a network's modules for a phase, and create the phase's optimiser.

    The caller runs `phase.begin` once before the first step, unless it resumes the phase."""
    network.eval().requires_grad_(False)
    for module in phase.trains:
        module.train().requires_grad_(True)
    make = {"adam": adam, "adamw": adamw, "sgd": sgd}[training.optimiser]
    return PhaseTraining(method, spec, network, phase, make(phase.trains, training.weight_decay))


def training_step(training: PhaseTraining, views: list[View], learning_rate: float) -> float:
    """One optimiser step; returns the loss, the mean over all processes.

    The caller decides what a loss that is not finite means.

    Args:
        views: this process's share of the step's images, on the network's device.
    """
    network, phase, optimizer = training.network, training.phase, training.optimizer
    with (
        training.autocast(),
        distributed.as_one(phase.trains, phase.whole_batch),
        _more_than_one_value(phase),
    ):
        loss = training.method.backward(
            network, views, training.spec, phase.name, training.backward
        )
    loss = distributed.mean_of(loss, network)
    trained = [p for p in network.parameters() if p.requires_grad]
    distributed.join_gradients(trained, phase.gradients)
    if optimizer:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad()
    return loss


@contextlib.contextmanager
def _more_than_one_value(phase: Phase) -> Iterator[None]:
    """Say in a sentence what torch's batch normalisation refuses."""
    try:
        yield
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"In the phase {phase.name} a layer normalises over a single value: give it a `batch` "
            "of 2 or more in params.yaml."
        ) from None


def learning_rate_at(model: ModelConfig, schedule: Schedule, step: int) -> float:
    """The learning rate of a step of a phase."""
    first, training = schedule.learning_rate, model.training
    if schedule.drops:
        return stepped(first, step, schedule.drops)
    steps = schedule.poly_steps or schedule.steps
    return poly(first, training.least_rate, step, steps, training.poly_power)


def recomputed(network: nn.Module) -> nn.Module:
    """Make the network's blocks keep their inputs alone for the backward pass, in place: activation
    checkpointing (Chen et al., "Training deep nets with sublinear memory cost", 2016). A block is an
    element with parts of its own of an outermost `nn.Sequential`, such as a bottleneck of a ResNet."""
    for block in _blocks(network):
        block.forward = partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            context_fn=partial(_contexts, block),
        )
    return network


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.children():
        if isinstance(module, nn.Sequential) and any(True for _ in part.children()):
            yield part
        else:
            yield from _blocks(part)


def _contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Of the forward pass, and of the second one during the backward pass."""
    return contextlib.nullcontext(), _with_kept_statistics(block)


@contextlib.contextmanager
def _with_kept_statistics(block: nn.Module) -> Iterator[None]:
    """Inside, batch norm does not count its batch a second time."""
    norms = [one for one in block.modules() if isinstance(one, _BatchNorm)]
    before = [(one.momentum, one.num_batches_tracked) for one in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
