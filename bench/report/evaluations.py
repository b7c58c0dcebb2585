"""What the evaluations of runs come to: mIoU by each definition, seed and scene, the quality gate, the
Pareto front, and runs of several seeds as one."""

import json
import math
import os.path
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from bench import metrics
from bench.errors import UserError
from bench.report.load_records import BASELINE, Entry

GATE = 0.9
"""Share of the best mIoU on its data set from which a run passes: little memory is no merit of one
that hardly segments."""
ONE_VIEW = ("global", "local")
"""Strategies of one branch alone, without feature sharing."""


@dataclass(frozen=True)
class Group:
    """Runs of one setting with several seeds."""

    name: str
    strategy: str
    network: str
    feature_sharing: bool
    """Whether branches share features, or their fused maps meet in the aggregation alone."""
    mious: tuple[float, ...]
    """0..1, one a seed."""
    runs: tuple[str, ...] = ()
    """Their names."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.mious) / len(self.mious)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % CI of that mean on these very scenes, by Student's t."""
        t = float(stdtrit(len(self.mious) - 1, 0.975))
        half = t * statistics.stdev(self.mious) / math.sqrt(len(self.mious))
        return self.mean - half, self.mean + half


def matrices(entry: Entry, split: str) -> metrics.Matrix:
    """The confusion matrix of each seed over all scenes of a split: (seeds, K + 1, K)."""
    seeds = [entry.evaluation["splits"], *entry.evaluation.get("other_seeds", {}).values()]
    return np.stack([metrics.total(splits[split].values()) for splits in seeds])


def matrix(entry: Entry, split: str) -> metrics.Matrix:
    """Their sum over the seeds: (K + 1, K)."""
    total: metrics.Matrix = matrices(entry, split).sum(0)
    return total


def confusion(entry: Entry, split: str) -> pd.DataFrame:
    """Pixels by true class (lines) and predicted class (columns), as shares of the line; NaN for a
    class without pixels."""
    names = list(entry.evaluation["classes"])
    counts = pd.DataFrame(matrix(entry, split)[:-1], names, names)
    return counts.div(counts.sum(axis=1).replace(0, np.nan), axis=0)


def class_ious(entry: Entry) -> pd.Series:
    """IoU on test of each class that counts, 0..1, the mean over the seeds; NaN for a class that
    does not occur."""
    names, ignored = entry.evaluation["classes"], entry.evaluation["ignored"]
    by_seed = metrics.iou(matrices(entry, "test"), names, ignored)
    means: pd.Series = pd.DataFrame(by_seed, columns=names).mean().drop(ignored)
    return means


def class_details(entry: Entry) -> list[dict[str, Any]]:
    """One line a class: average precision and boundary IoU on test, 0..1, the means over the seeds;
    none where they were not counted."""
    by_seed = [splits["test"] for splits in entry.evaluation.get("details", {}).values()]
    rows = []
    for k, name in enumerate(entry.evaluation["classes"] if by_seed else ()):
        counts = [np.array(one["scores"][k]) for one in by_seed if "scores" in one]
        boundaries = [
            np.sum([scene["boundaries"][k] for scene in one["scenes"].values()], 0)
            for one in by_seed
        ]
        means = {
            "average_precision": [metrics.average_precision(one) for one in counts],
            "boundary_iou": [both / either if either else np.nan for both, either in boundaries],
        }
        rows.append(
            {"class": name, **{key: np.mean(found) for key, found in means.items() if found}}
        )
    return rows


def object_details(entry: Entry) -> list[dict[str, Any]]:
    """One line a class and size of object on test: shares 0..1 of the true objects' pixels that are
    found, and of the predicted objects' pixels that are right, over all seeds; sizes without an
    object are left out."""
    details = entry.evaluation.get("details", {})
    if not details:
        return []
    scenes = [scene for splits in details.values() for scene in splits["test"]["scenes"].values()]
    limits = entry.evaluation["diameters_px"]
    between = [f"{low}-{high}" for low, high in pairwise(limits)]
    sizes = [f"< {limits[0]}", *between, f">= {limits[-1]}"]
    frame = pd.DataFrame(
        np.sum([scene["objects"] for scene in scenes], 0).reshape(-1, 5),
        pd.MultiIndex.from_product([entry.evaluation["classes"], range(len(sizes))]),
        ["objects", "pixels", "found", "predicted", "right"],
    )
    frame = frame[frame.objects > 0].rename_axis(["class", "group"]).reset_index()
    frame["diameter_px"] = frame.group.map(sizes.__getitem__)
    frame["objects"] //= len(details)
    frame["found_share"] = frame.found / frame.pixels
    frame["right_share"] = frame.right / frame.predicted.replace(0, np.nan)
    return [{str(name): one for name, one in row.items()} for row in frame.to_dict("records")]


def agreement(entry: Entry) -> float | None:
    """Share of the pixels of test, 0..1, that have the label of the same run in float32: the mean
    over scenes; None of a run in float32."""
    scenes = entry.evaluation.get("agreement", {}).get("test", {})
    return statistics.fmean(scenes.values()) if scenes else None


def pixel_accuracy(entry: Entry) -> float:
    """Share of the labelled pixels of test that are right, over all seeds."""
    return metrics.accuracy(matrix(entry, "test"))


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


def scene_miou(entry: Entry, scene: str, split: str = "test") -> float | None:
    """mIoU of one scene, 0..1, or None where the run has no such scene."""
    values = entry.evaluation
    found = values.get("splits", {}).get(split, {}).get(scene)
    if found is None:
        return None
    return metrics.miou(metrics.total([found]), values["classes"], values["ignored"])


