"""A labelling job: a run with its weights and the colours of the classes."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.config import PARAMS, Compute, pick, read_suite
from bench.errors import UserError
from bench.files import load_state
from bench.method import load_weights, network_for
from bench.run import Run, open_run, require_checkpoint
from data.dataset import PREPARED, open_dataset

MAX_CLASSES = 254
"""255 is unlabelled."""


@dataclass(frozen=True)
class Job:
    """A run with its weights; the network is not built yet."""

    run: Run
    palette: tuple[tuple[int, int, int], ...]
    """RGB by class, one for each class."""
    compute: Compute
    weights: Path | int
    """A checkpoint, or the seed of random weights."""

    def network(self) -> tuple[nn.Module, str]:
        """The network on the CPU, prepared for the strategy, and the SHA-256 of its weights.

        Raises:
            UserError: the checkpoint is missing, damaged, or of another network.
        """
        run = self.run
        if isinstance(self.weights, int):
            torch.manual_seed(self.weights)
        network = network_for(run.method, run.strategy, run.spec, run.model.classes)
        if isinstance(self.weights, Path):
            load_weights(network, load_state(self.weights), str(self.weights))
        digest = hashlib.sha256()
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().data)
        return run.strategy.prepare(network, run.spec), digest.hexdigest()

    def fingerprint(self) -> dict[str, Any]:
        """All settings that labels depend on, except weights, as JSON values."""
        return {
            "method": self.run.model.config.method,
            "strategy": self.run.config.strategy,
            "precision": self.run.config.precision,
            "memory_layout": self.run.config.layout,
            "spec": {key: str(value) for key, value in asdict(self.run.spec).items()},
            "classes": len(self.palette),
            "layout": 4,  # version of the folder of an unfinished image
            "palette": [list(colour) for colour in self.palette],
            "torch": torch.__version__,
        }


def open_job(
    run: str,
    suite_path: Path = PARAMS,
    weights: Path | int | None = None,
    classes: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Job:
    """Open a run of a suite.

    Args:
        run: a key of its table `runs`.
        weights: a checkpoint, or a seed for random weights; None: the run's checkpoint of the first
            seed, which must be trained with the suite's settings.
        classes: number of classes, if the run's data set is not prepared here.
        settings: fields of the spec to override.

    Raises:
        UserError: the run, data set or checkpoint does not exist, or a setting is wrong.
    """
    suite = read_suite(suite_path)
    name = pick(suite.runs, run, "run").model
    model = suite.models[name]
    palette = _palette(model.dataset, classes)
    resolved = open_run(suite, run, settings, len(palette))
    if weights is None:
        require_checkpoint(suite, name)
        weights = resolved.checkpoint()
    return Job(resolved, palette, suite.compute, weights)


def _palette(dataset: str, classes: int | None) -> tuple[tuple[int, int, int], ...]:
    """The data set's colours, or distinct colours for a given number of classes."""
    if classes is None:
        if not (PREPARED / dataset / "dataset.json").exists():
            raise UserError(
                f"Data set {dataset} is not prepared here, so the number of classes is unknown: "
                f"set it with --classes, or run `dvc repro prepare@{dataset}`."
            )
        return open_dataset(dataset).palette
    if not 1 <= classes <= MAX_CLASSES:
        raise UserError(f"--classes is {classes}: use a number from 1 to {MAX_CLASSES}.")
    return tuple(_colour(number) for number in range(classes))


def _colour(number: int) -> tuple[int, int, int]:
    """A distinct colour: the bits of a number, the lowest first, set the highest bits of R, G and B."""
    channels = [0, 0, 0]
    for bit in range(8):
        if number >> bit & 1:
            channels[bit % 3] |= 128 >> (bit // 3)
    return channels[0], channels[1], channels[2]
