"""`glnet-bench choose --size HxW --memory BUDGET`: which run of a suite to use, by its records and by
predicted memory."""

import argparse
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from bench import cli
from bench.commands.estimate import GIB, mib, parse_size, with_answers
from bench.commands.question import (
    CLASSES,
    Answer,
    Question,
    known_overhead,
    largest_fitting,
    runs_of,
    suite_named,
    varied,
)
from bench.errors import UserError
from bench.report import bootstrap
from bench.report.load_records import Entry, load_records, median


@dataclass(frozen=True)
class Choice:
    """A run whose accuracy is recorded, and what it needs at the asked size."""

    name: str
    """Of the run; of runs that differ in their seed alone, what their names share."""
    question: Question
    miou: bootstrap.Interval
    needed: int
    """Bytes: the process total on a GPU, else the tensors."""
    seconds: float | None
    """The measured time, times the operations at the asked size over those at the measured one;
    None if none was measured on such a device."""
    setting: str = ""
    """What must be set for it to fit; changes no result."""


def command(parser: argparse.ArgumentParser) -> None:
    """Which run of a suite fits into a budget of memory and time, and is the most accurate?"""
    parser.add_argument("--size", required=True, help="H x W of your images in px, or one side")
    parser.add_argument("--memory", required=True, metavar="BUDGET", help="for instance 2GiB")
    parser.add_argument("--seconds", type=float, metavar="S", help="the longest time an image")
    parser.add_argument("--suite", help="a name or a file of suites/ (default: params.yaml)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--card", default="", help="the GPU's name, for the context's size")
    parser.set_defaults(work=work, in_root=True)


def work(arguments: argparse.Namespace) -> None:
    """Print what fits, best first, and what the records cannot tell."""
    suite = suite_named(arguments.suite)
    inputs = load_records(suite)
    budget = cli.parse_bytes(arguments.memory, "--memory")
    size = parse_size(arguments.size)
    ask = partial(Question, size=size, device=arguments.device, gpu=arguments.card)
    questions = {run.name: ask(run) for run in runs_of(suite, False, {}, CLASSES)}
    for dataset in inputs.datasets:
        entries = [entry for entry in inputs.entries if entry.dataset == dataset]
        pairs = bootstrap.compare(entries)
        choices = list(_choices(entries, pairs, questions))
        if not choices:
            print(f"{dataset}: no run of {suite.suite} is evaluated; run `dvc repro`.")
            continue
        print(f"{dataset}, {size[0]} × {size[1]} px, {mib(budget)} of {arguments.device}\n")
        print("\n".join(advice(choices, pairs, budget, arguments.seconds)))
        print("\n".join(_limits(entries, pairs, choices[0].question)))


def _choices(
    entries: Sequence[Entry], pairs: bootstrap.Pairs, questions: Mapping[str, Question]
) -> Iterator[Choice]:
    """Every sample of `pairs`, the most accurate first."""
    first = {name: run for run, name in reversed([*pairs.names.items()])}  # sample -> a run of it
    by_run = {entry.name: entry for entry in entries}
    samples = sorted(pairs.samples, key=bootstrap.miou, reverse=True)
    asked = []
    for sample in samples:
        question = questions[first[sample.run]]
        model = replace(question.run.model, given_classes=len(sample.classes))
        asked.append(replace(question, run=replace(question.run, model=model)))
    for sample, question, found in zip(samples, asked, with_answers(asked), strict=True):
        time = seconds(by_run[first[sample.run]], question, found)
        yield Choice(sample.run, question, bootstrap.interval(sample), found.shown_bytes, time)


def seconds(entry: Entry, question: Question, found: Answer) -> float | None:
    """Seconds of one image of the asked size, estimated from the measured time."""
    measured = entry.measurement
    latency = median(measured.get("latency_s"))
    if latency is None or measured["device"] != question.device:
        return None
    if measured.get("flops"):
        return latency * found.prediction.flops / int(measured["flops"])
    pixels = int(measured["height_px"]) * int(measured["width_px"])
    return latency * math.prod(question.size) / pixels


def advice(
    choices: Sequence[Choice], pairs: bootstrap.Pairs, budget: int, limit_s: float | None = None
) -> list[str]:
    """Lines: a table of what fits, the most accurate first, and sentences.

    Args:
        choices: the most accurate first.
        budget: bytes.
        limit_s: the longest time of one image in seconds.
    """
    untimed = [one.name for one in choices if limit_s is not None and one.seconds is None]
    inside = [one for one in choices if limit_s is None or (one.seconds or math.inf) <= limit_s]
    fitting: list[Choice] = []
    changed: list[str] = []
    for one in inside:
        if one.needed <= budget:
            fitting.append(one)
        elif not fitting:  # less accurate than one that fits, it is not asked for
            other, patch = suited(one, budget)
            fitting += [other] if other else []
            changed += [patch] if patch else []
    lines = []
    if fitting:
        lines += [pd.DataFrame(map(_row, fitting)).to_string(index=False), ""]
        lines += _verdict(fitting, pairs)
    elif inside:
        least = min(inside, key=lambda one: one.needed)
        lines += [f"Nothing fits: {least.name} needs the least, {mib(least.needed)}."]
    else:
        lines += ["No run with a recorded time is as fast."]
    lines += [*changed, *_next(inside, fitting, pairs, budget)]
    if untimed:
        lines.append(f"The records cannot tell how long these take: {', '.join(untimed)}.")
    return lines