def scene_ious(entry: Entry, scene: str) -> list[float]:
    """IoU of each class on a scene of test, 0..1; NaN for classes that do not count."""
    values = entry.evaluation
    found = metrics.total([values["splits"]["test"][scene]])
    return [float(one) for one in metrics.iou(found, values["classes"], values["ignored"])]


def shares_of_best(frame: pd.DataFrame) -> pd.Series:
    """mIoU of each run as a share of the best one on its data set; empty without an accuracy.

    Args:
        frame: columns `dataset` and `miou`.
    """
    best = frame.groupby("dataset").miou.transform("max")
    return (frame.miou / best.where(best > 0)).astype(float)


def by_accuracy(frame: pd.DataFrame) -> pd.DataFrame:
    """Best first; those that are excluded, and then those without an accuracy, last."""
    out = frame.excluded.notna() if "excluded" in frame else False
    ordered = frame.assign(out=out).sort_values(
        ["out", "miou"], ascending=[True, False], na_position="last", kind="stable"
    )
    return ordered.drop(columns="out")


def baseline_miou(frame: pd.DataFrame) -> float | None:
    """mIoU of the nearest class-mean colour, if it was evaluated.

    Args:
        frame: `runs` of one data set.
    """
    found = frame[(frame.network == BASELINE) & frame.miou.notna()].miou
    return float(found.iloc[0]) if len(found) else None


def front(frame: pd.DataFrame, memory: str, floor: float | None) -> list[str]:
    """Names of the runs that no other run beats on memory and accuracy at once, cheapest first.

    Args:
        frame: `runs` without the baseline; rows without a memory or an mIoU are left out.
        memory: a column, less is better.
        floor: mIoU that a run must be above to be a choice at all; None: none.
    """
    known = frame.dropna(subset=[memory, "miou"])
    ordered = known.sort_values([memory, "miou"], ascending=[True, False], kind="stable")
    miou = ordered.miou.astype(float)
    to_beat = miou.cummax().shift(fill_value=-np.inf).clip(lower=floor)
    return [str(run) for run in ordered.run[miou > to_beat]]


def hypervolume(points: Sequence[tuple[float, float]], reference: float) -> float:
    """The share of a rectangle that a front dominates, 0..1.

    The rectangle reaches from no memory to `reference` and from an accuracy of 0 to one of 1; a
    point dominates what has as much memory or more and is as accurate or less.

    Args:
        points: (memory, accuracy 0..1) of the front, cheapest first.
        reference: the most memory that counts, in the same unit.
    """
    if not points:
        return 0.0
    ends = [memory for memory, _ in points[1:]] + [reference]
    areas = [
        max(0.0, min(end, reference) - memory) * accuracy
        for (memory, accuracy), end in zip(points, ends, strict=True)
    ]
    return sum(areas) / reference


def groups(
    entries: Sequence[Entry], mious: Mapping[str, Sequence[float]] | None = None
) -> list[Group]:
    """The groups of more than one evaluated seed, in the suite's order.

    Args:
        mious: 0..1 by run, one a seed; runs without any are left out. None: mIoU on test.
    """
    if mious is None:
        mious = {entry.name: seed_mious(entry) for entry in entries}
    return [
        Group(
            name=name,
            strategy=same[0].run.strategy,
            network=same[0].network,
            feature_sharing=same[0].model.spec.get("sharing") != "none",
            mious=tuple(miou for entry in same for miou in mious[entry.name]),
            runs=tuple(entry.name for entry in same),
        )
        for name, same in alike(entry for entry in entries if mious.get(entry.name))
        if len(same) > 1 or len(same[0].model.trainings) > 1
    ]


def seeds_as_one(runs: pd.DataFrame, found: Sequence[Group]) -> pd.DataFrame:
    """The table of runs with one row a group of seeds: the first one's, with the mean mIoU, its
    range as `miou_low` and `miou_high`, and the mean of each memory."""
    for group in found:
        own = runs.run.isin(group.runs)
        memory = runs[own].filter(like="_bytes").astype(float).mean().to_dict()
        one = (
            runs[own]
            .iloc[:1]
            .assign(
                run=group.name,
                miou=group.mean,
                miou_low=min(group.mious),
                miou_high=max(group.mious),
                **{str(name): size for name, size in memory.items()},
            )
        )
        runs = pd.concat([runs[~own], one])
    return runs


def alike(entries: Iterable[Entry]) -> list[tuple[str, list[Entry]]]:
    """(what their names share, runs that differ only in their seed), in the suite's order."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        model = replace(entry.model, seed=0, seeds=None)
        setting = [asdict(model), entry.run.strategy, entry.run.overrides]
        key = json.dumps(setting, sort_keys=True)
        if any(_seeds(entry) & _seeds(other) for other in found.get(key, ())):  # the same run again
            key = f"{key} {entry.name}"
        found.setdefault(key, []).append(entry)
    named: dict[str, list[Entry]] = {}
    for same in found.values():
        names = [entry.name for entry in same]
        common = _common(names)
        named[common if common not in named else ", ".join(names)] = same
    return list(named.items())


def _seeds(entry: Entry) -> set[int]:
    return {one.seed for one in entry.model.trainings}


def _common(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    start = os.path.commonprefix(names)  # noqa: RUF071 - of letters
    return start.rstrip("-_. ").removesuffix("seed").rstrip("-_. ") or names[0]
