"""Early stopping of a training phase, by mIoU on val."""

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
    """mIoU on val, 0..1, of the strategy `phase.judged_by`; trained modules are put back into train
    mode.

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
    """Index of the phase's best validation, the first of equal ones; None if it has none."""
    own = [place for place, (name, _, _) in enumerate(looks) if name == phase]
    # NaN, if no class occurred, is worse than any number.
    score = {place: -1.0 if math.isnan(looks[place][2]) else looks[place][2] for place in own}
    return max(own, key=lambda place: score[place]) if own else None


def settled(looks: Sequence[Look], phase: str, patience: int) -> bool:
    """Whether the last `patience` validations of a phase brought no new best."""
    place = best(looks, phase)
    return place is not None and len(looks) - 1 - place >= patience
