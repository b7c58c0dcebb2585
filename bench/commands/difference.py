"""Reads the records of two commits or folders, and compares them run by run."""

import io
import statistics
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bench import record
from bench.errors import UserError
from bench.record import Record
from bench.report import bootstrap

METERS = ("nvml", "allocated", "predicted", "reserved", "rss")
"""Memory meters in order of preference: the table shows the first that both sides have."""
LEVEL = f"{100 * bootstrap.LEVEL:.0f} %"
"""Confidence level of intervals."""
VERDICTS: dict[bootstrap.Verdict, Literal["better", "worse", "no significant difference"]] = {
    "beats": "better",
    "is beaten by": "worse",
    "no significant difference": "no significant difference",
}


@dataclass(frozen=True)
class Results:
    """The records of one suite."""

    evaluated: Mapping[str, Record]
    """By run."""
    measured: Mapping[tuple[str, str], Record]
    """By (machine, run)."""

    @property
    def runs(self) -> list[str]:
        """All runs that have a record."""
        return sorted({*self.evaluated, *(run for _, run in self.measured)})

    def machines(self, run: str) -> list[str]:
        """Machines on which a run was measured."""
        return sorted(machine for machine, name in self.measured if name == run)


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    name: str
    """As given on the command line."""
    description: str
    """The commit or the folder."""
    suites: Mapping[str, Results]


@dataclass(frozen=True)
class Accuracy:
    """mIoU on test, 0..1; the difference is second minus first."""

    first: float | None = None
    second: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: (
        Literal["better", "worse", "no significant difference", "same", "no interval"] | None
    ) = None
    """Verdict on the second, by the paired interval, if both were evaluated on the same scenes."""


@dataclass(frozen=True)
class Latency:
    """Median seconds of one prediction; ratio is second over first."""

    first_s: float
    second_s: float
    ratio: float
    within_spread: bool
    """Whether the ranges of the repetitions overlap."""


@dataclass(frozen=True)
class Memory:
    """Bytes measured by one meter; ratio is second over first."""

    first_bytes: int
    second_bytes: int
    ratio: float


@dataclass(frozen=True)
class Change:
    """One run on both sides."""

    suite: str
    run: str
    machine: str | None
    """Machine on which both were measured."""
    where: Literal["both", "first", "second"]
    status: tuple[str, str]
    """Of the first and the second: the worse status of evaluation and measurement."""
    accuracy: Accuracy
    memory: Mapping[str, Memory]
    """By meter."""
    latency: Latency | None
    settings: Mapping[str, tuple[Any, Any]]
    """Both values of each setting that differs, by dotted name; None: not set."""
    notes: tuple[str, ...] = ()
    """Reasons why something cannot be compared."""


# The records of one side


def open_side(name: str) -> Side:
    """Read the records of a folder or of a commit, without a checkout.

    Args:
        name: a folder (of the project, of its results, or of one suite), or a commit as git
            understands it; `COMMIT:FOLDER` chooses another folder than `results`.

    Raises:
        UserError: the folder or commit does not exist, or has no record or one in an unknown format.
    """
    if Path(name).is_dir():
        return _read_side(name, f"folder {name}", Path(name))
    revision, _, inside = name.partition(":")
    commit = _object_name(f"{revision}^{{commit}}")
    if commit is None:
        raise UserError(
            f"{name!r} is neither a folder nor a commit of this repository: see `git log`."
        )
    folder = Path(inside or record.RESULTS)
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary, folder.name)  # a folder of one suite has the suite's name
        target.mkdir(exist_ok=True)
        if tree := _object_name(f"{commit}:./{folder}"):
            top = git("rev-parse", "--show-toplevel").decode().strip()
            # In another folder, git archives only that folder. Zip, since `zipfile` writes no links and
            # nothing outside; `tarfile` has filters only from Python 3.11.4 on.
            packed = git("archive", "--format=zip", tree, folder=top)
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                archive.extractall(target)
        return _read_side(name, f"commit {commit[:10]}", target)


def _read_side(name: str, description: str, folder: Path) -> Side:
    """Read the records below a folder; `name` and `description` are for messages."""
    root = folder / record.RESULTS if (folder / record.RESULTS).is_dir() else folder
    root = root.resolve()
    is_suite = any((root / stage).is_dir() for stage in ("evaluate", "measure"))

    def read(path: Path) -> Record:
        relative = path.relative_to(root.parent if is_suite else root)
        return record.parse(
            path.read_bytes(), f"{name}: {relative}", "compare it with the code of that version"
        )

    suites = {}
    for suite in [root] if is_suite else sorted(path for path in root.iterdir() if path.is_dir()):
        evaluated = {path.stem: read(path) for path in sorted(suite.glob("evaluate/*.json"))}
        paths = sorted(suite.glob("measure/*/*.json"))
        measured = {(path.parent.name, path.stem): read(path) for path in paths}
        if evaluated or measured:
            suites[suite.name] = Results(evaluated, measured)
    if not suites:
        raise UserError(
            f"{description} ({name}) has no record of a run: records lie in results/SUITE/evaluate and "
            "results/SUITE/measure/MACHINE."
        )
    return Side(name, description, suites)


def _object_name(name: str) -> str | None:
    """The full name of a git object of this repository; None if it does not exist."""
    try:
        options = ("--verify", "--quiet", "--end-of-options")
        return git("rev-parse", *options, name).decode().strip()
    except UserError:
        return None


