"""Stage `evaluate`: for each run a confusion matrix per scene, and the predicted labels.

A model with several seeds has matrices of all seeds, and labels of the first."""

import argparse
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from bench import cli, record
from bench.config import Suite, read_suite
from bench.errors import Status, out_of_memory
from bench.files import file_sha256, write_bytes
from bench.parallel import parallel_map
from bench.pipeline import cache
from bench.pipeline.details import ABOUT, Details
from bench.run import Run, Scene, device_facts, open_run, set_up

PRELOAD = ("bench.run", "bench.pipeline.details", "segmentation_models_pytorch")
AGREEMENT = (
    "by split and scene the share of pixels, 0..1, that get the label which the same weights and "
    "strategy give in float32"
)
Splits = dict[str, dict[str, list[list[int]]]]
"""Confusion matrix (K + 1, K) by split and scene."""


def evaluate(run: Run, suite: Suite, silent: bool = False) -> record.Record:
    """Predict every image of the suite's splits at its own resolution, and write the labels of `test`.
    A run in lower precision is also run in float32 for comparison, which takes more time and memory.

    Args:
        silent: show no progress bar.
    """
    labels = record.RESULTS / suite.suite / "predictions" / run.name
    device = set_up(suite.compute)
    dataset = run.dataset
    seeds = run.seeds
    by_seed: dict[int, Splits] = {}
    details: dict[str, dict[str, Any]] = {}
    agreement: dict[str, dict[str, float]] = {}
    low_precision = run.config.precision != "fp32"
    seconds: dict[str, float] = {}
    status: Status = "ok"
    reason = None
    try:
        images = sum(len(dataset.ids(split)) for split in suite.splits)
        bar = cli.progress(images * len(seeds), run.name, "image", silent=silent)
        for seed in seeds:
            network = run.network(device, seed)
            by_seed[seed] = {split: {} for split in suite.splits}
            for split, matrices in by_seed[seed].items():
                counts = Details(len(dataset.classes))
                scenes = run.scenes(network, split, suite.details)
                reference: Iterable[Scene | None] = repeat(None)
                if low_precision and seed == seeds[0]:
                    reference = run.in_float32.scenes(network, split)
                for scene, expected in zip(scenes, reference, strict=False):  # `repeat` is endless
                    matrices[scene.id] = scene.matrix.tolist()
                    if suite.details:
                        truth, prediction = scene.truth.numpy(), scene.labels.numpy()
                        coverage = run.coverage(*truth.shape)
                        counts.add(scene.id, truth, prediction, scene.scores, coverage)
                    if expected:
                        equal = (scene.labels == expected.labels).float().mean().item()
                        agreement.setdefault(split, {})[scene.id] = equal
                    if seed == seeds[0]:
                        seconds[scene.id] = scene.seconds
                        if split == "test":
                            _write_labels(labels / f"{scene.id}.png", scene.labels, dataset.palette)
                    bar.update()
                if suite.details:
                    details.setdefault(str(seed), {})[split] = counts.values
        bar.close()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        status, reason = "oom", str(error).split("\n", 1)[0]
        by_seed, details, agreement = {}, {}, {}
        labels.mkdir(parents=True, exist_ok=True)  # the pipeline expects the folder
    return record.Record(
        stage="evaluate",
        name=run.name,
        settings=run.settings,
        status=status,
        reason=reason,
        values={
            "dataset": dataset.name,
            "classes": list(dataset.classes),
            "ignored": list(dataset.ignored),
            "rare": list(dataset.rare),
            "ceilings": dict(dataset.ceilings),
            "splits": by_seed.get(seeds[0], {}),
            **record.other_seeds(by_seed),
            **({"details": details, **ABOUT} if details else {}),
            **({"agreement": agreement, "agreement_definition": AGREEMENT} if agreement else {}),
            "definition": (
                "pixels by true class (rows; the last one: unlabelled) and predicted class "
                "(columns), at the image's own resolution"
            ),
        },
        provenance=record.provenance(
            seed=seeds[0],
            data_sha256=file_sha256(dataset.root / "dataset.json"),
            checkpoint_sha256=file_sha256(run.checkpoint()),
            seconds=seconds,
            **device_facts(device, suite.compute),
        ),
    )


def _write_labels(path: Path, prediction: Tensor, palette: Sequence[tuple[int, int, int]]) -> None:
    image = Image.fromarray(prediction.numpy(), mode="P")
    channels = [channel for colour in palette for channel in colour]
    image.putpalette(
        channels + [0] * (768 - len(channels))
    )  # all 256, or else Pillow stores fewer bits
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    write_bytes(path, buffer.getvalue())


def evaluate_all(suite: Suite, names: list[str]) -> list[Path]:
    """Evaluate several runs, `compute.jobs` at once, and write their records."""
    jobs = min(suite.compute.jobs, len(names))
    # Suites list simple runs first; start with the slow ones.
    return parallel_map(
        _evaluate_one,
        [(suite, name, jobs) for name in reversed(names)],
        "evaluate",
        "run",
        jobs=jobs,
        preload=PRELOAD,
    )


def _evaluate_one(suite: Suite, name: str, jobs: int) -> Path:
    path = record.path_of(suite.suite, "evaluate", name)
    share = replace(suite, compute=suite.compute.shared(jobs))
    record.write(path, evaluate(open_run(share, name), share, silent=jobs > 1))
    cache.mark_fresh(suite, "evaluate", name)
    return path


def work(arguments: argparse.Namespace) -> None:
    """Evaluate runs of params.yaml on the suite's splits; all runs if none is named."""
    suite = read_suite()
    for path in evaluate_all(suite, cache.requested(suite, "evaluate", arguments)):
        print(path)


if __name__ == "__main__":
    cli.main(work, cache.add_arguments)
