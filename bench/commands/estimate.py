"""`glnet-bench estimate METHOD ...`: how much memory a method needs, and what fits into a budget.

Computed on fake tensors, without weights, data or a device."""

import argparse
import difflib
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd

from bench import cli, record
from bench.config import (
    PARAMS,
    ModelConfig,
    RunConfig,
    Schedule,
    Suite,
    Training,
    parse_bytes,
    parse_setting,
    read_suite,
)
from bench.errors import UserError
from bench.method import Method

if TYPE_CHECKING:
    from bench.memory import Prediction
    from bench.memory.tracker import Category, Event
    from bench.run import Run

PAPER = Path("suites/deepglobe.yaml")
CLASSES = 7
MIB = 2**20
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
STEPS = {"image": 32, "patch": 32, "sub_batch": 1, "batch": 1}
"""Step of each quantity; sides are multiples of the encoders' stride, to which networks pad."""
MOST = {"image": 32768, "patch": 8192, "sub_batch": 1024, "batch": 512}
"""Upper limit of a search."""

COLOURS = {
    "weights": "#332288",
    "optimiser state": "#999933",
    "inputs": "#6b7480",
    "activations": "#56b4e9",
    "gradients": "#009e73",
    "temporaries": "#d55e00",
}
"""By category, from the bottom of the stack to its top."""


@dataclass(frozen=True)
class Question:
    """A run, and the conditions to predict its memory for."""

    run: "Run"
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
    prediction: "Prediction"
    reserved_bytes: int | None
    """None on the CPU, whose allocator does not cache."""
    shown_bytes: int
    """On a GPU the process total: reserved, context and workspaces; on the CPU the tensors."""
    events: "Sequence[Event]"
    categories: "Sequence[Category]"
    """Of each event's block."""


