"""`glnet-bench what-if RUN KEY=VALUE ...`: what one setting of a method changes, all else equal."""

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from numpy.typing import NDArray

from bench import cli, metrics
from bench.config import Split, Suite, parse_setting, read_suite
from bench.memory import predict_memory
from bench.run import Run, open_run, set_up


@dataclass(frozen=True)
class Outcome:
    """What a trained network predicts of a split with one setting."""

    labels: list[NDArray[Any]]
    """(H, W) uint8 an image."""
    miou: float
    """0..1."""
    seconds: list[float]
    """An image, from host to host."""
    device_bytes: int
    """Predicted for the largest image."""


def command(parser: argparse.ArgumentParser) -> None:
    """Evaluate a trained run again with one setting of its method changed, and compare."""
    parser.add_argument("run", metavar="RUN", help="a key of the table runs")
    parser.add_argument(
        "settings",
        metavar="KEY=VALUE",
        nargs="+",
        help="a setting of the method's spec and its value in YAML, one comparison each; "
        "for instance test_time=[flips] or official=[template-merge]",
    )
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.set_defaults(work=work)


def work(arguments: argparse.Namespace) -> None:
    """Print a table with a line a setting."""
    cli.require_root()
    suite = read_suite()
    changes = [parse_setting(text) for text in arguments.settings]
    print(compare(suite, arguments.run, changes, arguments.split).to_string(index=False))


def compare(suite: Suite, name: str, changes: list[tuple[str, Any]], split: Split) -> pd.DataFrame:
    """A line for the run as it is, and one for each change alone."""
    run = open_run(suite, name)
    # All of them first: a typo need not wait for the others' work.
    varied = [run, *(run.varied(**{key: value}) for key, value in changes)]
    labels = ["as it is", *(f"{key}={value}" for key, value in changes)]
    rows: list[dict[str, Any]] = []
    before: Outcome | None = None
    for label, one in zip(labels, varied, strict=True):
        after = outcome(one, set_up(suite.compute), split, f"{name} · {label}")
        before = before or after
        pairs = list(zip(before.labels, after.labels, strict=True))
        differing = sum(int((one != other).sum()) for one, other in pairs)
        rows.append(
            {
                "setting": label,
                "labels changed %": 100 * differing / sum(one.size for one, _ in pairs),
                f"mIoU {split} %": 100 * after.miou,
                "s an image": statistics.median(after.seconds),
                "predicted device MiB": after.device_bytes / 2**20,
            }
        )
    return pd.DataFrame(rows).round(4)


def outcome(run: Run, device: torch.device, split: Split, title: str) -> Outcome:
    """Evaluate one run on one split."""
    network, dataset = run.network(device), run.dataset
    ids = dataset.ids(split)
    labels, seconds, matrices = [], [], []
    largest = (0, 0)
    bar = cli.progress(len(ids), title, "image")
    for id in ids:
        image, truth = dataset.read(id)
        begun = time.perf_counter()
        found = run.predict(network, image)  # ends on the host, so that nothing is still running
        seconds.append(time.perf_counter() - begun)
        labels.append(found.numpy())
        matrices.append(metrics.confusion(truth.numpy(), found.numpy(), len(dataset.classes)))
        size = (image.shape[-2], image.shape[-1])
        largest = max(largest, size, key=lambda side: side[0] * side[1])
        bar.update()
    bar.close()
    predicted = predict_memory(run, largest, device.type)
    return Outcome(
        labels,
        metrics.miou(metrics.total(matrices), dataset.classes, dataset.ignored),
        seconds,
        predicted.device_bytes,
    )
