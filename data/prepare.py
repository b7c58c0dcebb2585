"""Stage `prepare`: raw files -> the one format that `data.dataset` reads, with a check of every
pair beside it.

    summary.csv   pixels and share of each class, by split
    checks.json   size, classes, unlabelled share and mean colour of each image
"""

import argparse
import csv
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bench import stage
from bench.config import read_suite
from bench.errors import Refusal
from bench.files import file_sha256
from data.dataset import (
    PREPARED,
    UNLABELLED,
    About,
    Dataset,
    Pair,
    check_sizes,
    check_values,
    open_folder,
)
from data.source import open_source


def prepare(name: str, about: About, pairs: Iterable[Pair], settings: Mapping[str, Any]) -> Dataset:
    """Write data/prepared/NAME, whole or not at all, and read every pair back.

    Raises:
        Refusal: a pair does not fit (size, classes), two images have one name, or a split's image
            is missing.
    """
    final = PREPARED / name
    working = PREPARED / f".{name}.partial"
    replaced = PREPARED / f".{name}.replaced"
    for left_by_a_kill in (working, replaced):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    try:
        checks: dict[str, dict[str, Any]] = {}
        for pair in pairs:
            if pair.id in checks:
                raise Refusal(f"Data set {name}: two images are called {pair.id}.")
            checks[pair.id] = _write_pair(working, pair, about)
        listed = {(split, id) for split, ids in about.splits.items() for id in ids}
        differing = listed ^ {(check["split"], id) for id, check in checks.items()}
        if differing:
            names = sorted(id for _, id in differing)
            raise Refusal(f"Data set {name}: the splits and the images differ in {names[0]}.")
        values = {"name": name, **asdict(about), "settings": dict(settings)}
        values["files"] = {
            str(path.relative_to(working)): file_sha256(path)
            for path in sorted(working.glob("*/*.npy"))
        }
        _write_json(working / "dataset.json", values)
        _write_json(working / "checks.json", checks)
        (working / "summary.csv").write_text(_summary(about, checks))
        written = open_folder(working)
        for split in written.splits:
            for id in written.ids(split):
                written.read(id)
        # Removing takes a while, renaming does not: a kill never leaves half of the old data set.
        if final.exists():
            final.rename(replaced)
        working.rename(final)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    return open_folder(final)


def _write_pair(folder: Path, pair: Pair, about: About) -> dict[str, Any]:
    """Write one image and its label; returns what is to know of them."""
    label_path = folder / "labels" / f"{pair.id}.npy"
    check_sizes(pair.image.shape[:2], pair.label.shape, label_path)
    check_values(pair.label, len(about.classes), label_path)
    image_path = folder / "images" / f"{pair.id}.npy"
    planes = np.ascontiguousarray(pair.image.transpose(2, 0, 1))  # (3, H, W)
    for path, array in ((image_path, planes), (label_path, pair.label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    digest = hashlib.sha256(str(planes.shape).encode())
    digest.update(planes.data)
    counts = np.bincount(pair.label.ravel(), minlength=UNLABELLED + 1)
    return {
        "split": pair.split,
        "height_px": pair.label.shape[0],
        "width_px": pair.label.shape[1],
        "mean_colour": pair.image.reshape(-1, 3).mean(0).tolist(),
        "pixels": {
            **{name: int(counts[index]) for index, name in enumerate(about.classes)},
            "unlabelled": int(counts[UNLABELLED]),
        },
        "pixels_sha256": digest.hexdigest(),
    }


def _summary(about: About, checks: Mapping[str, Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "class", "pixels", "share"])
    for split in about.splits:
        pixels: Counter[str] = Counter()
        for check in checks.values():
            if check["split"] == split:
                pixels.update(check["pixels"])
        for name, count in pixels.items():
            writer.writerow([split, name, count, count / max(pixels.total(), 1)])
    return text.getvalue()


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


def work(arguments: argparse.Namespace) -> None:
    """Prepare one data set of params.yaml."""
    source, settings, raw = open_source(read_suite(), arguments.dataset)
    dataset = prepare(
        arguments.dataset, source.about(settings), source.pairs(settings, raw), asdict(settings)
    )
    print(f"{dataset.root}: " + ", ".join(f"{len(i)} {s}" for s, i in dataset.splits.items()))


if __name__ == "__main__":
    stage.main(work, dataset="a key of the table datasets")
