"""Questions about memory: a run and the conditions to predict it for, and the answers."""

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from bench import record
from bench.config import PARAMS, ModelConfig, RunConfig, Schedule, Suite, Training, read_suite
from bench.errors import UserError
from bench.memory import (
    GpuOverhead,
    Prediction,
    gpu_overhead_of,
    largest,
    predict_run,
    predict_steps,
)
from bench.method import Method
from bench.run import Run, resolve

PAPER = Path("suites/deepglobe.yaml")
CLASSES = 7
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUANTITIES = {
    "image": (32, 32768, " px"),
    "patch": (32, 8192, " px"),
    "sub_batch": (1, 1024, ""),
    "batch": (1, 512, ""),
}
"""What a search can look for: step, upper limit and unit. Sides are multiples of the encoders'
stride, to which networks pad."""


@dataclass(frozen=True)
class Question:
    """A run, and the conditions to predict its memory for."""

    run: Run
    size: tuple[int, int]
    """(H, W) of the image in pixels."""
    training: bool = False
    precision: str = "fp32"
    device: str = "cuda"
    gpu: str = ""
    """The GPU's name."""
    batch: int | None = None
    """Images per training step; None: the model's own."""


@dataclass(frozen=True)
class Answer:
    """Predicted memory of one image, or of a step of one phase."""

    phase: str
    prediction: Prediction
    shown_bytes: int
    """On a GPU the process total: reserved, context and workspaces; on the CPU the tensors."""


def find(name: str, path: Path | None, strategy: str | None) -> tuple[ModelConfig, RunConfig]:
    """The model and run of a name: a run of the suite, else a network at the paper's settings.

    Raises:
        UserError: there is neither; the message lists close matches.
    """
    rivals = importlib.import_module("baselines.generic.spec").Network
    networks = {*get_args(rivals), "glnet"}
    places = [path] if path else [PAPER] if name in networks else [PARAMS, PAPER]
    lines = [
        (key, suite.models[run.model], run)
        for suite in (read_suite(place) for place in places if path or place.exists())
        for key, run in suite.runs.items()
    ]
    if not (name in networks and strategy):
        for key, model, run in lines:
            if key == name:
                return model, replace(run, strategy=strategy or run.strategy)
    if name in networks:
        return _network(name, [(model, run) for _, model, run in lines], strategy)
    known = sorted({*networks, *(key for key, _, _ in lines)})
    near = difflib.get_close_matches(name, known, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(known)}."
    raise UserError(f"There is no method or run {name!r}; {hint}")


def named(
    name: str,
    path: Path | None,
    strategy: str | None,
    settings: Mapping[str, Any],
    classes: int,
) -> Run:
    """The run of a name, as `find` finds it, with some fields of its spec overridden."""
    model, config = find(name, path, strategy)
    return resolve(name, config, model, settings, classes)


def suite_named(name: str | None) -> Suite:
    """A suite by its name or file; by default that of params.yaml."""
    if name is None:
        return read_suite()
    own = Path("suites", f"{name}.yaml")
    return read_suite(own if own.is_file() else Path(name))


def _network(
    name: str, lines: Sequence[tuple[ModelConfig, RunConfig]], strategy: str | None
) -> tuple[ModelConfig, RunConfig]:
    """A network as a suite's lines have it, with the strategy, else at default settings."""
    glnet = name == "glnet"
    wanted = strategy or ("collaborative" if glnet else "patch")
    own = [
        (model, run)
        for model, run in lines
        if name in (model.spec.get("network"), model.method.rpartition("/")[2])
        and model.spec.get("encoder") != "mobilenet_v2"
    ]
    if own:
        model, run = next((line for line in own if line[1].strategy == wanted), own[0])
        return model, replace(run, strategy=wanted)
    phases = ("global", "global-to-local", "local-to-global") if glnet else ("train",)
    schedule = Schedule(steps=1, learning_rate=1e-4, batch=6)
    training = Training(phases=dict.fromkeys(phases, schedule))
    spec = {} if glnet else {"network": name, "train_on": "patch"}
    method = "glnet" if glnet else "baselines/generic"
    return ModelConfig("", method, "", spec, training), RunConfig(name, wanted)


