"""Models and runs of a suite with all names resolved, for evaluation, measurement and prediction."""

import contextlib
import io
import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import metrics, record
from bench.config import (
    Compute,
    ModelConfig,
    RunConfig,
    Suite,
    Training,
    checkpoint_of,
    limited_to_avx2,
    open_source,
    pick,
)
from bench.errors import UserError
from bench.files import file_sha256, load_state, write_bytes
from bench.method import (
    Method,
    Strategy,
    check_strategy,
    configured,
    device_of,
    load,
    load_weights,
    network_for,
    spec_of,
)
from bench.tiling import Blend, labels_of, weights_of
from bench.training_step import recomputed
from data.dataset import PREPARED, Dataset, open_dataset


@dataclass(frozen=True)
class Model:
    """A model of the table `models` with a checked spec. Method and data set are loaded at first use."""

    name: str
    config: ModelConfig
    spec: Any
    """The method's `Spec`; of a run's model, with the run's overrides."""
    given_classes: int | None = None
    """Number of classes where the data set is not prepared."""
    given_method: Method | None = None
    """In place of the method that the line names, for instance one in another precision."""

    @property
    def method(self) -> Method:
        """The functions of the method; the import takes seconds."""
        return self.given_method or load(self.config.method)

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared data set.

        Raises:
            UserError: the data set is not prepared, or damaged.
        """
        return open_dataset(self.config.dataset)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.given_classes or len(self.dataset.classes)

    def build(self) -> nn.Module:
        """The network with random weights, as training has it."""
        network = self.method.build(self.spec, self.classes)
        return recomputed(network) if self.config.training.recomputed else network

    def by(self, strategy: str) -> "Run":
        """A run of the model with a strategy of its method."""
        return Run(self.name, RunConfig(self.name, strategy), self)

    def miou(self, matrices: Collection[metrics.Matrix]) -> float:
        """mIoU, 0..1, of confusion matrices (K + 1, K) of scenes of the data set."""
        return metrics.miou(metrics.total(matrices), self.dataset.classes, self.dataset.ignored)


@dataclass(frozen=True)
class Scene:
    """The prediction for one scene."""

    id: str
    labels: Tensor
    """(H, W) uint8, on the host."""
    matrix: metrics.Matrix
    """(K + 1, K), as `metrics.confusion` counts."""
    seconds: float
    """From host to host."""
    truth: Tensor
    """As `labels`; 255 where it is unlabelled."""
    scores: Tensor | None
    """(K, H, W), on the host, where they were asked for and the strategy has them."""


@dataclass(frozen=True)
class Run:
    """A run of the table `runs`, resolved."""

    name: str
    config: RunConfig
    model: Model

    @property
    def spec(self) -> Any:
        """The model's spec with the run's overrides."""
        return self.model.spec

    @property
    def method(self) -> Method:
        """The functions of its method."""
        return self.model.method

    @property
    def strategy(self) -> Strategy:
        """The strategy, in the run's precision."""
        return configured(self.method.strategies[self.config.strategy], self.config)

    @property
    def in_float32(self) -> "Run":
        """The same run in float32."""
        return replace(self, config=replace(self.config, precision="fp32"))

    @property
    def dataset(self) -> Dataset:
        """Its prepared data set."""
        return self.model.dataset

    @property
    def seeds(self) -> list[int]:
        """The seeds of its model's trainings."""
        return [training.seed for training in self.model.config.trainings]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that records store."""
        return {"run": asdict(self.config), "model": self.model.config.settings()}

    def varied(self, **settings: Any) -> "Run":
        """The run with fields of its spec overridden."""
        config = replace(self.config, overrides={**self.config.overrides, **settings})
        spec = spec_of(config.model, self.model.config, config)
        return replace(self, config=config, model=replace(self.model, spec=spec))

    def build(self) -> nn.Module:
        """The network with random weights, in eval mode and prepared for the strategy."""
        network = network_for(self.method, self.strategy, self.spec, self.model.classes)
        return self.strategy.prepare(network, self.spec)

    def checkpoint(self, seed: int | None = None) -> Path:
        """The checkpoint of one of the model's seeds; None: the first."""
        one = self.seeds[0] if seed is None else seed
        return checkpoint_of(self.model.name, self.model.config, one)

    def network(self, device: torch.device, seed: int | None = None) -> nn.Module:
        """The trained network on the device, in eval mode and prepared for the strategy.

        Args:
            seed: one of the model's seeds; None: the first.
        """
        path = self.checkpoint(seed)
        state = load_state(path)
        network = network_for(self.method, self.strategy, self.spec, self.model.classes)
        load_weights(network, state, str(path))
        return self.strategy.prepare(network, self.spec).to(device)

    def predict(self, network: nn.Module, image: Tensor) -> Tensor:
        """Labels (H, W) uint8 of an image (3, H, W) uint8, both on the CPU."""
        with torch.inference_mode():
            return self.strategy.predict(network, image, self.spec)

    def scenes(self, network: nn.Module, split: str, with_scores: bool = False) -> Iterator[Scene]:
        """Predict every scene of a split, one after another."""
        device = device_of(network)
        for id in self.dataset.ids(split):
            image, truth = self.dataset.read(id)
            scores = None
            with clock(device) as took, torch.inference_mode():
                if with_scores and self.strategy.scores:
                    scores = self.strategy.scores(network, image, self.spec)
                    labels = labels_of(scores)
                else:
                    labels = self.predict(network, image)
            counted = metrics.confusion(truth.numpy(), labels.numpy(), self.model.classes)
            yield Scene(id, labels, counted, took[0], truth, scores)

    def coverage(self, height_px: int, width_px: int) -> Tensor | None:
        """The sum (H, W) of the patches' weights at each pixel of an image of this size; with equal
        weights it is the number of patches. None for a strategy without patches."""
        found = self.strategy.inputs(self.spec, height_px, width_px)
        boxes = next((one.boxes for one in found if one.what == "patches"), ())
        blend: Blend = getattr(self.spec, "blend", None) or "mean"
        return weights_of(boxes, (height_px, width_px), blend) if boxes else None


