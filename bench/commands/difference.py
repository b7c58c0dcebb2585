"""Differences between two sides, run by run, computed from records."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.commands.side import Results, Side
from bench.errors import UserError
from bench.record import Record
from bench.report import bootstrap
from bench.report.bootstrap import Sample

METERS = ("nvml", "allocated", "predicted", "reserved", "rss")
"""In order of preference: the table shows the first that both sides have."""
Where = Literal["both", "first", "second"]


@dataclass(frozen=True)
class Accuracy:
    """mIoU on test, 0..1; the difference is second minus first."""

    first: float | None = None
    second: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: Literal["better", "worse", "cannot tell", "same", "no interval"] | None = None
    """Of the second, by the paired interval, if both were evaluated on the same scenes."""


@dataclass(frozen=True)
class Latency:
    """Median seconds of one prediction; ratio is second over first."""

    first_s: float
    second_s: float
    ratio: float
    within_spread: bool
    """The repetitions of both overlap, so that neither is called faster."""


@dataclass(frozen=True)
class Memory:
    """Bytes by one meter; ratio is second over first."""

    first_bytes: int
    second_bytes: int
    ratio: float


@dataclass(frozen=True)
class Change:
    """One run on both sides."""

    suite: str
    run: str
    machine: str | None
    """Where both were measured."""
    where: Where
    status: tuple[str, str]
    """Of the first and the second: the worse of evaluation and measurement."""
    accuracy: Accuracy
    memory: Mapping[str, Memory]
    """By meter."""
    latency: Latency | None
    settings: Mapping[str, tuple[Any, Any]]
    """Full name of each setting that differs -> both values; None: not set."""
    notes: tuple[str, ...] = field(default=())
    """Reasons why something cannot be compared."""


def compare(first: Side, second: Side, suite: str | None = None) -> list[Change]:
    """Every run of either side, suite by suite.

    Args:
        suite: the only one to compare. If each side has a single suite, these are compared whatever
            their names.

    Raises:
        UserError: no suite is on both sides.
    """
    if suite is None and len(first.suites) == len(second.suites) == 1:
        (name, one), (other, two) = *first.suites.items(), *second.suites.items()
        return _suite(name if name == other else f"{name} and {other}", one, two)
    names = [name for name in first.suites if name in second.suites and suite in (None, name)]
    if not names:
        raise UserError(
            f"No suite {f'{suite!r} ' if suite else ''}is on both sides: {first.name} has "
            f"{', '.join(first.suites)}; {second.name} has {', '.join(second.suites)}."
        )
    return [
        change for name in names for change in _suite(name, first.suites[name], second.suites[name])
    ]


def _suite(name: str, first: Results, second: Results) -> list[Change]:
    found = []
    for run in dict.fromkeys([*_runs(first), *_runs(second)]):
        one, two = _machines(first, run), _machines(second, run)
        shared: list[str | None] = [machine for machine in one if machine in two]
        found += [_change(name, run, machine, first, second) for machine in shared or [None]]
    return found


def _runs(results: Results) -> list[str]:
    return sorted({*results.evaluated, *(run for _, run in results.measured)})


def _machines(results: Results, run: str) -> list[str]:
    return sorted(machine for machine, name in results.measured if name == run)


def _change(suite: str, run: str, machine: str | None, first: Results, second: Results) -> Change:
    sides = (first, second)
    known = [run in _runs(side) for side in sides]
    evaluated = [side.evaluated.get(run) for side in sides]
    measured = [side.measured.get((machine or "", run)) for side in sides]
    notes = []
    accuracy, why = _accuracy(*evaluated)
    if why:
        notes.append(why)
    machines = [_machines(side, run) for side in sides]
    if all(known) and all(machines) and machine is None:
        notes.append(
            f"measured on other machines ({', '.join(machines[0])}; {', '.join(machines[1])}): "
            "neither memory nor latency can be compared"
        )
    values = [one.values if one and one.status == "ok" else {} for one in measured]
    return Change(
        suite=suite,
        run=run,
        machine=machine,
        where="both" if all(known) else "first" if known[0] else "second",
        status=(_status(evaluated[0], measured[0]), _status(evaluated[1], measured[1])),
        accuracy=accuracy,
        memory=_memory(*values),
        latency=_latency(*(value.get("latency_s", []) for value in values)),
        settings=_settings(*(one or two for one, two in zip(evaluated, measured, strict=True)))
        if all(known)
        else {},
        notes=tuple(notes),
    )


def _status(*records: Record | None) -> str:
    """The worst status in the records."""
    worst = ("failed", "oom", "ok")
    return min((r.status for r in records if r), key=worst.index, default="no record")


def _accuracy(first: Record | None, second: Record | None) -> tuple[Accuracy, str]:
    """The accuracies, and why there is no interval if there is none."""
    samples = [
        bootstrap.sample(side, f"{side} {one.name}", one.values)
        if one and one.status == "ok"
        else None
        for side, one in (("first", first), ("second", second))
    ]
    one, two = samples
    a, b = (None if each is None else bootstrap.miou(each) for each in samples)
    if one is None or two is None or first is None or second is None or a is None or b is None:
        return Accuracy(a, b), ""
    found = Accuracy(a, b, b - a, verdict="no interval")
    if not bootstrap.comparable(one, two):
        return found, "evaluated on other scenes or classes: no interval for mIoU"
    if first.provenance.get("data_sha256") != second.provenance.get("data_sha256"):
        return found, "the prepared data differ: no interval for mIoU"
    return _with_interval(found, one, two), ""


def _with_interval(found: Accuracy, one: Sample, two: Sample) -> Accuracy:
    pair = bootstrap.difference(two, one)
    verdicts: dict[bootstrap.Verdict, Literal["better", "worse", "cannot tell"]] = {
        "beats": "better",
        "is beaten by": "worse",
        "is not distinguishable from": "cannot tell",
    }
    same = one.matrices.shape == two.matrices.shape and (one.matrices == two.matrices).all()
    verdict = "same" if same else verdicts[pair.verdict]
    low, high = (0.0, 0.0) if same else (pair.low, pair.high)
    return Accuracy(found.first, found.second, found.difference, low, high, verdict)


def _memory(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Memory]:
    meters = first.get("meters", {}), second.get("meters", {})
    sizes = {
        name: (int(meters[0][name]["bytes"]), int(meters[1][name]["bytes"]))
        for name in METERS
        if name in meters[0] and name in meters[1]
    }
    return {name: Memory(a, b, b / a) for name, (a, b) in sizes.items() if a > 0}


def _latency(first: Sequence[float], second: Sequence[float]) -> Latency | None:
    if not first or not second:
        return None
    one, two = statistics.median(first), statistics.median(second)
    overlap = min(first) <= max(second) and min(second) <= max(first)
    return Latency(one, two, two / one, overlap)


def _settings(first: Record | None, second: Record | None) -> dict[str, tuple[Any, Any]]:
    one, two = (dict(_flat(side.settings)) if side else {} for side in (first, second))
    return {
        key: (one.get(key), two.get(key))
        for key in sorted(one.keys() | two.keys())
        if one.get(key) != two.get(key)
    }


def _flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in values.items():
        name = f"{above}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found
