"""The progress of a training, its validations on val, and the files that it leaves: a checkpoint per
seed, curves, and one record."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import record
from bench.config import CHECKPOINTS, ModelConfig, Suite, checkpoint_of
from bench.errors import UserError
from bench.files import file_sha256, load_tensors
from bench.method import Phase
from bench.parallel import distributed
from bench.run import Model, device_facts, save, set_up

Validation = tuple[str, int, float]
"""(phase, steps done, mIoU on val 0..1)."""
STATE = ("phase", "step", "history", "seconds", "waiting_s", "validations", "best")
"""Attributes of `Progress` that its file keeps."""


class Progress:
    """The progress of a training, on disk and in memory."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Reads `path` if its fingerprint is the same; otherwise training starts anew."""
        self.path, self.fingerprint = path, fingerprint
        self.phase, self.step = 0, 0
        self.history: list[tuple[str, int, float, float]] = []
        """(phase, step, loss, learning rate) of every step done."""
        self.seconds: dict[str, float] = {}
        """By phase, validation included."""
        self.waiting_s: dict[str, float] = {}
        """Of these, waiting for views that were not ready."""
        self.validations: list[Validation] = []
        self.best: dict[str, Tensor] | None = None
        """All weights at the phase's best validation."""
        self.restored: dict[str, Any] | None = None
        """The file's content, until the network has its weights."""
        if path.exists():
            state: dict[str, Any] = load_tensors(path, "delete it and run `dvc repro`")
            if state["fingerprint"] == fingerprint:
                self.restored = state
                vars(self).update({name: state[name] for name in STATE})

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Write all state that the next step depends on, atomically; only rank 0 writes."""
        if distributed.rank() > 0:
            return
        state = {
            "fingerprint": self.fingerprint,
            **{name: getattr(self, name) for name in STATE},
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict() if optimizer else None,
        }
        save(self.path, state)

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Restore the state that `save` wrote, if there was any."""
        if self.restored is None:
            return
        network.load_state_dict(self.restored["network"])
        if optimizer:
            optimizer.load_state_dict(self.restored["optimizer"])
        self.restored = None

    def looked(self, phase: str, miou: float, network: nn.Module) -> None:
        """Record a validation; keeps the weights of the best one."""
        self.validations.append((phase, self.step, miou))
        if best(self.validations, phase) == len(self.validations) - 1:
            self.best = {key: value.cpu().clone() for key, value in network.state_dict().items()}


def validate(model: Model, network: nn.Module, phase: Phase) -> float:
    """mIoU on val, 0..1, of the strategy `phase.judged_by`; trained modules are put back into train
    mode.

    Raises:
        UserError: the data set has no val split.
    """
    if not model.dataset.ids("val"):
        raise UserError(
            f"The data set {model.dataset.name} has no val split, which `validate_every` needs: "
            "take that setting out of the model's training."
        )
    network.eval()
    scenes = model.by(phase.judged_by).scenes(network, "val")
    score = model.miou([scene.matrix for scene in scenes])
    for module in phase.trains:
        module.train()
    return score


def best(validations: Sequence[Validation], phase: str) -> int | None:
    """Index of the phase's best validation, the first of equal ones; None if it has none."""
    # NaN, if no class occurred, is worse than any number.
    scores = {
        place: -1.0 if math.isnan(score) else score
        for place, (name, _, score) in enumerate(validations)
        if name == phase
    }
    return max(scores, key=scores.__getitem__, default=None)


def settled(validations: Sequence[Validation], phase: str, patience: int) -> bool:
    """Whether the last `patience` validations of a phase brought no new best."""
    place = best(validations, phase)
    return place is not None and len(validations) - 1 - place >= patience


@dataclass(frozen=True)
class TrainingResult:
    """The result of training a model with one seed."""

    weights: dict[str, Tensor]
    """On the host."""
    parameters: Mapping[str, int]
    """That each phase trains."""
    progress: Progress

    def values(self, validated: bool) -> dict[str, Any]:
        """The values in the record; with the validations, where the suite asks for them."""
        history = self.progress.history
        return {
            "phases": {phase: self._cost(phase) for phase in self.parameters},
            "loss": [[phase, step, loss] for phase, step, loss, _ in history],
            **({"validations": self.progress.validations} if validated else {}),
        }

    def _cost(self, phase: str) -> dict[str, float]:
        """Steps, time and parameters of one phase."""
        steps = sum(name == phase for name, *_ in self.progress.history)
        seconds, waiting_s = self.progress.seconds[phase], self.progress.waiting_s[phase]
        return {
            "steps": steps,
            "seconds": seconds,
            "steps_per_s": steps / seconds,
            "waiting_s": waiting_s,
            "waiting_share": waiting_s / seconds,
            "parameters": self.parameters[phase],
        }


def write_results(suite: Suite, model: Model, results: Mapping[int, TrainingResult]) -> None:
    """Write the checkpoints, then curves and the record.

    Args:
        results: by seed, in the model's order.
    """
    name, config = model.name, model.config
    _remove_others(CHECKPOINTS / f"{name}.pt", {checkpoint_of(name, config, s) for s in results})
    for seed, one in results.items():
        save(checkpoint_of(name, config, seed), one.weights)
    path = record.path_of(suite.suite, "train", name)
    _draw_curves(path.with_suffix(""), config, results)
    validated = config.training.validate_every is not None
    values = {
        seed: one.values(validated)
        | {"checkpoint_sha256": file_sha256(checkpoint_of(name, config, seed))}
        for seed, one in results.items()
    }
    first = next(iter(results))
    record.write(
        path,
        record.Record(
            stage="train",
            name=name,
            settings={"model": config.settings()},
            values=values[first] | record.other_seeds(values),
            provenance=record.provenance(
                seed=first,
                data_sha256=file_sha256(model.dataset.root / "dataset.json"),
                processes=distributed.size(),
                **device_facts(set_up(suite.compute), suite.compute),
            ),
        ),
    )


def _draw_curves(folder: Path, model: ModelConfig, results: Mapping[int, TrainingResult]) -> None:
    """Write the curves of loss and mIoU on val for `dvc plots`. Written from the history at the end,
    so that curves of a resumed training have no gaps or repetitions."""
    from dvclive.live import Live

    with Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None) as live:
        for seed, one in results.items():
            live.step = 0
            prefix = f"seed{seed}/" if model.seeds else ""
            seen = {(phase, step): miou for phase, step, miou in one.progress.validations}
            for phase, step, loss, _ in one.progress.history:
                live.log_metric(f"{prefix}{phase}/loss", loss)
                if (phase, step + 1) in seen:  # validation follows its step
                    live.log_metric(f"{prefix}{phase}/miou_val", seen[phase, step + 1])
                live.next_step()


def _remove_others(path: Path, wanted: set[Path]) -> None:
    """Remove checkpoints of other seeds at the path of a model."""
    for old in {path, *path.glob("*")} - wanted:
        if old.is_file():
            old.unlink()
    if path in wanted and path.is_dir():
        path.rmdir()
