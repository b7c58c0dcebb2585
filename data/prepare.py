"""Converts raw files to the format that `data.dataset` reads, and checks every image and label.

summary.csv   pixels and share of each class, by split
checks.json   size, classes, unlabelled share and mean colour of each image
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import UserError
from bench.files import file_sha256
from data.dataset import PREPARED, About, Dataset, Pair, check_sizes, check_values, open_folder
from data.inspection import facts, leaks, other_warnings, summary


def prepare(name: str, about: About, pairs: Iterable[Pair], settings: Mapping[str, Any]) -> Dataset:
    """Write data/prepared/NAME, completely or not at all, and read every pair back.

    Warnings are printed and stored in dataset.json.

    Raises:
        UserError: a label does not fit its image or the classes, two images have the same name, an
            image of a split is missing, or one image is in two splits and `about.leaks_refused`.
    """
    final = PREPARED / name
    working = PREPARED / f".{name}.partial"
    replaced = PREPARED / f".{name}.replaced"
    for leftover in (working, replaced):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        checks: dict[str, dict[str, Any]] = {}
        for pair in pairs:
            if pair.id in checks:
                raise UserError(f"Data set {name}: two images are called {pair.id}.")
            _write_pair(working, pair, about)
            checks[pair.id] = facts(pair, about)
        about = _with_splits(name, about, checks)
        leaking = leaks(checks)
        if leaking and about.leaks_refused:
            raise UserError(
                f"Data set {name}: {leaking[0].removesuffix('.')}, so that test would not be "
                f"unseen ({len(leaking)} such pairs): keep one of them, or set `duplicates: warn`."
            )
        values = {"name": name, **asdict(about), "settings": dict(settings)}
        values["warnings"] = leaking + other_warnings(about, checks)
        values["files"] = {
            str(path.relative_to(working)): file_sha256(path)
            for path in sorted(working.glob("*/*.npy"))
        }
        _write_json(working / "dataset.json", values)
        _write_json(working / "checks.json", checks)
        (working / "summary.csv").write_text(summary(checks))
        written = open_folder(working)
        for split in written.splits:
            for id in written.ids(split):
                written.read(id)
        # Renaming is atomic, removing is not: a kill must not leave half of the old data set.
        if final.exists():
            final.rename(replaced)
        working.rename(final)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    for sentence in values["warnings"]:
        print(f"warning: {sentence}")
    return open_folder(final)


def _with_splits(name: str, about: About, checks: Mapping[str, Mapping[str, Any]]) -> About:
    """`about` with the splits of the images; if it lists splits itself, they must be the same."""
    found = {(check["split"], id) for id, check in checks.items()}
    listed = {(split, id) for split, ids in about.splits.items() for id in ids}
    if listed and (differing := listed ^ found):
        names = sorted(id for _, id in differing)
        raise UserError(
            f"Data set {name}: {names[0]} is in the splits or among the images, not in both."
        )
    if listed:
        return about
    splits: dict[str, list[str]] = {}
    for id, check in checks.items():
        splits.setdefault(check["split"], []).append(id)
    return replace(about, splits={split: tuple(ids) for split, ids in splits.items()})


def _write_pair(folder: Path, pair: Pair, about: About) -> None:
    label_path = folder / "labels" / f"{pair.id}.npy"
    check_sizes(pair.image.shape[:2], pair.label.shape, label_path)
    check_values(pair.label, len(about.classes), label_path)
    image_path = folder / "images" / f"{pair.id}.npy"
    planes = np.ascontiguousarray(pair.image.transpose(2, 0, 1))  # (3, H, W)
    for path, array in ((image_path, planes), (label_path, pair.label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