def open_model(suite: Suite, name: str) -> Model:
    """The model `name` of the table `models`.

    Raises:
        UserError: there is no such model, or its spec is wrong.
    """
    config = pick(suite.models, name, "model")
    return Model(name, config, spec_of(name, config))


def open_run(
    suite: Suite, name: str, settings: Mapping[str, Any] | None = None, classes: int | None = None
) -> Run:
    """The run `name` of the table `runs`.

    Args:
        settings: fields of the spec to override.
        classes: number of classes; None: the prepared data set's.

    Raises:
        UserError: there is no such run, or its strategy or spec is wrong.
    """
    config = pick(suite.runs, name, "run")
    return resolve(name, config, suite.models[config.model], settings, classes)


def open_evaluated(suite: Suite, name: str) -> Run:
    """Like `open_run`, for an evaluated run. The classes come from the record of its evaluation, so that
    the data set is not needed."""
    evaluated = record.read(record.path_of(suite.suite, "evaluate", name))
    return open_run(suite, name, classes=len(evaluated.values["classes"]))


def resolve(
    name: str,
    config: RunConfig,
    model: ModelConfig,
    settings: Mapping[str, Any] | None = None,
    classes: int | None = None,
) -> Run:
    """A run from its two configurations; arguments and errors as in `open_run`."""
    config = replace(config, overrides={**config.overrides, **(settings or {})})
    check_strategy(name, config, model)
    spec = spec_of(config.model, model, config)
    return Run(name, config, Model(config.model, model, spec, classes))


def run_of(method: str, strategy: str, spec: Any, classes: int) -> Run:
    """A run of a method with the given spec, outside any suite, with random weights."""
    model = ModelConfig("", method, "", asdict(spec), Training(phases={}))
    return Model(method, model, spec, classes).by(strategy)


def require_inputs(suite: Suite, models: Iterable[str]) -> None:
    """Check that data and checkpoints were made with a suite's settings, for commands that DVC does not
    run.

    Raises:
        UserError: they were made with other settings.
    """
    for name in models:
        require_prepared(suite, name)
        require_checkpoint(suite, name)


def require_prepared(suite: Suite, name: str) -> None:
    """Raise a UserError if the prepared data of a model were made with other settings."""
    dataset = open_dataset(suite.models[name].dataset)
    wanted = asdict(open_source(suite, dataset.name)[1])
    if found := record.difference(dataset.settings, json.loads(json.dumps(wanted))):
        raise UserError(
            f"{dataset.root} was prepared with other settings than the suite {suite.suite} has: "
            f"{found}; run `dvc repro prepare@{dataset.name}`."
        )


def require_checkpoint(suite: Suite, name: str) -> None:
    """Raise a UserError if the checkpoints of a model are missing, were trained with other settings or
    data, or are not those of its training record."""
    path, model = record.path_of(suite.suite, "train", name), suite.models[name]
    made = record.read(path)
    found = record.made_otherwise(made, model)
    data = PREPARED / model.dataset / "dataset.json"
    if not found and data.is_file() and made.provenance.get("data_sha256") != file_sha256(data):
        found = f"{data} has changed"
    if found:
        raise UserError(
            f"{path} is of a training with other settings than the suite {suite.suite} has: {found}; "
            f"run `dvc repro train@{name}`."
        )
    for one in model.trainings:
        values = made.values.get("other_seeds", {}).get(str(one.seed), made.values)
        checkpoint = checkpoint_of(name, model, one.seed)
        if not checkpoint.is_file():
            raise UserError(f"{checkpoint} is missing: run `dvc repro train@{name}`.")
        # Records of older trainings lack it.
        if values.get("checkpoint_sha256") not in (None, file_sha256(checkpoint)):
            raise UserError(
                f"{checkpoint} is not from the training of {path}, but another suite's or a later "
                f"one's: run `dvc repro train@{name}`."
            )


def set_up(compute: Compute) -> torch.device:
    """Set the number of threads of torch; returns the device that the suite runs on."""
    torch.set_num_threads(compute.threads)
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "params.yaml asks for compute.device cuda, but torch sees no CUDA device: "
            "set it to auto or cpu."
        )
    has_avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
    if compute.isa == "avx2" and not (limited_to_avx2() and has_avx2):
        raise UserError(
            "params.yaml asks for compute.isa avx2, which needs an x86 processor with AVX2 and a "
            "program that is started by a command of this project: set it to native."
        )
    use_cuda = compute.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def device_facts(device: torch.device, compute: Compute) -> dict[str, Any]:
    """Facts about the device for the provenance of a record."""
    facts: dict[str, Any] = {
        "device": device.type,
        "threads": compute.threads,
        "isa": compute.isa,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type == "cuda":
        facts["device_name"] = torch.cuda.get_device_name(device)
        facts["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        facts["cuda"] = torch.version.cuda
    return facts


@contextlib.contextmanager
def clock(device: torch.device) -> Iterator[list[float]]:
    """Measure the seconds of a block, appended to the list at its end; synchronises the device before
    and after."""
    seconds: list[float] = []
    wait(device)
    start = time.perf_counter()
    yield seconds
    wait(device)
    seconds.append(time.perf_counter() - start)


def wait(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def save(path: Path, content: Any) -> None:
    """Like torch.save, but atomic. A full disk raises an OSError, not torch's RuntimeError."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())
