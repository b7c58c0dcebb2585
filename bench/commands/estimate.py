"""`glnet-bench estimate METHOD ...`: how much memory a method or any network needs, and what fits into
a budget.

Computed on fake tensors, without weights, data or a device."""

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from bench import cli
from bench.commands.factory import MIXED, OPTIMIZERS, is_factory, predict_factory
from bench.commands.question import (
    CLASSES,
    PAPER,
    PRECISIONS,
    QUANTITIES,
    Answer,
    Question,
    answer,
    known_overhead,
    largest_fitting,
    named,
    runs_of,
)
from bench.config import read_suite
from bench.errors import UserError
from bench.parallel import parallel_map

MIB, GIB = 2**20, 2**30
MOST_CLASSES = 254
"""Labels are bytes, and 255 is unlabelled."""


def command(parser: argparse.ArgumentParser) -> None:
    """How much memory does METHOD need, and what fits into a budget? Without weights or a GPU."""
    parser.add_argument(
        "method",
        metavar="METHOD",
        nargs="?",
        help="a network, a run's key, or any torch module as package.module:factory",
    )
    parser.add_argument("--size", default="2448x2448", help="H x W in px (default: 2448x2448)")
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="SHAPE",
        help="inputs of package.module:factory, for instance 8x3x1024x1024 or 8x128:int64",
    )
    parser.add_argument(
        "--train", choices=tuple(OPTIMIZERS), help="a training step of package.module:factory"
    )
    parser.add_argument(
        "--strategy", help="how the image is processed (default: patch; glnet: collaborative)"
    )
    parser.add_argument("--phase", choices=("inference", "training"), default="inference")
    parser.add_argument(
        "--precision",
        choices=(*PRECISIONS, *MIXED),
        default="fp32",
        help="of package.module:factory the -mixed ones are autocast, and 16-mixed scales the loss. "
        "Of a method bf16, fp16: in inference weights and activations are of that type (the suite's own "
        "inference is fp32); in training bf16 is autocast, as precision bf16-mixed does: weights, "
        "gradients and Adam's state stay fp32. The suite does not train in fp16",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--card", default="", help="the GPU's name, for the context's size")
    parser.add_argument("--batch", type=int, help="images per training step (default: the suite's)")
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--suite", type=Path, help="look up METHOD only in this suite")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="spec fields; arguments of the factory",
    )
    parser.add_argument("--fit", metavar="BUDGET", help="for instance 2GiB: what fits?")
    parser.add_argument(
        "--of", choices=tuple(QUANTITIES), help="what --fit looks for (default: image)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="memory over time by category")
    parser.set_defaults(work=work, in_root=True)


def work(arguments: argparse.Namespace) -> None:
    """Print the answer."""
    settings = dict(map(cli.parse_setting, arguments.set))
    budget = cli.parse_bytes(arguments.fit, "--fit") if arguments.fit else None
    _check(arguments)
    if is_factory(arguments.method):
        found = predict_factory(arguments, settings)
        rows = figures(found, arguments.device, arguments.card)
        if budget is not None:
            fits = found.prediction.fits(budget, arguments.card, known_overhead(arguments.card))
            rows[f"fits into {mib(budget)}"] = "yes" if fits else "no"
        title = f"{arguments.method} {' '.join(arguments.input)}, {arguments.precision}"
        title += f", {arguments.device}"
        print(pd.DataFrame({found.phase: rows}).rename_axis(title).to_string())
        for doubt in found.prediction.doubts:
            print(f"doubt: {doubt}.")
        if arguments.plot:
            draw(title, found, arguments.plot)
            print(arguments.plot)
        return
    cli.require_root()
    ask = partial(
        Question,
        size=parse_size(arguments.size),
        training=arguments.phase == "training",
        precision=arguments.precision,
        device=arguments.device,
        gpu=arguments.card,
        batch=arguments.batch,
    )
    if arguments.method is None:
        if budget is None or arguments.of:
            raise UserError("Name a METHOD, or give --fit BUDGET without --of for all methods.")
        suite = read_suite(arguments.suite or PAPER)
        runs = runs_of(suite, arguments.phase == "training", settings, arguments.classes)
        print(which([ask(run) for run in runs], budget).to_string(index=False))
        return
    place = arguments.suite, arguments.strategy
    question = ask(named(arguments.method, *place, settings, arguments.classes))
    if budget is not None:
        print(fit(question, arguments.of or "image", budget))
        return
    answers = answer(question)
    print(table(question, answers).to_string())
    if arguments.plot:
        worst = max(answers, key=lambda one: one.prediction.device_bytes)
        height, width = question.size
        strategy = f"{question.run.name} · {question.run.config.strategy} · {worst.phase}"
        about = f"{height} × {width} px · {question.precision} · {question.device}"
        draw(f"{strategy} · {about}", worst, arguments.plot)
        print(arguments.plot)


def _check(arguments: argparse.Namespace) -> None:
    """Raise a UserError for options that do not go together, or have no such value."""
    if is_factory(arguments.method):
        others = ("strategy", "batch", "suite", "of")
        if wrong := next((name for name in others if getattr(arguments, name)), None):
            raise UserError(f"--{wrong} is of the suite's methods: leave it out.")
        if not arguments.input:
            raise UserError("Give the shape of its inputs, for instance --input 8x3x512x512.")
    elif arguments.input or arguments.train or arguments.precision in MIXED:
        raise UserError(
            "--input, --train and -mixed precisions are of any torch module: name it as "
            "package.module:factory, for instance torchvision.models:resnet50."
        )
    elif arguments.phase == "training" and arguments.precision == "fp16":
        raise UserError("The suite does not train in fp16: ask for bf16, which takes as much.")
    for name, most in (("batch", 2**20), ("classes", MOST_CLASSES)):
        if (value := getattr(arguments, name)) is not None and not 1 <= value <= most:
            raise UserError(f"--{name} is {value}: give a whole number from 1 to {most}.")
    if arguments.of and not arguments.fit:
        raise UserError(
            "--of says what --fit looks for: give a budget too, for instance --fit 2GiB."
        )
    if arguments.plot and arguments.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot is {arguments.plot}: give a name that ends in .png, .svg or .pdf.")
    if arguments.plot and arguments.fit and not is_factory(arguments.method):
        raise UserError("--plot draws one estimate: leave --fit out.")


def parse_size(text: str) -> tuple[int, int]:
    """`2448x2448` or `5000` -> (H, W) px."""
    found = re.fullmatch(r"(\d{1,7})(?:\s*[x×]\s*(\d{1,7}))?", text.strip().lower())
    sides = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if min(sides) < 1:
        raise UserError(f"--size is {text!r}: give height x width in px, for instance 2448x2448.")
    return sides


def table(question: Question, answers: Sequence[Answer]) -> pd.DataFrame:
    """A column for each phase; sizes in MiB."""
    columns = {one.phase: figures(one, question.device, question.gpu) for one in answers}
    frame = pd.DataFrame(columns)
    frame = frame.loc[sorted(frame.index, key=lambda row: row.endswith("at the peak"))]
    run, (height, width) = question.run, question.size
    title = f"{run.name} {run.config.strategy} {height}x{width} px"
    return frame.fillna("-").rename_axis(f"{title}, {question.precision}, {question.device}")


def figures(answer: Answer, device: str, gpu: str) -> dict[str, str]:
    """Rows of a table."""
    prediction = answer.prediction
    rows = {"device: tensors": mib(prediction.device_bytes)}
    if device == "cuda":
        overhead = known_overhead(gpu)
        known = "measured" if overhead.measured else "assumed"
        rows["device: reserved by the allocator"] = mib(prediction.reserved_on(gpu))
        context = f"device: with the context ({mib(overhead.context_bytes)}, {known})"
        rows[context] = mib(answer.shown_bytes)
    rows["host"] = mib(prediction.host_bytes)
    rows |= {f"peak: {name}": mib(size) for name, size in prediction.by_category.items()}
    rows["operator at the peak"] = prediction.at
    rows["module at the peak"] = prediction.module or "outside of all modules"
    return rows


def mib(count: int) -> str:
    """A number of bytes in MiB, with its unit."""
    return f"{count / MIB:.1f} MiB"


def timeline(answer: Answer) -> tuple[pd.DataFrame, int]:
    """Live bytes by category (columns) after each allocation or free (rows), and the row of the
    peak. Repeated calls appear only a few times."""
    found = answer.prediction
    alive = found.timeline(moments=len(found.events))["bytes"]
    wide = pd.DataFrame(alive)
    return wide, int(wide.sum(axis=1).to_numpy().argmax())


def draw(title: str, peak: Answer, path: Path) -> None:
    """Draw memory over time, stacked by category, with the operator and module of the peak."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from bench.report.figures.palette import CATEGORIES, INK, RC

    wide, at = timeline(peak)
    mib = wide[[name for name in CATEGORIES if name in wide]] / MIB
    top = float(mib.sum(axis=1).iloc[at])
    with mpl.rc_context(RC):
        figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
        axes.stackplot(
            range(len(mib)),
            mib.to_numpy().T,
            labels=list(map(str, mib.columns)),
            colors=[CATEGORIES[str(name)] for name in mib.columns],
            step="post",
        )
        axes.plot([at], [top], "v", color=INK, label="peak")
        axes.set(
            ylim=(0, 1.08 * top),
            xlabel="allocations and frees, in order (most repeats left out)",
            ylabel="live tensors, MiB",
        )
        axes.set_title(
            f"{title}\npeak {top:.1f} MiB: {peak.prediction.at}, {peak.prediction.module}",
            fontsize=9,
        )
        figure.legend(loc="outside lower center", ncols=7, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def with_answers(questions: Sequence[Question]) -> list[Answer]:
    """The answer that needs most of each question, on all cores and with a progress bar."""
    return parallel_map(_largest_answer, [(one,) for one in questions], "estimate", "run")


def _largest_answer(question: Question) -> Answer:
    return max(answer(question), key=lambda one: one.shown_bytes)


def which(questions: Sequence[Question], budget: int) -> pd.DataFrame:
    """Runs by memory, and whether they fit."""
    pairs = zip(with_answers(questions), questions, strict=True)
    found = sorted((one.shown_bytes, question.run.name) for one, question in pairs)
    return pd.DataFrame(
        [
            {"run": name, "needs": mib(needed), "fits": "yes" if needed <= budget else "no"}
            for needed, name in found
        ]
    )


def fit(question: Question, of: str, budget: int) -> str:
    """One sentence: the largest value that fits, and the bytes of the next one."""
    step, most, unit = QUANTITIES[of]
    first = 1
    if of == "patch":
        most = min(most, -(-max(question.size) // step) * step)
        # A patch must be larger than the overlap with its neighbour.
        first += getattr(question.run.spec, "overlap_px", 0) // step
    bar = cli.progress(0, f"largest {of}", "estimate")
    value, needed, over = largest_fitting(
        question, of, budget, first, most // step, step, bar.update
    )
    bar.close()
    if value == 0:
        raise UserError(
            f"Nothing fits into {mib(budget)}: {question.run.name} needs {mib(needed)} "
            f"with the smallest {of} that is tried, {first * step}{unit}."
        )
    said = f"{question.run.name}: the largest {of} in {mib(budget)} is {value * step}{unit}"
    if over is None:
        return f"{said}, the largest that is tried; it needs {mib(needed)}."
    return f"{said}, which needs {mib(needed)}; {(value + 1) * step}{unit} would need {mib(over)}."
