"""`glnet-bench what-if RUN KEY=VALUE ...`: the effect of single settings of a method."""

import argparse
import math
import statistics
from typing import Any

import pandas as pd

from bench import cli
from bench.config import Split, Suite, read_suite
from bench.memory.runs import predict_run
from bench.run import Scene, open_run, require_inputs, set_up


def command(parser: argparse.ArgumentParser) -> None:
    """Evaluate a trained run with one setting of its method changed, and compare."""
    parser.add_argument("run", metavar="RUN", help="a key of the table runs")
    parser.add_argument(
        "settings",
        metavar="KEY=VALUE",
        nargs="+",
        help="a setting of the method's spec and its value in YAML, one comparison each; "
        "for instance test_time=[flips] or official=[template-merge]",
    )
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.set_defaults(work=work, in_root=True)


def work(arguments: argparse.Namespace) -> None:
    """Print a table with a row per setting."""
    suite = read_suite()
    changes = [cli.parse_setting(text) for text in arguments.settings]
    print(compare(suite, arguments.run, changes, arguments.split).to_string(index=False))


def compare(suite: Suite, name: str, changes: list[tuple[str, Any]], split: Split) -> pd.DataFrame:
    """A row for the run as it is, and one for each change."""
    run = open_run(suite, name)
    require_inputs(suite, [run.config.model])
    # Check all settings before evaluating any.
    varied = [run, *(run.varied(**{key: value}) for key, value in changes)]
    labels = ["as it is", *(f"{key}={value}" for key, value in changes)]
    device = set_up(suite.compute)
    rows: list[dict[str, Any]] = []
    before: list[Scene] = []
    for label, one in zip(labels, varied, strict=True):
        scenes = one.scenes(one.network(device), split)
        count = len(run.dataset.ids(split))
        after = list(cli.with_progress(scenes, count, f"{name} · {label}", "image"))
        before = before or after
        pairs = [(old.labels, new.labels) for old, new in zip(before, after, strict=True)]
        differing = sum(int((old != new).sum()) for old, new in pairs)
        height, width = max((scene.labels.shape for scene in after), key=math.prod)
        predicted = predict_run(one, (height, width), device.type)
        rows.append(
            {
                "setting": label,
                "labels changed %": 100 * differing / sum(old.numel() for old, _ in pairs),
                f"mIoU {split} %": 100 * one.model.miou([scene.matrix for scene in after]),
                "s an image": statistics.median(scene.seconds for scene in after),
                "predicted device MiB": predicted.device_bytes / 2**20,
            }
        )
    return pd.DataFrame(rows).round(4)
