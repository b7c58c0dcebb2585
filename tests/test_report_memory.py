"""The report on memory: predicted against allocated, growth with the image, the quality gate."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, tiny_suite, write_suite
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from bench.config import read_suite
from bench.record import Record
from bench.report import evaluations, findings, memory
from bench.report import runs as all_runs
from bench.report.bootstrap import Pairs
from bench.report.figures import accuracy, charts
from bench.report.load_records import Entry, Inputs, load_records
from bench.report.pages import collect, drawings
from bench.report.section import Image
from bench.tiling import grid

GIB = 2**30


def recorded(stage: str, values: dict[str, Any], status: Any = "ok") -> Record:
    return Record(stage, "x", {}, values, {}, status=status, reason=None)


def measured(predicted: int, allocated: int) -> dict[str, Any]:
    return {
        "device": "cpu",
        "height_px": 70,
        "width_px": 90,
        "available_bytes": 24 * GIB,
        "flops": 3_000_000_000,
        "parameters": 10,
        "latency_s": [0.3, 0.1, 0.2],
        "network_s": [0.1, 0.05],
        "meters": {
            "predicted": {"bytes": predicted, "host_bytes": 1, "definition": ""},
            "allocated": {"bytes": allocated, "definition": ""},
        },
        "part": {"height_px": 35, "width_px": 30, "predicted_bytes": 40, "allocated_bytes": 50},
    }


@pytest.fixture
def inputs(project: Any) -> Inputs:
    values = tiny_suite()
    values["runs"] = {name: values["runs"][name] for name in ("unet-patch", "unet-whole")}
    write_suite(project, values)
    suite = read_suite()
    lost = recorded("measure", {"device": "cpu", "available_bytes": 24 * GIB}, "oom")
    entries = tuple(
        Entry(name, run, suite.models[run.model], project, None, record)
        for (name, run), record in zip(
            suite.runs.items(), (recorded("measure", measured(99, 100)), lost), strict=True
        )
    )
    phase = {"height_px": 7, "width_px": 9, "batch": 2, "predicted_bytes": 6, "allocated_bytes": 5}
    steps = recorded("steps", {"device": "cpu", "models": {"unet": {"train": phase}}})
    return Inputs(suite, entries, {}, None, steps)


def test_predicted_against_allocated(inputs: Inputs) -> None:
    section = memory.allocator_section(inputs)
    frame = section.rows
    assert list(frame.columns) == [
        "run", "phase", "height_px", "width_px", "device", "predicted_bytes", "allocated_bytes",
        "ratio",
    ]  # fmt: skip
    assert frame.values.tolist() == [
        ["unet-patch", "inference", 70, 90, "cpu", 99, 100, 0.99],
        ["unet-patch", "inference", 35, 30, "cpu", 40, 50, 0.8],
        ["unet", "train", 7, 9, "cpu", 6, 5, 1.2],
    ]
    assert section.findings == [
        "3 comparisons, median error 20.00 %, at most 20.00 % (unet-patch, inference)."
    ]


def test_networks_of_other_projects_and_what_tools_say() -> None:
    def row(network: str, predicted: int, others: dict[str, int]) -> dict[str, Any]:
        common = {"kind": "backbone", "mode": "training", "precision": "fp32", "side_px": 128}
        sizes = {"allocated_bytes": 100 * 2**20, "predicted_bytes": predicted * 2**20}
        others = {tool: size * 2**20 for tool, size in others.items()}
        return {"key": network, "network": network, **common, **sizes, "others": others}

    rows = [
        row("one", 100, {"MemTracker": 90, "kitsune": 150, "torchinfo": 40}),
        row("two", 102, {"kitsune": 130, "torchinfo": 60}),
    ]
    section = memory.estimates_section(recorded("estimates", {"rows": rows}))
    assert section.rows.ratio.tolist() == [1.0, 1.02]
    assert section.rows.memtracker_bytes.isna().tolist() == [False, True]
    (said,) = section.findings
    assert "predicted 1.00 and 1.90 % of 2; memtracker 10.00 and 10.00 % of 1" in said
    drawn = charts.estimates(section.rows).axes[0]
    assert sum(len(one.get_offsets()) for one in drawn.collections) == 2 + 1 + 2 + 2
    assert (drawn.get_xscale(), drawn.get_yscale()) == ("log", "log")
    assert not memory.estimates_section(None)


def test_what_a_lost_run_reported_is_in_its_line(inputs: Inputs) -> None:
    frame = all_runs.runs(inputs.entries).set_index("run")
    assert frame.available_bytes.tolist() == [24 * GIB] * 2
    assert frame.latency_s["unet-patch"] == 0.2
    assert frame.latency_spread_s["unet-patch"] == pytest.approx(0.2)
    assert frame.network_s["unet-patch"] == pytest.approx(0.075)
    assert frame.flops["unet-patch"] == 3_000_000_000
    assert pd.isna(frame.allocated_bytes["unet-whole"])


def runs(**mious: float | None) -> pd.DataFrame:
    rows = [
        {
            "dataset": "tiny",
            "run": name,
            "network": "unet" if name != "floor" else "colour",
            "strategy": "whole",
            "status": "ok",
            "miou": miou,
            "allocated_bytes": (number + 1) * 2**20,
            "available_bytes": 24 * GIB,
        }
        for number, (name, miou) in enumerate(mious.items())
    ]
    frame = pd.DataFrame(rows, columns=list(all_runs.runs([]).columns))
    frame["share_of_best"] = evaluations.shares_of_best(frame)
    return frame


def summary(frame: pd.DataFrame) -> dict[str, str]:
    found = findings.summary(frame, "allocated_bytes", Pairs((), {}))
    return {one.topic: one.text for one in found}


def test_little_memory_is_no_merit_of_a_run_that_hardly_segments() -> None:
    frame = runs(frugal=0.40, good=0.46, best=0.50, unknown=None)
    assert frame.share_of_best.tolist()[:3] == [0.8, 0.92, 1.0]
    said = summary(frame)
    assert said["Least memory"].startswith("of those that reach 90 % of the best mIoU, good:")
    assert said["Quality gate"] == "1 of 3 ranked runs miss 90 % of the best mIoU: frugal."
    passing = runs(good=0.46, best=0.50)
    said = summary(passing)
    assert said["Quality gate"] == "All 2 ranked runs reach 90 % of the best mIoU."


def marks(figure: Figure) -> list[tuple[float, bool]]:
    """(bytes, whether it is hollow) of each marker."""
    found = []
    for dots in figure.axes[0].collections:
        if len(dots.get_offsets()) == 1:
            hollow = tuple(dots.get_facecolor()[0][:3]) == (1.0, 1.0, 1.0)
            found.append((float(dots.get_offsets()[0][0]), hollow))
    return found


def test_what_ran_out_of_memory_stands_open_at_all_that_the_device_has() -> None:
    frame = runs(good=0.46, lost=0.50)
    frame.loc[1, ["allocated_bytes", "status"]] = [None, "oom"]
    frame["allocated_bytes"] = frame.allocated_bytes.astype("Int64")
    drawn = marks(accuracy.accuracy_memory(frame, "allocated_bytes", "measured"))
    assert sorted(drawn) == [(2**20, False), (24 * GIB, True)]


def line(side: int, patch: int) -> dict[str, int]:
    """A strategy that takes 7 MiB on the device, 10 bytes a pixel and 3 a patch on the host."""
    patches = len(grid(side, side, patch, 0))
    return {
        "side_px": side,
        "patches": patches,
        "device_bytes": 7 * 2**20 + patches % 2,
        "reserved_bytes": 8 * 2**20,
        "host_bytes": 10 * side**2 + 3 * patches,
        "flops": 1000 * patches,
    }


@pytest.mark.parametrize("patch", [300, 100], ids=["rounded up", "fits"])
def test_growth_is_drawn_on_by_pixels_and_patches(patch: int) -> None:
    known = [line(side, patch) for side in (1000, 2000)]
    beyond = [line(side, patch) for side in (4000, 8000)]
    reported = [{key: size[key] for key in ("side_px", "patches")} for size in beyond]
    frame = memory.growth_points(recorded("predict", {"growth": {"x": [*known, *reported]}}))
    assert frame.worked_out.tolist() == [True, True, False, False]
    for name in ("host_bytes", "flops"):
        assert frame[name].tolist()[2:] == pytest.approx([size[name] for size in beyond], rel=1e-6)
    assert frame.device_bytes.tolist()[2:] == [known[-1]["device_bytes"]] * 2
    slopes = memory.growth_laws(frame).iloc[0]
    said = [memory.law(slopes[name]) for name in charts.QUANTITIES]
    assert said == ["O(1)", "O(pixels)", "pixels^0.95" if patch == 300 else "O(pixels)"]
    assert slopes.host_bytes_a_pixel == pytest.approx(10, rel=0.01)
    assert memory.law(0.5) == "pixels^0.50"
    assert len(charts.growth(frame).axes) == 3
    assert memory.growth_points(None).empty


def test_what_explains_the_papers_figures_is_reported() -> None:
    row = {
        "row": "X / global",
        "network": "unet",
        "strategy": "whole",
        "input_px": 2448,
        "published_mb": 2000.0,
        "predicted_mb": 900.0,
        "modelled_mb": 1900.0,
        "ratio": 0.95,
        "left_out_error": 0.07,
        "note": "explained within 15%",
    }
    reported = {
        "rows": 1.0,
        "rank_correlation": 0.75,
        "median_left_out_error": 0.16,
        "explained": 1.0,
    }
    found = {
        "rows": [row],
        "fit": {"context_mb": 1078.0, "holding": 1.009, "workspace": 0.0},
        "summary": reported,
        "variants": [{"network": "unet", "choice": {"width": 32}, **reported}],
    }
    predicted = recorded("predict", {"published": found})
    section = memory.explained_section(predicted)
    frame = section.rows
    assert frame.iloc[0].to_dict() == {k: v for k, v in row.items() if k != "left_out_error"}
    said = " ".join(section.findings)
    assert "1078 MiB + 1.009 × reserved + 0.000 ×" in said
    assert "Rank correlation of modelled and published 0.75; median error" in said
    assert "unet with width 32 (16.0 %, rank 0.75)" in said
    nothing = memory.explained_section(None)
    assert nothing.rows.empty
    assert not nothing.findings
    assert charts.paper_model(frame).axes[0].get_xlabel() == "published: gpustat"


def test_published_accuracy_against_measured_memory() -> None:
    """One line a published setting, the released variant of several; its figure names the front."""

    def row(run: str, done: str, published: str | None, nvml: float, **more: Any) -> dict[str, Any]:
        strategy = run.rpartition("-")[2]
        return {"card": "a GPU", "run": run, "done": done, "strategy": strategy} | {
            "published": published,
            "published_miou": 0.6,
            "nvml_bytes": nvml * GIB,
            "published_bytes": GIB,
            **more,
        }

    on_gpu = pd.DataFrame(
        [
            row("unet-whole", "", "UNet / global", 2.5),
            row("isdnet", "corrected", "ISDNet / whole", 1.5),
            row("isdnet", "as released", "ISDNet / whole", 1.1, published_miou=0.7),
            row("glnet-collapsed", "", None, 4.0, published_miou=None),
            row("fpn-whole", "", "FPN / global", 1.2) | {"card": "another GPU"},
        ]
    )
    predicted = memory.predicted_section(None).rows
    found = memory.paper_accuracy_section(on_gpu, predicted)
    lines = found.rows[["run", "done", "ratio"]].to_numpy().tolist()
    assert lines == [["isdnet", "as released", pytest.approx(1.1)], ["unet-whole", "", 2.5]]
    assert found.findings == [
        "Within 15 % of the published memory: 1 of 2 settings.",
        "More than twice the published memory: UNet / global (2.50 ×).",
    ]
    figure = found.figures[-1]
    assert isinstance(figure, Image)
    assert figure.draw
    axes = figure.draw().axes[0]
    assert {text.get_text() for text in axes.texts} == {"2 GiB", "ISDNet", "U-Net"}
    bold = {text.get_text() for text in axes.texts if text.get_fontweight() == "bold"}
    assert bold == {"ISDNet"}  # the other one is larger and less accurate
    assert not memory.paper_accuracy_section(on_gpu.iloc[:0], predicted)


SUITES = ("earthcover", "earthcover-long", "idrid", "mosaic")
"""Those with committed records."""


def labels(axes: Axes) -> list[tuple[str, Bbox]]:
    """Texts within the axes, without their leader lines."""
    return [(text.get_text(), Text.get_window_extent(text)) for text in axes.texts]


def segments(axes: Axes) -> list[np.ndarray]:
    """Lines in pixels, as places close to one another."""
    found = []
    for line in axes.lines:
        x, y = line.get_xydata().T
        if line.get_drawstyle() == "steps-post":
            x, y = np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]
        found.append(line.get_transform().transform(np.stack([x, y], 1)))
    for bars in axes.collections:
        if isinstance(bars, LineCollection):
            found += [axes.transData.transform(each) for each in bars.get_segments()]
    shares = np.linspace(0, 1, 400)[:, None]
    return [
        one + (other - one) * shares for line in found for one, other in itertools.pairwise(line)
    ]


def leaders(axes: Axes) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Leader lines: the label, its point, and places along the line, in pixels."""
    found = []
    for text in axes.texts:
        arrow = getattr(text, "arrow_patch", None)
        if arrow:
            ends = arrow.get_transform().transform(arrow.get_path().vertices)[[0, -1]]
            along = ends[0] + (ends[1] - ends[0]) * np.linspace(0, 1, 400)[:, None]
            found.append((text.get_text(), axes.transData.transform(text.xy), along))
    return found