def lowered(method: Method, precision: str, training: bool) -> Method:
    """The method in another precision.

    In inference weights have that type, and inputs of layers with weights are cast to it. In
    training the forward pass is autocast, as in `bench.pipeline.train`; weights stay float32."""
    dtype = PRECISIONS[precision]
    if dtype == torch.float32:
        return method

    def cast(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        kept = next(module.parameters(recurse=False)).dtype
        return tuple(
            one.to(kept) if isinstance(one, torch.Tensor) and one.is_floating_point() else one
            for one in args
        )

    def build(spec: Any, classes: int) -> nn.Module:
        network = method.build(spec, classes).to(dtype)
        for module in network.modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(cast)
        return network

    def backward(network: Any, views: Any, *rest: Any) -> float:
        # The step is traced on fake CPU tensors, whatever device they represent.
        with torch.autocast("cpu", dtype=dtype):
            return method.backward(network, views, *rest)

    return replace(method, backward=backward) if training else replace(method, build=build)


def answer(question: Question) -> list[Answer]:
    """One answer for inference, or one for each phase of training."""
    run, device = question.run, question.device
    method = lowered(run.method, question.precision, question.training)
    model = replace(run.model, given_method=method)
    if question.training:
        phases = model.config.training.phases
        batch = {name: question.batch or schedule.batch for name, schedule in phases.items()}
        found = predict_steps(model, question.size, batch, device)
    else:
        found = {"inference": predict_run(replace(run, model=model), question.size, device)}
    overhead = known_overhead(question.gpu)
    return [
        Answer(phase, one, one.process_bytes(question.gpu, overhead))
        for phase, one in found.items()
    ]


def known_overhead(name: str) -> GpuOverhead:
    """The memory overhead of the GPU `name`: from this project's records, else assumed."""
    return gpu_overhead_of(name, _measured(record.RESULTS.resolve()) if name else ())


@cache
def _measured(folder: Path) -> list[Mapping[str, Any]]:
    """The values of all records of measurements."""
    found = [record.read(path) for path in sorted(folder.glob("*/measure/*/*.json"))]
    return [one.values for one in found if one.status == "ok"]


def runs_of(suite: Suite, training: bool, settings: Mapping[str, Any], classes: int) -> list[Run]:
    """All runs of a suite; for training one run per model."""
    runs = suite.runs
    if training:
        runs = {run.model: run for run in reversed(suite.runs.values())}
    return [
        resolve(name, run, suite.models[run.model], settings, classes) for name, run in runs.items()
    ]


def needs(question: Question) -> int:
    """Bytes that must fit: the process total on a GPU; in training that of the largest phase."""
    return max(one.shown_bytes for one in answer(question))


def varied(question: Question, of: str, value: int) -> Question:
    """The question with another value of one quantity.

    Raises:
        UserError: the run has no such quantity.
    """
    if of == "image":
        return replace(question, size=(value, value))
    if of == "batch":
        if not question.training:
            raise UserError("A batch is of training: ask with --phase training.")
        return replace(question, batch=value)
    run = question.run
    own = ("patch_px", "size_px") if of == "patch" else (of,)
    key = next((name for name in own if hasattr(run.spec, name)), None)
    cut = run.config.strategy not in ("downsample", "whole", "global")
    if key is None or (not cut and not question.training):
        raise UserError(
            f"{run.name} with strategy {run.config.strategy} has no {of}: "
            "take a strategy that cuts patches."
        )
    return replace(question, run=run.varied(**{key: value}))


def largest_fitting(
    question: Question,
    of: str,
    budget: int,
    first: int,
    most: int,
    step: int = 1,
    tried: Callable[[], object] = lambda: None,
) -> tuple[int, int, int | None]:
    """As `bench.memory.largest`, for the multiples of `step` of a quantity; `tried` is called after
    each estimate."""

    def bytes_at(number: int) -> int:
        found = needs(varied(question, of, number * step))
        tried()
        return found

    return largest(bytes_at, budget, first, most)
