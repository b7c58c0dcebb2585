"""Writes the results of a training: a checkpoint per seed, curves, and one record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bench import record
from bench.config import CHECKPOINTS, ModelConfig, Suite, checkpoint_of
from bench.files import file_sha256
from bench.parallel import distributed
from bench.pipeline.validation import Look
from bench.run import Model, device_facts, save, set_up


@dataclass(frozen=True)
class TrainingResult:
    """The result of training a model with one seed."""

    weights: dict[str, Tensor]
    """On the host."""
    parameters: Mapping[str, int]
    """That each phase trains."""
    seconds: Mapping[str, float]
    """By phase, looks at val included."""
    waiting_s: Mapping[str, float]
    """Of these, waiting for views that were not ready."""
    history: Sequence[tuple[str, int, float, float]]
    """(phase, step, loss, learning rate) of every step."""
    looks: Sequence[Look] | None
    """At val; None where the suite asks for none."""

    @property
    def values(self) -> dict[str, Any]:
        """The values in the record."""
        return {
            "phases": {phase: self._cost(phase) for phase in self.parameters},
            "loss": [[phase, step, loss] for phase, step, loss, _ in self.history],
            **({} if self.looks is None else {"looks": self.looks}),
        }

    def _cost(self, phase: str) -> dict[str, float]:
        """Steps, time and parameters of one phase."""
        steps = sum(name == phase for name, *_ in self.history)
        seconds, waiting_s = self.seconds[phase], self.waiting_s[phase]
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
    first = next(iter(results))
    record.write(
        path,
        record.Record(
            stage="train",
            name=name,
            settings={"model": config.settings()},
            values=results[first].values
            | record.other_seeds({seed: one.values for seed, one in results.items()}),
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
            seen = {(phase, step): miou for phase, step, miou in one.looks or ()}
            for phase, step, loss, _ in one.history:
                live.log_metric(f"{prefix}{phase}/loss", loss)
                if (phase, step + 1) in seen:  # validation follows its step
                    live.log_metric(f"{prefix}{phase}/miou_val", seen[phase, step + 1])
                live.next_step()


def _remove_others(path: Path, wanted: set[Path]) -> None:
    """Remove checkpoints of other seeds at the path of a model."""
    if path.is_file() and path not in wanted:
        path.unlink()
    if path.is_dir():
        for old in set(path.iterdir()) - wanted:
            old.unlink()
        if path in wanted:
            path.rmdir()
