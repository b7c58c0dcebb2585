"""A labelling job: a network with its weights, a strategy, and the classes."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.config import CHECKPOINTS, PARAMS, Compute, pick, read_suite
from bench.errors import UserError
from bench.method import Method, Strategy, check_strategy, load, load_weights, network_for, spec_of
from bench.run import load_checkpoint
from data.dataset import PREPARED, open_dataset

MOST_CLASSES = 254
"""255 is unlabelled."""


@dataclass(frozen=True)
class Job:
    """One run of a suite, ready but for its network."""

    name: str
    method_name: str
    method: Method
    strategy_name: str
    strategy: Strategy
    spec: Any
    palette: tuple[tuple[int, int, int], ...]
    """RGB by class; there are as many classes."""
    compute: Compute
    weights: Path | int
    """A checkpoint, or the seed of random weights."""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.palette)

    def with_sub_batch(self, patches: int) -> "Job":
        """The same job with another number of patches at once."""
        return replace(self, spec=replace(self.spec, sub_batch=patches))

    def network(self) -> tuple[nn.Module, str]:
        """The network, prepared for the strategy, on the host, and the SHA-256 of its weights.

        Raises:
            UserError: the checkpoint is missing, damaged, or another network's.
        """
        if isinstance(self.weights, int):
            torch.manual_seed(self.weights)
        network = network_for(self.method, self.strategy, self.spec, self.classes)
        if isinstance(self.weights, Path):
            load_weights(network, load_checkpoint(self.weights), str(self.weights))
        digest = hashlib.sha256()
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().data)
        return self.strategy.prepare(network, self.spec), digest.hexdigest()

    def fingerprint(self) -> dict[str, Any]:
        """All settings that labels depend on, except weights, in JSON's types."""
        return {
            "method": self.method_name,
            "strategy": self.strategy_name,
            "spec": {key: str(value) for key, value in asdict(self.spec).items()},
            "classes": self.classes,
            "layout": 2,  # of the folder of an unfinished image
            "palette": [list(colour) for colour in self.palette],
            "torch": torch.__version__,
        }


def job(
    run: str,
    suite_path: Path = PARAMS,
    weights: Path | int | None = None,
    classes: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Job:
    """The run of a suite.

    Args:
        run: a key of its table `runs`.
        weights: a checkpoint, or a seed for random weights; None: the run's own checkpoint.
        classes: their number, where the run's data set is not prepared here.
        settings: fields of the spec to override.

    Raises:
        UserError: something does not exist or does not fit.
    """
    suite = read_suite(suite_path)
    line = pick(suite.runs, run, "run")
    line = replace(line, overrides={**line.overrides, **(settings or {})})
    model = suite.models[line.model]
    check_strategy(run, line, model)
    spec = spec_of(line.model, model, line)
    palette = _palette(model.dataset, classes)
    method = load(model.method)
    return Job(
        name=run,
        method_name=model.method,
        method=method,
        strategy_name=line.strategy,
        strategy=method.strategies[line.strategy],
        spec=spec,
        palette=palette,
        compute=suite.compute,
        weights=CHECKPOINTS / f"{line.model}.pt" if weights is None else weights,
    )


def _palette(dataset: str, classes: int | None) -> tuple[tuple[int, int, int], ...]:
    """The data set's colours, or distinct colours for a number of classes."""
    if classes is None:
        if not (PREPARED / dataset / "dataset.json").exists():
            raise UserError(
                f"Data set {dataset} is not prepared here, so the number of classes is not known: "
                f"give it with --classes, or run `dvc repro prepare@{dataset}`."
            )
        return open_dataset(dataset).palette
    if not 1 <= classes <= MOST_CLASSES:
        raise UserError(f"--classes is {classes}: give a whole number from 1 to {MOST_CLASSES}.")
    return tuple(_colour(number) for number in range(classes))


def _colour(number: int) -> tuple[int, int, int]:
    """The bits of a number, the lowest first, become the highest bits of red, green and blue."""
    channels = [0, 0, 0]
    for bit in range(8):
        if number >> bit & 1:
            channels[bit % 3] |= 128 >> (bit // 3)
    return channels[0], channels[1], channels[2]
