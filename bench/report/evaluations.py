"""What the confusion matrices of an evaluated run come to: mIoU by each definition, seed and scene."""

import statistics
from dataclasses import asdict
from typing import Any

import numpy as np

from bench import metrics
from bench.errors import UserError
from bench.report.load_records import Entry


def matrices(entry: Entry, split: str) -> metrics.Matrix:
    """The confusion matrix of each seed over all scenes of a split: (seeds, K + 1, K)."""
    seeds = [entry.evaluation["splits"], *entry.evaluation.get("other_seeds", {}).values()]
    return np.stack([metrics.total(splits[split].values()) for splits in seeds])


def matrix(entry: Entry, split: str) -> metrics.Matrix:
    """Their sum over the seeds: (K + 1, K)."""
    total: metrics.Matrix = matrices(entry, split).sum(0)
    return total


def stated(entry: Entry) -> dict[str, Any]:
    """The run's own definition of mIoU, as arguments of `metrics.miou`.

    Raises:
        UserError: it leaves out a class that the data set does not have.
    """
    values = asdict(entry.run.metric) if entry.run.metric else {}
    known = entry.evaluation["classes"]
    for name in values.get("leave_out", ()):
        if name not in known:
            raise UserError(
                f"params.yaml: runs.{entry.name}.metric.leave_out names {name!r}, a class that "
                f"{entry.dataset} does not have; it has {', '.join(known)}."
            )
    return values


def accuracies_by_seed(entry: Entry, split: str) -> list[dict[str, float]]:
    """mIoU of an evaluated run on a split by each of its definitions, 0..1, under the names of the
    columns of `runs`, seed by seed; none where the split was not evaluated."""
    if not entry.evaluation.get("splits", {}).get(split):
        return []
    definitions: dict[str, dict[str, Any]] = {
        "miou": {},
        "miou_official": {"unlabelled": "false-positives", "absent": "zero"},
        "miou_without_rare": {"leave_out": entry.evaluation.get("rare", [])},
        **({"miou_stated": stated(entry)} if entry.run.metric else {}),
    }
    found = matrices(entry, split)
    names, ignored = entry.evaluation["classes"], entry.evaluation["ignored"]
    shares = [metrics.mious(found, names, ignored, **how) for how in definitions.values()]
    return [
        dict(zip(definitions, map(float, one), strict=True)) for one in zip(*shares, strict=True)
    ]


def accuracies(entry: Entry, split: str) -> dict[str, float]:
    """Their means over the seeds; empty where the split was not evaluated."""
    seeds = accuracies_by_seed(entry, split)
    names = seeds[0] if seeds else ()
    return {name: statistics.fmean(one[name] for one in seeds) for name in names}


def seed_mious(entry: Entry) -> list[float]:
    """mIoU on test of each seed of an evaluated run, 0..1."""
    return [one["miou"] for one in accuracies_by_seed(entry, "test")]


def scene_miou(entry: Entry, scene: str) -> float | None:
    """mIoU of one test scene, 0..1, or None where the run has no such scene."""
    values = entry.evaluation
    found = values.get("splits", {}).get("test", {}).get(scene)
    if found is None:
        return None
    return metrics.miou(metrics.total([found]), values["classes"], values["ignored"])
