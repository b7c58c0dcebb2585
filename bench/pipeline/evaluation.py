"""What a trained run predicts of the images of its splits: a confusion matrix a scene, and the
labels; of a model with several seeds the matrices of all, and the labels of the first."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bench import cli, record
from bench.config import Suite
from bench.errors import out_of_memory
from bench.files import file_sha256, write_bytes
from bench.memory import clock
from bench.metrics import confusion
from bench.run import Run, device_facts, open_run, set_up

Splits = dict[str, dict[str, list[list[int]]]]
"""Confusion matrix (K + 1, K) by split and scene."""


def evaluate(suite: Suite, name: str, silent: bool = False) -> record.Record:
    """Predict every image of the suite's splits at its own resolution; keep what was predicted for
    `test`.

    Args:
        silent: without a progress bar.
    """
    line = open_run(suite, name)
    pictures = record.RESULTS / suite.suite / "predictions" / name
    device = set_up(suite.compute)
    dataset = line.dataset
    seeds = [one.seed for one in line.model.trainings]
    by_seed: dict[int, Splits] = {}
    seconds: dict[str, float] = {}
    status: record.Status = "ok"
    reason = None
    try:
        images = sum(len(dataset.ids(split)) for split in suite.splits)
        bar = cli.progress(images * len(seeds), name, "image", silent=silent)
        for seed in seeds:
            network = line.network(device, seed)
            first = seed == seeds[0]
            splits, took = _count(
                suite, line, network, device, pictures if first else None, bar.update
            )
            by_seed[seed] = splits
            seconds = seconds or took
        bar.close()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        status, reason = "oom", str(error).split("\n", 1)[0]
        pictures.mkdir(parents=True, exist_ok=True)  # the pipeline expects the folder
    return record.Record(
        stage="evaluate",
        name=name,
        settings=line.settings,
        status=status,
        reason=reason,
        values={
            "dataset": dataset.name,
            "classes": list(dataset.classes),
            "ignored": list(dataset.ignored),
            "rare": list(dataset.rare),
            "ceilings": dict(dataset.ceilings),
            "splits": by_seed[seeds[0]] if status == "ok" else {},
            **(record.other_seeds(by_seed) if status == "ok" else {}),
            "definition": (
                "pixels by true class (rows; the last one: unlabelled) and predicted class "
                "(columns), at the image's own resolution"
            ),
        },
        provenance=record.provenance(
            seed=seeds[0],
            data_sha256=file_sha256(dataset.root / "dataset.json"),
            seconds=seconds,
            **device_facts(device, suite.compute),
        ),
    )


def _count(
    suite: Suite,
    line: Run,
    network: torch.nn.Module,
    device: torch.device,
    pictures: Path | None,
    done: Callable[[], Any],
) -> tuple[Splits, dict[str, float]]:
    """Confusion matrices of all scenes, and seconds a scene; labels of `test` go to `pictures`."""
    dataset = line.dataset
    palette = [channel for colour in dataset.palette for channel in colour]
    splits: Splits = {split: {} for split in suite.splits}
    seconds: dict[str, float] = {}
    for split in suite.splits:
        for id in dataset.ids(split):
            image, label = dataset.read(id)
            with clock(device) as took:
                prediction = line.predict(network, image)
            seconds[id] = took[0]
            matrix = confusion(label.numpy(), prediction.numpy(), len(dataset.classes))
            splits[split][id] = matrix.tolist()
            if pictures is not None and split == "test":
                _write_labels(pictures / f"{id}.png", prediction, palette)
            done()
    return splits, seconds


def _write_labels(path: Path, prediction: Tensor, palette: list[int]) -> None:
    picture = Image.fromarray(prediction.numpy(), mode="P")
    picture.putpalette(palette + [0] * (768 - len(palette)))  # all 256: else fewer bits are kept
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    write_bytes(path, buffer.getvalue())
