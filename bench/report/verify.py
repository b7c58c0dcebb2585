"""Checks the records of a suite that somebody else made: complete, of one benchmark version, and
plausible; and works out again the tables that came with them."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import record
from bench.config import Suite
from bench.files import csv_text
from bench.report.load_records import Entry, Inputs, Record, load_records, median
from bench.report.pages import collect

TABLES = ("runs", "classes", "details", "objects", "latency", "confusion", "pairs")
"""Those that follow from the records of the suite alone."""
PRECISION = 1e-6
"""Relative; CSV files have all digits."""
MOST_FLOPS_PER_S = 5e15
"""No device of today does more."""
NOISE = 1.25
"""The network's seconds may pass those of the whole prediction, which another round measured."""
Truth = dict[tuple[str, str], Any]
"""Pixels by true class, by SHA-256 of the prepared data and name of the scene."""


def record_paths(suite: Suite) -> list[Path]:
    """Where the records of a suite are."""
    name, machine = suite.suite, suite.machine
    return [
        *(record.path_of(name, "train", model) for model in suite.models),
        *(record.path_of(name, "evaluate", run) for run in suite.runs),
        *(record.path_of(name, "measure", run, machine) for run in suite.runs),
        record.path_of(name, "steps", machine),
    ]


def derived(suite: Suite) -> dict[str, str]:
    """Table -> its CSV file, for each table with rows, from the records in the current folder."""
    found = collect(load_records(suite)).tables
    return {name: csv_text(found[name].rows) for name in TABLES if len(found[name].rows)}


def check(suite: Suite, names: Sequence[str], known: Truth) -> tuple[int, list[str]]:
    """Check the results of a suite in the current folder.

    Args:
        names: of all files there.
        known: `known_truth` of results that are trusted.

    Returns:
        how many numbers follow from raw records, and what is wrong, a clause each.
    """
    folder = Path("report", suite.suite, "tables")
    if faults := list(problems(load_records(suite), known)):
        return 0, faults
    numbers, tables = 0, derived(suite)
    paths = [*record_paths(suite), *(folder / f"{name}.csv" for name in tables)]
    expected = {path.as_posix() for path in paths}
    given = [name for name in names if name.startswith(("results/", "report/"))]
    faults = [
        f"{name} is no record or table of the suite" for name in given if name not in expected
    ]
    for name, text in tables.items():
        path = folder / f"{name}.csv"
        numbers += pd.read_csv(io.StringIO(text)).size
        if fault := differing(path, text):
            faults.append(f"{path} does not follow from the records: {fault}")
    return numbers, faults


def differing(told: Path, worked_out: str) -> str:
    """How a table differs from what its records say, a clause; empty if it does not."""
    try:
        one, other = pd.read_csv(told), pd.read_csv(io.StringIO(worked_out))
        pd.testing.assert_frame_equal(one, other, check_dtype=False, rtol=PRECISION, atol=0)
    except (AssertionError, ValueError, OSError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


def problems(inputs: Inputs, known: Truth) -> Iterator[str]:
    """What is wrong with the records of a suite, a clause each.

    Args:
        known: `known_truth` of results that are trusted.
    """
    known = {**known}
    for entry in inputs.entries:
        if entry.trained is None:
            yield f"{entry.run.model}: no record of its training by this benchmark version"
        if entry.status not in ("ok", "oom"):
            yield f"{entry.name}: {entry.reason}"
        if entry.outdated:
            yield f"{entry.name}: {entry.outdated}"
        weights = {
            one.provenance.get("checkpoint_sha256")
            for one in (entry.evaluated, entry.measured)
            if one
        }
        if len(weights - {None}) > 1:
            yield f"{entry.name}: evaluated with other weights than measured"
        for said in (*_of_scenes(entry, known), *_of_costs(entry)):
            yield f"{entry.name}: {said}"
    for one in inputs.records():
        if not one.provenance.get("commit") or one.provenance.get("dirty") is not False:
            yield f"{one.stage} {one.name}: not made at a commit without changes"


def known_truth() -> Truth:
    """Of all evaluations below results/."""
    paths = sorted(record.RESULTS.glob("*/evaluate/*.json"))
    return {place: one.sum(1) for path in paths for place, one in _matrices(record.read(path))}


def _matrices(one: Record) -> Iterator[tuple[tuple[str, str], Any]]:
    """The confusion matrix of each scene and seed, after its data and its scene."""
    data = str(one.provenance.get("data_sha256"))
    for splits in (one.values.get("splits", {}), *one.values.get("other_seeds", {}).values()):
        for scene, matrix in (pair for scenes in splits.values() for pair in scenes.items()):
            yield (data, scene), np.array(matrix)


def _of_scenes(entry: Entry, known: Truth) -> Iterator[str]:
    """Whether all runs saw the same labels, and the measured scene has the size that was measured.

    Args:
        known: scenes are added to it.
    """
    values = entry.measurement
    pixels = values.get("height_px", 0) * values.get("width_px", 0)
    for (data, scene), matrix in _matrices(entry.evaluated) if entry.evaluated else ():
        if not np.array_equal(known.setdefault((data, scene), matrix.sum(1)), matrix.sum(1)):
            yield f"the true pixels by class of {scene} are others than in other results of the data"
        if scene == values.get("scene") and matrix.sum() != pixels:
            yield f"{scene} has {matrix.sum()} px, but {pixels} px were measured"


def _of_costs(entry: Entry) -> Iterator[str]:
    """Whether meters and clocks can have reported this together."""
    values = entry.measurement
    sizes = {name: one["bytes"] for name, one in entry.meters.items()}
    for less, more in (("allocated", "reserved"), ("reserved", "nvml")):
        if less in sizes and more in sizes and sizes[less] > sizes[more]:
            yield f"{less} memory is above {more}"
    if values and sizes["allocated"] < 4 * (values.get("parameters") or 0):
        yield "less memory was allocated than its parameters take"
    whole, alone = median(values.get("latency_s")), median(values.get("network_s"))
    if whole is not None and alone is not None and alone > NOISE * whole:
        yield "the network alone took longer than the whole prediction"
    if whole is not None and (values.get("flops") or 0) > MOST_FLOPS_PER_S * whole:
        yield f"more than {MOST_FLOPS_PER_S:.0e} operations a second"
