"""Plain and collapsed heads side by side: as benchmarks, and as the record of the report."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GLNET, THREE_PHASES

import bench.experiments.collapsed_head
from bench import record
from bench.config import read_suite
from bench.experiments.collapsed_head import PATHS, STRATEGY, work
from bench.latency import time_prediction
from bench.report.memory import collapsed_head_section
from bench.run import clock, run_of, set_up
from glnet.spec import Spec

PATCHES = {"global_px": 252, "patch_px": 252, "overlap_px": 25, "sub_batch": 1}


@pytest.mark.parametrize("path", PATHS)
def test_latency_of_a_path(benchmark: Any, path: str) -> None:
    """ResNet-50 and the paper's widths, on nine patches of a quarter of the paper's."""
    timed = benchmark.enabled
    side = 600 if timed else 100
    settings = PATCHES if timed else {**GLNET, "phases": THREE_PHASES}
    spec = Spec(**{**settings, "head": path})
    device = set_up(read_suite().compute) if timed else torch.device("cpu")
    run = run_of("glnet", STRATEGY, spec, 7)
    network = run.build().to(device)
    image = torch.randint(0, 255, (3, side, side), dtype=torch.uint8)

    def predict() -> torch.Tensor:
        return run.predict(network, image)

    with clock(device) as took:
        predict()
    labels = time_prediction(benchmark, "end-to-end", predict, network, device, took[0])
    assert labels.shape == (side, side)
    benchmark.extra_info |= {"height_px": side, "width_px": side}


def test_the_record_of_both_paths_is_a_table_of_two_lines(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bench.experiments.collapsed_head, "SETTINGS", {**GLNET, "phases": THREE_PHASES}
    )
    work(argparse.Namespace(side=[120], rounds=1))
    found = record.read(record.RESULTS / "fast" / "test-machine.json")
    section = collapsed_head_section(found)
    frame = section.rows
    assert set(section.columns) < set(frame.columns)
    assert list(frame.columns[:4]) == ["path", "height_px", "width_px", "threads"]
    assert list(frame.path) == ["plain", "collapsed"]
    plain, collapsed = frame.to_dict("records")
    assert collapsed["flops"] < plain["flops"]
    assert plain["labels_equal_share"] == 1
    assert collapsed["labels_equal_share"] > 0.9999
    for path, line in zip(PATHS, (plain, collapsed), strict=True):
        one = found.values["sides"]["120"][path]
        assert len(one["repetitions"]) == 1
        assert sum(one["labels_px"]) == 120 * 120
        assert sum(count > 0 for count in one["labels_px"]) > 1, "labels that can differ"
        assert 0 < line["network_s"] < line["wall_s"]
        assert line["predicted_weights_bytes"] < line["predicted_bytes"] < line["peak_rss_bytes"]
        assert line["threads"] == 1


def test_no_record_is_a_table_without_lines() -> None:
    assert collapsed_head_section(None).rows.empty
