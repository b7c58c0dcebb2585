"""When a phase of training stops: mIoU on val, looked at every so many steps, grows no more."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from bench.errors import UserError
from bench.method import Phase
from bench.metrics import confusion, miou, total
from bench.run import Model

Look = tuple[str, int, float]
"""(phase, steps done, mIoU on val 0..1)."""


def look(model: Model, network: nn.Module, phase: Phase) -> float:
    """mIoU on val, 0..1, of the strategy that judges the phase; modules are left in the modes that
    training has them in.

    Raises:
        UserError: the data set has no val split.
    """
    dataset = model.dataset
    ids = dataset.ids("val")
    if not ids:
        raise UserError(
            f"The data set {dataset.name} has no val split, which `validate_every` needs: take "
            "that setting out of the model's training."
        )
    predict = model.method.strategies[phase.judged_by].predict
    network.eval()
    matrices = []
    with torch.inference_mode():
        for id in ids:
            image, label = dataset.read(id)
            labels = predict(network, image, model.spec).numpy()
            matrices.append(confusion(label.numpy(), labels, len(dataset.classes)))
    for module in phase.trains:
        module.train()
    return miou(total(matrices), dataset.classes, dataset.ignored)


def best(looks: Sequence[Look], phase: str) -> int | None:
    """The place of the phase's best look, the first of equals; None before its first."""
    own = [place for place, (name, _, _) in enumerate(looks) if name == phase]
    # A look at which no class occurred is NaN, and worse than any other.
    score = {place: -1.0 if math.isnan(looks[place][2]) else looks[place][2] for place in own}
    return max(own, key=lambda place: score[place]) if own else None


def settled(looks: Sequence[Look], phase: str, patience: int) -> bool:
    """Whether the last `patience` looks of a phase brought no new best."""
    place = best(looks, phase)
    return place is not None and len(looks) - 1 - place >= patience