def command(parser: argparse.ArgumentParser) -> None:
    """How much memory does METHOD need, and what fits into a budget? Without weights or a GPU."""
    parser.add_argument("method", metavar="METHOD", nargs="?", help="a network, or a run's key")
    parser.add_argument("--size", default="2448x2448", help="H x W in px (default: 2448x2448)")
    parser.add_argument(
        "--strategy", help="how the image is processed (default: patch; glnet: collaborative)"
    )
    parser.add_argument("--phase", choices=("inference", "training"), default="inference")
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="bf16, fp16: in inference weights and activations are of that type (the suite's own "
        "inference is fp32); in training bf16 is autocast, as precision bf16-mixed does: weights, "
        "gradients and Adam's state stay fp32. The suite does not train in fp16",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--card", default="", help="the GPU's name, for the context's size")
    parser.add_argument("--batch", type=int, help="images per training step (default: the suite's)")
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--suite", type=Path, help="look up METHOD only in this suite")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="spec fields")
    parser.add_argument("--fit", metavar="BUDGET", help="for instance 2GiB: what fits?")
    parser.add_argument("--of", choices=tuple(STEPS), help="what --fit looks for (default: image)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="memory over time by category")
    parser.set_defaults(work=work)


def work(arguments: argparse.Namespace) -> None:
    """Print the answer."""
    cli.require_root()
    size, settings = parse_size(arguments.size), dict(map(parse_setting, arguments.set))
    if arguments.phase == "training" and arguments.precision == "fp16":
        raise UserError("The suite does not train in fp16: ask for bf16, which takes as much.")
    budget = parse_bytes(arguments.fit, "--fit") if arguments.fit else None
    for name in ("batch", "classes"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name} is {value}: give a whole number from 1.")
    if arguments.of and budget is None:
        raise UserError(
            "--of says what --fit looks for: give a budget too, for instance --fit 2GiB."
        )
    if arguments.plot and arguments.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot is {arguments.plot}: give a name that ends in .png, .svg or .pdf.")
    if arguments.plot and budget is not None:
        raise UserError("--plot draws one estimate: leave --fit out.")
    shared = {
        "size": size,
        "training": arguments.phase == "training",
        "precision": arguments.precision,
        "device": arguments.device,
        "gpu": arguments.card,
        "batch": arguments.batch,
    }
    if arguments.method is None:
        if budget is None or arguments.of:
            raise UserError("Name a METHOD, or give --fit BUDGET without --of for all methods.")
        suite = read_suite(arguments.suite or PAPER)
        runs = runs_of(suite, shared["training"], settings, arguments.classes)
        print(which([Question(run, **shared) for run in runs], budget).to_string(index=False))
        return
    from bench.run import resolve

    model, config = find(arguments.method, arguments.suite, arguments.strategy)
    run = resolve(arguments.method, config, model, settings, arguments.classes)
    question = Question(run, **shared)
    if budget is not None:
        print(fit(question, arguments.of or "image", budget))
        return
    answers = answer(question)
    print(table(question, answers).to_string())
    if arguments.plot:
        worst = max(answers, key=lambda one: one.prediction.device_bytes)
        draw(question, worst, arguments.plot)
        print(arguments.plot)


def parse_size(text: str) -> tuple[int, int]:
    """`2448x2448` or `5000` -> (H, W) px."""
    found = re.fullmatch(r"(\d+)(?:\s*[x×]\s*(\d+))?", text.strip().lower())
    sides = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if min(sides) < 1:
        raise UserError(f"--size is {text!r}: give height x width in px, for instance 2448x2448.")
    return sides


def find(name: str, path: Path | None, strategy: str | None) -> tuple[ModelConfig, RunConfig]:
    """The model and run of a name: a run of the suite, else a network at the paper's settings.

    Raises:
        UserError: there is neither; the message lists close matches.
    """
    rivals = importlib.import_module("baselines.generic.spec").Network
    networks = {*get_args(rivals), "glnet"}
    places = [path] if path else [PAPER] if name in networks else [PARAMS, PAPER]
    suites = [read_suite(place) for place in places if path or place.exists()]
    for suite in suites:
        if name in suite.runs and not (name in networks and strategy):
            run = suite.runs[name]
            return suite.models[run.model], replace(run, strategy=strategy or run.strategy)
    if name in networks:
        return _network(name, suites, strategy)
    known = sorted({*networks, *(key for suite in suites for key in suite.runs)})
    near = difflib.get_close_matches(name, known, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(known)}."
    raise UserError(f"There is no method or run {name!r}; {hint}")


def _network(
    name: str, suites: Sequence[Suite], strategy: str | None
) -> tuple[ModelConfig, RunConfig]:
    wanted = strategy or ("collaborative" if name == "glnet" else "patch")
    lines = [
        (suite.models[run.model], run)
        for suite in suites
        for run in suite.runs.values()
        if name
        in (
            suite.models[run.model].spec.get("network"),
            suite.models[run.model].method.rpartition("/")[2],
        )
        and suite.models[run.model].spec.get("encoder") != "mobilenet_v2"
    ]
    for model, run in lines:
        if run.strategy == wanted:
            return model, run
    if lines:
        return lines[0][0], replace(lines[0][1], strategy=wanted)
    method = "glnet" if name == "glnet" else "baselines/generic"
    spec = {} if name == "glnet" else {"network": name, "train_on": "patch"}
    schedule = Schedule(steps=1, learning_rate=1e-4, batch=6)
    phases = ("global", "global-to-local", "local-to-global") if name == "glnet" else ("train",)
    training = Training(phases=dict.fromkeys(phases, schedule))
    return ModelConfig("", method, "", spec, training), RunConfig(name, wanted)


def lowered(method: Method, precision: str, training: bool) -> Method:
    """The method in another precision.

    In inference weights have that type, and inputs of layers with weights are cast to it. In
    training the forward pass is autocast, as in `bench.pipeline.train`; weights stay float32."""
    import torch
    from torch import nn

    dtype: torch.dtype = getattr(torch, PRECISIONS[precision])
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
    from bench.memory import blas_bytes, has_tf32, trace_memory, trace_training

    run, device = question.run, question.device
    method = lowered(run.method, question.precision, question.training)
    model = replace(run.model, given_method=method)
    tf32 = device == "cuda" and has_tf32(question.gpu)
    if question.training:
        phases = model.config.training.phases
        batch = {name: question.batch or schedule.batch for name, schedule in phases.items()}
        found = trace_training(model, question.size, batch, device)
    else:
        found = {"inference": trace_memory(replace(run, model=model), question.size, device)}
    overhead = known_overhead(question.gpu)
    beside = overhead.context_bytes + overhead.workspace_bytes
    handles = (2 if question.training else 1) * blas_bytes(question.gpu)

    def reserved(one: Any) -> int | None:
        held = one.tf32_reserved_bytes if tf32 else one.reserved_bytes
        return None if held is None else held + handles

    return [
        Answer(
            phase=phase,
            prediction=trace.prediction,
            reserved_bytes=(held := reserved(trace.prediction)),
            shown_bytes=trace.prediction.device_bytes if held is None else held + beside,
            events=trace.events,
            categories=trace.categories,
        )
        for phase, trace in found.items()
    ]


def known_overhead(name: str) -> Any:
    """The memory overhead of the GPU `name`: from this project's records, else assumed."""
    from bench.memory import gpu_overhead_of

    found = [record.read(path) for path in sorted(record.RESULTS.glob("*/measure/*/*.json"))]
    return gpu_overhead_of(name, [one.values for one in found if one.status == "ok"])


def table(question: Question, answers: Sequence[Answer]) -> pd.DataFrame:
    """A column for each phase; sizes in MiB."""
    overhead = known_overhead(question.gpu)
    known = "measured" if overhead.measured else "assumed"
    columns = {}
    for one in answers:
        rows = {"device: tensors": _mib(one.prediction.device_bytes)}
        if one.reserved_bytes is not None:
            rows["device: reserved by the allocator"] = _mib(one.reserved_bytes)
            context = f"device: with the context ({_mib(overhead.context_bytes)}, {known})"
            rows[context] = _mib(one.shown_bytes)
        rows["host"] = _mib(one.prediction.host_bytes)
        rows |= {f"peak: {name}": _mib(size) for name, size in one.prediction.by_category.items()}
        rows["operator at the peak"] = one.prediction.at
        rows["module at the peak"] = one.prediction.module or "outside of all modules"
        columns[one.phase] = rows
    title = f"{question.run.name} {question.run.config.strategy} {question.size[0]}x{question.size[1]} px"
    order = list(dict.fromkeys(row for rows in columns.values() for row in rows))
    last = [row for row in order if row.endswith("at the peak")]
    frame = pd.DataFrame(columns, index=[*(row for row in order if row not in last), *last])
    return frame.fillna("-").rename_axis(f"{title}, {question.precision}, {question.device}")


def _mib(count: int) -> str:
    return f"{count / MIB:.1f} MiB"


def timeline(answer: Answer) -> tuple[pd.DataFrame, int]:
    """Live bytes by category (columns) after each allocation or free (rows), and the row of the
    peak. Repeated calls appear only a few times."""
    sizes = [one.bytes for one in answer.events]
    changes = pd.DataFrame({"category": answer.categories, "bytes": sizes})
    wide = changes.pivot(columns="category", values="bytes").fillna(0).cumsum()
    wide = wide[[name for name in COLOURS if name in wide]]
    return wide, int(wide.sum(axis=1).to_numpy().argmax())


def draw(question: Question, peak: Answer, path: Path) -> None:
    """Draw memory over time, stacked by category, with the operator and module of the peak."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from bench.report.figures.palette import INK, RC

    wide, at = timeline(peak)
    mib = wide / MIB
    with mpl.rc_context(RC):
        figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
        colours = [COLOURS[str(name)] for name in mib.columns]
        axes.stackplot(
            range(len(mib)),
            mib.to_numpy().T,
            labels=list(map(str, mib.columns)),
            colors=colours,
            step="post",
        )
        top = float(mib.sum(axis=1).iloc[at])
        axes.plot([at], [top], "v", color=INK, label="peak")
        axes.set_ylim(0, 1.08 * top)
        axes.set_xlabel("allocations and frees, in order (most repeats left out)")
        axes.set_ylabel("live tensors, MiB")
        height, width = question.size
        axes.set_title(
            f"{question.run.name} · {question.run.config.strategy} · {peak.phase} · {height} × {width} px · "
            f"{question.precision} · {question.device}\n"
            f"peak {top:.1f} MiB: {peak.prediction.at}, {peak.prediction.module or 'outside of all modules'}",
            fontsize=9,
        )
        figure.legend(loc="outside lower center", ncols=7, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def runs_of(suite: Suite, training: bool, settings: Mapping[str, Any], classes: int) -> "list[Run]":
    """All runs of a suite; for training one run per model."""
    from bench.run import resolve

    runs = suite.runs
    if training:
        runs = {run.model: run for run in reversed(suite.runs.values())}
    return [
        resolve(name, run, suite.models[run.model], settings, classes) for name, run in runs.items()
    ]


def which(questions: Sequence[Question], budget: int) -> pd.DataFrame:
    """Runs by memory, and whether they fit."""
    found = [
        (needs(question), question.run.name)
        for question in cli.with_progress(questions, len(questions), "estimate", "run")
    ]
    return pd.DataFrame(
        [
            {"run": name, "needs": _mib(needed), "fits": "yes" if needed <= budget else "no"}
            for needed, name in sorted(found)
        ]
    )


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
    own = {"patch": ("patch_px", "size_px")}.get(of, (of,))
    key = next((name for name in own if hasattr(run.spec, name)), None)
    cut = run.config.strategy not in ("downsample", "whole", "global")
    if key is None or (not cut and not question.training):
        raise UserError(
            f"{run.name} with strategy {run.config.strategy} has no {of}: "
            "take a strategy that cuts patches."
        )
    return replace(question, run=run.varied(**{key: value}))


def fit(question: Question, of: str, budget: int) -> str:
    """One sentence: the largest value that fits, and the bytes of the next one."""
    step, most = STEPS[of], MOST[of]
    if of == "patch":
        most = min(most, -(-max(question.size) // step) * step)
        # A patch must be larger than the overlap with its neighbour.
        step_first = getattr(question.run.spec, "overlap_px", 0) // step + 1
    else:
        step_first = 1
    bar = cli.progress(0, f"largest {of}", "estimate")

    def bytes_at(number: int) -> int:
        found = needs(varied(question, of, number * step))
        bar.update()
        return found

    value, needed, over = largest(bytes_at, budget, step_first, most // step)
    bar.close()
    unit = " px" if of in ("image", "patch") else ""
    least = f"{step_first * step}{unit}"
    if value == 0:
        raise UserError(
            f"Nothing fits into {_mib(budget)}: {question.run.name} needs {_mib(needed)} "
            f"with the smallest {of} that is tried, {least}."
        )
    said = f"{question.run.name}: the largest {of} in {_mib(budget)} is {value * step}{unit}"
    if over is None:
        return f"{said}, the largest that is tried; it needs {_mib(needed)}."
    return (
        f"{said}, which needs {_mib(needed)}; {(value + 1) * step}{unit} would need {_mib(over)}."
    )


def largest(
    bytes_at: Callable[[int], int], budget: int, first: int, most: int
) -> tuple[int, int, int | None]:
    """The largest integer from `first` to `most` whose bytes are within the budget, its bytes, and
    those of the next one (None past `most`); (0, bytes of `first`, None) if nothing fits.

    Doubles until a value does not fit, then alternates between linear interpolation and bisection,
    because bytes grow almost linearly."""
    seen: dict[int, int] = {}

    def at(number: int) -> int:
        if number not in seen:
            seen[number] = bytes_at(number)
        return seen[number]

    if at(first) > budget:
        return 0, at(first), None
    below, above = first, first
    while at(above) <= budget:
        below = above
        if above >= most:
            return below, at(below), None
        above = min(2 * above, most)
    straight = True
    while above - below > 1:
        middle = (below + above) // 2
        if straight:
            share = (budget - at(below)) / (at(above) - at(below))
            middle = below + round(share * (above - below))
        middle = min(max(middle, below + 1), above - 1)
        straight = not straight
        if at(middle) <= budget:
            below = middle
        else:
            above = middle
    return below, at(below), at(above)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="bench.commands.estimate", description=command.__doc__)
    command(parser)
    cli.report_errors(lambda: work(parser.parse_args()))