def git(*arguments: str, folder: str = ".") -> bytes:
    """The output of a git command."""
    try:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise UserError("git is not installed: compare two folders instead.") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().split("\n")[0]
        raise UserError(f"git {arguments[0]} failed: {reason}.") from None


# Differences


def compare(first: Side, second: Side, suite: str | None = None) -> list[Change]:
    """Every run of either side, suite by suite.

    Args:
        suite: compare only this suite. If each side has a single suite, these two are compared,
            whatever their names.

    Raises:
        UserError: no suite is on both sides.
    """
    pairs = {
        name: (one, second.suites[name])
        for name, one in first.suites.items()
        if name in second.suites and suite in (None, name)
    }
    if suite is None and len(first.suites) == len(second.suites) == 1:
        (name, one), (other, two) = *first.suites.items(), *second.suites.items()
        pairs = {name if name == other else f"{name} and {other}": (one, two)}
    if not pairs:
        raise UserError(
            f"No suite {f'{suite!r} ' if suite else ''}is on both sides: {first.name} has "
            f"{', '.join(first.suites)}; {second.name} has {', '.join(second.suites)}."
        )
    return [
        _change(name, run, machine, sides)
        for name, sides in pairs.items()
        for run in dict.fromkeys(run for side in sides for run in side.runs)
        for machine in _shared_machines(run, *sides)
    ]


def _shared_machines(run: str, first: Results, second: Results) -> Sequence[str | None]:
    return [name for name in first.machines(run) if name in second.machines(run)] or [None]


def _change(suite: str, run: str, machine: str | None, sides: tuple[Results, Results]) -> Change:
    known = [run in side.runs for side in sides]
    evaluated = [side.evaluated.get(run) for side in sides]
    measured = [side.measured.get((machine or "", run)) for side in sides]
    accuracy, why = _accuracy(*evaluated)
    notes = [why] if why else []
    machines = [", ".join(side.machines(run)) for side in sides]
    if all(machines) and machine is None:
        notes.append(
            f"measured on different machines ({machines[0]}; {machines[1]}): "
            "neither memory nor latency can be compared"
        )
    values = [one.values if one and one.status == "ok" else {} for one in measured]
    versions = {one.benchmark for one in measured if one}
    if len(versions) > 1:
        notes.append(
            "measured by different benchmark versions: memory and latency cannot be compared"
        )
        values = [{}, {}]
    one, two = (_worst(pair) for pair in zip(evaluated, measured, strict=True))
    either = (one or two for one, two in zip(evaluated, measured, strict=True))
    return Change(
        suite=suite,
        run=run,
        machine=machine,
        where="both" if all(known) else "first" if known[0] else "second",
        status=(one, two),
        accuracy=accuracy,
        memory=_memory(*(one.get("meters", {}) for one in values)),
        latency=_latency(*(one.get("latency_s", []) for one in values)),
        settings=_settings(*either) if all(known) else {},
        notes=tuple(notes),
    )


def _worst(records: Sequence[Record | None]) -> str:
    """The worst status of the records."""
    order = ("failed", "oom", "ok")
    return min((r.status for r in records if r), key=order.index, default="no record")


def _accuracy(first: Record | None, second: Record | None) -> tuple[Accuracy, str]:
    """The accuracies, and the reason if there is no interval."""
    if first and second and first.benchmark != second.benchmark:
        versions = f"{first.benchmark} and {second.benchmark}"
        return Accuracy(), f"of benchmark versions {versions}: mIoU cannot be compared"
    one, two = (
        bootstrap.sample(side, f"{side} {one.name}", one.values)
        if one and one.status == "ok"
        else None
        for side, one in (("first", first), ("second", second))
    )
    a, b = (None if each is None else bootstrap.miou(each) for each in (one, two))
    if one is None or two is None or first is None or second is None or a is None or b is None:
        return Accuracy(a, b), ""
    if not bootstrap.comparable(one, two):
        why = "evaluated on different scenes or classes: no interval for mIoU"
    elif first.provenance.get("data_sha256") != second.provenance.get("data_sha256"):
        why = "the prepared data differ: no interval for mIoU"
    elif one.matrices.shape == two.matrices.shape and (one.matrices == two.matrices).all():
        return Accuracy(a, b, b - a, 0.0, 0.0, "same"), ""
    else:
        pair = bootstrap.difference(two, one)
        return Accuracy(a, b, b - a, pair.low, pair.high, VERDICTS[pair.verdict]), ""
    return Accuracy(a, b, b - a, verdict="no interval"), why


def _memory(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Memory]:
    found = {}
    for meter in METERS:
        if meter in first and meter in second and (before := int(first[meter]["bytes"])) > 0:
            after = int(second[meter]["bytes"])
            found[meter] = Memory(before, after, after / before)
    return found


def _latency(first: Sequence[float], second: Sequence[float]) -> Latency | None:
    if not first or not second:
        return None
    one, two = statistics.median(first), statistics.median(second)
    overlap = min(first) <= max(second) and min(second) <= max(first)
    return Latency(one, two, two / one, overlap)


def _settings(first: Record | None, second: Record | None) -> dict[str, tuple[Any, Any]]:
    """Both values of the settings that differ, by dotted name."""
    one, two = (
        pd.json_normalize(dict(side.settings)).to_dict("records")[0] if side else {}
        for side in (first, second)
    )
    names = sorted(map(str, one.keys() | two.keys()))
    both = {name: (one.get(name), two.get(name)) for name in names}
    return {name: (before, after) for name, (before, after) in both.items() if before != after}
