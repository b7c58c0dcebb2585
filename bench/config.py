"""Reads params.yaml into frozen dataclasses; an unknown, missing or ill-typed key is an error that
names the key.

The file is a *suite*: tables of data sets, start weights, models (one checkpoint each) and runs
(one point of the figure each). Settings of one method or data set stay plain mappings here
(`ModelConfig.spec`, `Source.settings`) and are checked by their owner with `strict`, so that a new
method needs no change of this file."""

import importlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, PydanticCustomError

from bench.errors import UserError
from bench.files import parse_yaml, shortened

PARAMS = Path("params.yaml")
CHECKPOINTS = Path("checkpoints")
RAW = Path("data/raw")

T = TypeVar("T")
LONGEST_NAME_BYTES = 200  # file systems allow 255; endings and temporary files take some


def _file_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name) or len(name.encode()) > LONGEST_NAME_BYTES:
        raise PydanticCustomError(
            "name",
            "names become names of files: letters, digits, `_`, `-` and `.`, the first one a letter, "
            f"digit or `_`, at most {LONGEST_NAME_BYTES} bytes",
        )
    return name


Name = Annotated[str, AfterValidator(_file_name)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
"""What torch takes."""
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Split = Literal["train", "val", "test"]

MOVED_METHODS = {
    "baselines": "baselines/generic",
    "cascadepsp": "baselines/cascadepsp",
    "fctl": "baselines/fctl",
    "isdnet": "baselines/isdnet",
    "magnet": "baselines/magnet",
    "pointrend": "baselines/pointrend",
}
"""Earlier -> current folders of methods. Suites and records with earlier names are still read."""


def current_method(method: str) -> str:
    """The current folder of a method, given its current or an earlier one."""
    return MOVED_METHODS.get(method, method)


AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
}
"""What limits the libraries to AVX2; they read it from the environment when they are loaded."""


def limited_to_avx2() -> bool:
    """Whether this process runs with `compute.isa: avx2`."""
    return AVX2.items() <= os.environ.items()