def suited(one: Choice, budget: int) -> tuple[Choice | None, str]:
    """A choice with the largest sub-batch that fits; else a sentence on the largest patch that does,
    empty where there is none."""
    question = one.question
    spec = question.run.spec
    if at := _largest(question, "sub_batch", budget, 1, getattr(spec, "sub_batch", 0)):
        value, needed = at
        run = varied(question, "sub_batch", value)
        return replace(one, question=run, needed=needed, setting=f"sub_batch={value}"), ""
    own = getattr(spec, "patch_px", getattr(spec, "size_px", 0))
    step = 32
    first = 1 + getattr(spec, "overlap_px", 0) // step
    if getattr(spec, "sub_batch", 0) > 1:
        question = varied(question, "sub_batch", 1)
    if at := _largest(question, "patch", budget, first, own // step, step):
        value, needed = at
        return None, (
            f"{one.name} would fit with patches of {value} px instead of {own} px, in "
            f"{mib(needed)}; its accuracy with them is not recorded."
        )
    return None, ""


def _largest(
    question: Question, of: str, budget: int, first: int, most: int, step: int = 1
) -> tuple[int, int] | None:
    """The largest value of a quantity that fits, and its bytes."""
    try:
        varied(question, of, first * step)
        if most < first:
            return None
        value, needed, _ = largest_fitting(question, of, budget, first, most, step)
    except UserError:  # the run has no such quantity
        return None
    return (value * step, needed) if value else None


def _row(one: Choice) -> dict[str, str]:
    found = one.miou
    return {
        "run": one.name,
        "mIoU, %": f"{100 * found.value:.1f}",
        f"{100 * bootstrap.LEVEL:.0f} % interval": f"{100 * found.low:.1f}–{100 * found.high:.1f}",
        "memory": mib(one.needed),
        "seconds": "?" if one.seconds is None else f"{one.seconds:.3g}",
        "with": one.setting or "-",
    }


def _verdict(fitting: Sequence[Choice], pairs: bootstrap.Pairs) -> list[str]:
    best, *others = fitting
    like = [one for one in others if not _above(best, one, pairs)]
    if not like:
        return [f"{best.name} is the most accurate of these."]
    least = min((best, *like), key=lambda one: one.needed)
    return [
        f"{best.name} is the most accurate of these, but the records cannot separate it from "
        f"{', '.join(one.name for one in like)}; of them {least.name} needs the least memory."
    ]


def _next(
    inside: Sequence[Choice], fitting: Sequence[Choice], pairs: bootstrap.Pairs, budget: int
) -> list[str]:
    """What the next GiB buys."""
    names = {one.name for one in fitting}
    best = fitting[0] if fitting else None
    better = [
        one
        for one in inside
        if one.name not in names and (best is None or one.miou.value > best.miou.value)
    ]
    if not better:
        return ["More memory buys no accuracy: no recorded run has more."]
    within = [one for one in better if one.needed <= budget + GIB]
    if not within:
        one = min(better, key=lambda one: one.needed)
        return [
            f"The next GiB buys nothing; {one.name} with {100 * one.miou.value:.1f} % needs "
            f"{mib(one.needed)}."
        ]
    one = within[0]
    said = f"The next GiB buys {one.name}: {100 * one.miou.value:.1f} % in {mib(one.needed)}"
    if best and not _above(one, best, pairs):
        said += f", which the records cannot separate from {best.name}"
    return [f"{said}."]


def _above(one: Choice, other: Choice, pairs: bootstrap.Pairs) -> bool:
    """Whether the records show that one is more accurate than the other."""
    pair = pairs.between(one.question.run.name, other.question.run.name)
    return pair is not None and pair.verdict == "beats"


def _limits(entries: Sequence[Entry], pairs: bootstrap.Pairs, question: Question) -> list[str]:
    """What the records do not tell, and what is assumed."""
    sizes = {
        (one.measurement["height_px"], one.measurement["width_px"])
        for one in entries
        if one.measurement
    }
    scenes = len(pairs.samples[0].scenes)
    said = [
        f"Accuracy is that on {scenes} test images{_of(sizes)}; the records do not tell it for other "
        "images or sizes, and intervals do not include the variation between trainings."
    ]
    if any(one.measurement for one in entries):
        said.append("Seconds are estimated from the measured time and the number of operations.")
    if missing := [one.name for one in entries if not one.evaluation]:
        said.append(f"The records have no accuracy of {', '.join(missing)}.")
    if question.device == "cuda":
        overhead = known_overhead(question.gpu)
        known = "measured" if overhead.measured else "assumed"
        said.append(
            f"Memory is that of the process, with a context of {mib(overhead.context_bytes)} "
            f"({known}, {overhead.family})."
        )
    return said


def _of(sizes: Collection[tuple[int, int]]) -> str:
    return f" of up to {' × '.join(map(str, max(sizes)))} px" if sizes else ""