@pytest.mark.parametrize("suite", SUITES)
def test_no_label_covers_anything(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No label on another one, on a mark, a tick or a line, or outside the axes; no leader line over
    a label or a mark, but for marks that overlap its own."""
    monkeypatch.chdir(ROOT)
    content = collect(load_records(read_suite(Path(f"suites/{suite}.yaml"))))
    for name, draw, _ in drawings(content):
        figure = draw()
        figure.draw_without_rendering()
        for axes in figure.axes:
            inner, found = axes.get_window_extent().padded(1), labels(axes)
            ticks = [t.get_window_extent() for t in axes.get_xticklabels() + axes.get_yticklabels()]
            marks = [
                place
                for one in axes.collections
                for place in axes.transData.transform(np.reshape(one.get_offsets(), (-1, 2)))
                if not isinstance(one, LineCollection)
            ]
            lines = np.concatenate([*segments(axes), np.empty((0, 2))])
            for (one, box), (other, further) in itertools.combinations(found, 2):
                assert not box.overlaps(further), (name, one, other)
            for text, box in found:
                assert inner.containsx(box.x0), (name, text)
                assert inner.containsx(box.x1), (name, text)
                assert inner.containsy(box.y0), (name, text)
                assert inner.containsy(box.y1), (name, text)
                assert not any(box.overlaps(tick) for tick in ticks), (name, text)
                assert not any(box.contains(*place) for place in marks), (name, text)
                (x, y), tight = lines.T, box.shrunk(0.9, 0.7)
                within = (x > tight.x0) & (x < tight.x1) & (y > tight.y0) & (y < tight.y1)
                assert not within.any(), (name, text)
            point = axes.figure.dpi / 72  # in pixels
            for text, own, along in leaders(axes):
                for other, box in found:
                    inside = [box.shrunk(0.96, 0.9).contains(*place) for place in along[::4]]
                    assert other == text or not any(inside), (name, text, other)
                for mark in marks:
                    if np.hypot(*(mark - own)) > 9 * point:
                        assert np.hypot(*(along - mark).T).min() > 3 * point, (name, text)