@dataclass(frozen=True, config=_STRICT)
class Compute:
    """Where and how everything runs; part of every record."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` uses CUDA if there is a GPU, else the CPU."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Precision of training, as in Lightning Fabric. That of inference is a run's."""
    threads: Annotated[int, Field(ge=1, le=4096)] = 2
    """Threads of torch on the host; recorded, because latency and rounding depend on it."""
    isa: Literal["native", "avx2"] = "native"
    """Instruction set on the host: all that the processor has, or AVX2, with which results are the
    same on every x86 processor (docs/devices.md)."""
    workers: Annotated[int, Field(ge=0, le=4096)] = 0
    """Data-loader processes for the training views; 0: the training process itself. Does not change
    the result."""
    jobs: Annotated[int, Field(ge=1, le=4096)] = 1
    """Runs that are evaluated at once, and whose memory is measured at once, each in its own process.
    They share `threads`. The device needs memory for all of them, and NVML must report memory by
    process. Training and latency always run one after another, with all threads."""

    def shared(self, jobs: int) -> "Compute":
        """The settings of one of `jobs` processes, with its share of the threads. More threads than
        cores take up to three times as long."""
        return replace(self, threads=max(1, self.threads // jobs))


@dataclass(frozen=True, config=_STRICT)
class Weights:
    """Start weights of one encoder, fetched once by their own stage."""

    encoder: Annotated[str, Field(pattern=r"^[\w.-]*$")]
    """Its name in segmentation-models-pytorch."""
    source: Literal["package", "hub", "file", "none"]
    """`package`: a pinned distribution; `hub`: ImageNet weights by the encoder's own loader; `file`:
    a checkpoint of a whole network that was trained elsewhere; `none`: random."""
    path: str | None = None
    """Path of the `file`."""


@dataclass(frozen=True, config=_STRICT)
class Source:
    """One prepared data set."""

    source: str
    """Module under data/ that knows how to download and prepare it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Checked by that module's `Settings`."""


@dataclass(frozen=True, config=_STRICT)
class Schedule:
    """Steps, batch and learning rate of one phase."""

    steps: PositiveInt
    """Optimiser steps; with `validate_every` the maximum."""
    learning_rate: NonNegativeFloat
    """At the first step; decays as (1 - step / steps) ** poly_power."""
    batch: PositiveInt
    """Images per step."""
    poly_steps: PositiveInt | None = None
    """The `steps` in the formula of the learning rate, for a training that ends earlier; null: its
    own `steps`."""
    drops: tuple[NonNegativeInt, ...] = ()
    """Steps at which the learning rate is divided by 10, instead of polynomial decay; none:
    polynomial decay."""


@dataclass(frozen=True, config=_STRICT)
class Training:
    """Settings of a training: phases, optimiser, learning rate and early stopping."""

    phases: dict[str, Schedule]
    """By the names of the method's phases; the method defines their order. Empty: the network has
    the model's `start` weights."""
    weight_decay: NonNegativeFloat = 5e-4
    """L2 penalty on all parameters, as in the official GLNet code."""
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    """`sgd` has a momentum of 0.9."""
    poly_power: float = 0.9
    least_rate: NonNegativeFloat = 0.0
    """Final value of the learning rate."""
    checkpoint_every: PositiveInt = 10
    """Steps between checkpoints, from which a killed training resumes."""
    validate_every: PositiveInt | None = None
    """Steps between validations (mIoU on val), after which a phase may stop early; it keeps the best
    weights. null: no validation, all steps, the last weights."""
    patience: PositiveInt = 5
    """Validations without a new best after which a phase stops."""
    recomputed: bool = False
    """Activation checkpointing: what is inside the network's blocks is computed again in the backward
    pass instead of kept. Takes less memory and about a third more time; same result."""
    compiled: bool = False
    """Whether `torch.compile` compiles the parts of the network. Needs a C++ compiler, on a GPU Triton
    too; its memory is not predicted, and results differ by rounding."""


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """One trained network, one checkpoint per seed."""

    dataset: str
    method: Annotated[str, AfterValidator(current_method)]
    """Folder with spec.py, model.py, training.py and inference.py, such as `baselines/isdnet`."""
    start: str
    """Key of the table `weights`."""
    spec: dict[str, Any]
    """Checked by the method's `Spec`."""
    training: Training
    seed: Seed = 0
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    """Instead of `seed`: the model is trained once per seed, with one checkpoint each. Every seed is
    evaluated; predicted labels, memory and latency are of the first."""

    @property
    def trainings(self) -> tuple["ModelConfig", ...]:
        """One configuration per training: one, or one per seed."""
        if self.seeds is None:
            return (self,)
        return tuple(replace(self, seed=seed, seeds=None) for seed in self.seeds)

    def settings(self) -> dict[str, Any]:
        """The settings that records keep, with either `seed` or `seeds`."""
        return {k: v for k, v in asdict(self).items() if k != ("seed" if self.seeds else "seeds")}


@dataclass(frozen=True, config=_STRICT)
class Metric:
    """A run's additional definition of mIoU, shown beside the suite's and the official one; all are
    computed from the same confusion matrix."""

    leave_out: tuple[str, ...] = ()
    """Classes that only the mean leaves out, for instance Inria's background."""
    unlabelled: Literal["left-out", "false-positives"] = "left-out"
    """How predictions on unlabelled pixels and on ignored classes count; GLNet's released code counts
    them as false positives."""
    absent: Literal["left-out", "zero"] = "left-out"
    """How a class that occurs in neither truth nor prediction counts; GLNet's released code: as 0."""


@dataclass(frozen=True, config=_STRICT)
class RunConfig:
    """A trained model with a strategy; one point of the figure."""

    model: str
    strategy: str
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's spec that this run overrides, for instance `overlap_px`."""
    published: str | None = None
    """`METHOD / inference` of the row in bench/published.csv that this run reproduces."""
    precision: Literal["fp32", "ieee", "bf16", "fp16"] = "fp32"
    """Of inference. `fp32` has TF32 in a GPU's convolutions, torch's default, and `ieee` has not; the
    others are by autocast: weights stay float32."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Of the weights, which the maps follow."""
    folded: bool = False
    """Whether batch norm is folded into the convolution before it; labels are the same up to rounding."""
    graphs: bool = False
    """Whether a GPU replays the network's calls (`bench.windows.cuda_graph`)."""
    metric: Metric | None = None
    """Of that row's mIoU, if it is neither the suite's nor the official one."""
    trained: bool = True
    """False: its model got a few steps, for memory and latency; the report shows no accuracy."""


@dataclass(frozen=True, config=_STRICT)
class Suite:
    """The content of params.yaml."""

    suite: Name
    """The suite's name, part of the path of its records and report."""
    machine: Name
    """Name of the machine that measures, part of the path of every measurement, because DVC does not
    track hardware."""
    datasets: dict[Name, Source]
    weights: dict[Name, Weights]
    models: dict[Name, ModelConfig]
    runs: dict[Name, RunConfig]
    compute: Compute = Compute()
    splits: tuple[Split, ...] = ("val", "test")
    """Splits that every run is evaluated on: `val` to select settings, `test` to report."""
    details: bool = False
    """Whether `evaluate` also counts what `bench.pipeline.details` defines; takes seconds an image of
    10 megapixels."""
    shared: dict[str, Any] = field(default_factory=dict)
    """YAML anchors for use in the tables; not read by the code."""


def strict(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """`kind(**values)` with every key and type checked: of numbers only a whole one is taken for
    another type, a float.

    Args:
        kind: a dataclass.
        values: as YAML gives them.
        where: their place for error messages, for instance `params.yaml: models.unet-patch.spec`.

    Raises:
        UserError: names the first wrong key with its full path, and what is allowed.
    """
    adapter, table = TypeAdapter(kind), dict(values)
    try:
        # As JSON first: of Python's values a strict check refuses lists for tuples as well.
        adapter.validate_json(json.dumps(table, skipkeys=True, default=str), strict=True)
        return adapter.validate_python(table)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error.errors())}.") from None


def first_problem(errors: Sequence[ErrorDetails]) -> str:
    """What pydantic found, as a clause: the first wrong key with its full path, and what is allowed."""
    # A misspelt key causes two errors, unknown and missing; report the unknown one.
    unknown = "unexpected_keyword_argument"
    first = min(errors, key=lambda found: found["type"] != unknown)
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    why = first["msg"].removeprefix("Value error, ").rstrip(".")
    what = {
        "missing": "is missing",
        unknown: "is unknown (a typo?)",
    }.get(first["type"], f"is {shortened(repr(first['input']))}: {why[:1].lower()}{why[1:]}")
    more = len(errors) - 1
    clause = f"the key {shortened(key)} {what}" if key else why  # none: settings that contradict
    return clause + (f"; {more} more follow" if more else "")


def read_suite(path: Path = PARAMS) -> Suite:
    """The suite in `path`, with keys, types and references checked."""
    try:
        values = parse_yaml(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(
            f"There is no {path} here: change to the project's root or copy one of suites/ to it."
        ) from None
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
    if "test" not in suite.splits:
        raise UserError(f"{path}: splits has no test, the split that results are reported of.")
    for name, run in suite.runs.items():
        _known(path, f"runs.{name}.model", run.model, suite.models)
    return suite


def pick(table: Mapping[str, T], name: str, kind: str) -> T:
    """`table[name]`, or a UserError that lists the keys."""
    if name not in table:
        raise UserError(f"{PARAMS} has no {kind} {name!r}; it has {', '.join(table) or 'none'}.")
    return table[name]


def open_source(suite: Suite, name: str) -> tuple[ModuleType, Any, Path]:
    """The source of the data set `name`.

    Returns:
        its module under data/ (with `Settings`, `about`, `download`, and either `survey` or
        `pairs`), its checked settings, and the folder of its raw files.
    """
    line = pick(suite.datasets, name, "data set")
    found = line.source.isidentifier() and importlib.util.find_spec(f"data.{line.source}")
    module = importlib.import_module(f"data.{line.source}") if found else None
    if module is None or not hasattr(module, "about"):
        raise UserError(
            f"params.yaml: datasets.{name}.source is {line.source!r}, but there is no such source "
            "under data/."
        )
    where = f"params.yaml: datasets.{name}.settings"
    settings = strict(module.Settings, line.settings, where)
    try:
        module.about(settings)
    except UserError as error:  # they contradict one another
        raise UserError(f"{where}: {error}") from None
    return module, settings, RAW / name


def checkpoint_of(name: str, model: ModelConfig, seed: int) -> Path:
    """`checkpoints/NAME.pt`; for a model with several seeds `checkpoints/NAME.pt/SEED.pt`, because
    the pipeline has one output per model, which may be a folder."""
    path = CHECKPOINTS / f"{name}.pt"
    return path / f"{seed}.pt" if model.seeds else path


def _known(path: Path, key: str, name: str, table: Mapping[str, object]) -> None:
    if name not in table:
        raise UserError(
            f"{path}: {key} is {name!r}, which no line defines; there is {', '.join(table)}."
        )
