"""Interactive figures and the tables beside them, by hand."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT, write_suite
from test_report import GOOD, MIB, PROVENANCE, suite_lines, write_evaluation, write_measurement

from bench import record
from bench.config import read_suite
from bench.memory.prediction import timeline
from bench.memory.tracker import Event
from bench.record import Record
from bench.report import evaluations, style
from bench.report import runs as all_runs
from bench.report.figures import accuracy, curves, interactive, palette
from bench.report.figures.chart import Axis, Chart, marks
from bench.report.load_records import Entry, load_records
from bench.report.section import Plot
from bench.report.site import at, data

BAD = [[2, 1, 0], [3, 0, 0], [0, 0, 0], [0, 0, 0]]  # red 2/6, green 0/4


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """Two runs that were measured, and one that ran out of 128 MiB."""
    monkeypatch.chdir(tmp_path)
    write_suite(tmp_path, suite_lines())
    write_evaluation("unet-patch", {"d": BAD})
    write_measurement("unet-patch", 40 * MIB)
    write_evaluation("glnet-collaborative", {"d": GOOD})
    write_measurement("glnet-collaborative", 80 * MIB)
    write_evaluation("unet-whole", {"d": GOOD})
    lost = Record("measure", "unet-whole", {}, {"device": "cpu", "available_bytes": 128 * MIB},
                  PROVENANCE, "oom", "out of memory")  # fmt: skip
    record.write(record.path_of("tiny", "measure", "unet-whole", "test-machine"), lost)
    return list(load_records(read_suite()).entries)


def made(entries: list[Entry], dataset: str = "tiny") -> Plot:
    runs = all_runs.runs(entries)
    told = ("allocated_bytes", "on a desk", lambda run: f"runs/{run}.html")
    return accuracy.with_menus("figure-1", dataset, entries, runs, *told)


def traces(figure: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in figure["data"] if trace["x"] != [None]}


def test_every_choice_is_a_figure(entries: list[Entry]) -> None:
    found = made(entries)
    assert set(found.content["variants"]) == {
        f"{meter}|test|{definition}"
        for meter in ("allocated", "predicted", "rss")
        for definition in ("miou", "miou_official", "miou_without_rare")
    }
    known = {menu["name"]: sorted(menu["known"]) for menu in found.menus}
    assert known["meter"] == ["allocated", "predicted", "rss"]
    assert known["split"] == ["test"]
    assert [menu["chosen"] for menu in found.menus] == ["allocated", "test", "miou"]
    assert all(menu["known"] < menu["texts"].keys() for menu in found.menus)
    figure = traces(found.content["variants"]["allocated|test|miou"])
    assert figure["U-Net"]["x"] == [40 * MIB]
    assert figure["U-Net"]["y"] == pytest.approx([100 * (2 / 6 + 0) / 2], abs=1e-3)
    assert figure["GLNet"]["y"] == [50]
    assert figure["out of memory"]["x"] == [128 * MIB]
    assert figure["out of memory"]["marker"]["symbol"] == ["circle-open"]
    assert "published" not in figure
    assert "80.0 MiB" in found.content["hover"]["glnet-collaborative"]
    assert found.content["pages"]["unet-patch"] == "runs/unet-patch.html"
    # From 40 to 80 MiB one sixth, then a half of no width: a twelfth of the rectangle.
    assert "Hypervolume 0.083" in found.note
    assert "unet-whole" not in found.note, "what ran out of memory is on no front"


def test_seeds_have_bars(entries: list[Entry]) -> None:
    first = next(entry for entry in entries if entry.name == "glnet-collaborative")
    assert first.evaluated
    values = {**first.evaluation, "other_seeds": {"1": {"test": {"d": BAD}}}}
    several = replace(first, evaluated=replace(first.evaluated, values=values))
    mixed = [several if entry is first else entry for entry in entries]
    figure = traces(made(mixed).content["variants"]["allocated|test|miou"])
    mean = 100 * (1 / 2 + 1 / 6) / 2
    assert figure["GLNet"]["y"] == pytest.approx([mean], abs=1e-3)
    assert figure["GLNet"]["error_y"]["array"] == pytest.approx([50 - mean], abs=1e-3)
    assert figure["GLNet"]["error_y"]["arrayminus"] == pytest.approx([mean - 100 / 6], abs=1e-3)
    assert figure["U-Net"]["error_y"] == {"visible": False}  # below the best single class


def test_published_points_stand_behind_with_the_papers_line(entries: list[Entry]) -> None:
    figure = made(entries, "deepglobe").content["variants"]["allocated|test|miou"]
    theirs = traces(figure)["published"]
    assert figure["data"][0] is theirs
    assert 1865 * MIB in theirs["x"]
    assert 71.6 in theirs["y"]
    lines = [shape for shape in figure["layout"]["shapes"] if shape.get("x0") == 2 * 2**30]
    assert len(lines) == 1


def test_the_hypervolume_by_hand() -> None:
    assert evaluations.hypervolume([], 10) == 0
    assert evaluations.hypervolume([(2, 0.5)], 10) == pytest.approx(0.4)
    assert evaluations.hypervolume([(2, 0.5), (6, 1.0)], 10) == pytest.approx((4 * 0.5 + 4) / 10)
    assert evaluations.hypervolume([(12, 1.0)], 10) == 0


def test_an_ablation_says_in_what_runs_differ(entries: list[Entry]) -> None:
    runs = all_runs.runs(entries)
    frame = all_runs.ablation_section(entries, runs, "allocated_bytes").rows
    assert list(frame.run) == ["unet-whole", "unet-patch"]  # GLNet has one run
    assert list(frame.settings) == ["strategy whole", "strategy patch"]
    assert list(frame.difference_points) == pytest.approx([0, 100 * (1 / 6 - 1 / 2)])
    assert frame.memory_ratio.isna().all()
    assert frame.agreement.isna().all()


def test_a_run_in_lower_precision_stands_beside_float32(entries: list[Entry]) -> None:
    entries = [one for one in entries if one.name in ("unet-whole", "unet-patch")]
    lowered = replace(entries[0], run=replace(entries[0].run, precision="bf16"))
    assert lowered.evaluated
    values = {
        **lowered.evaluated.values,
        "agreement": {"val": {"v": 0.1}, "test": {"a": 1, "b": 0.5}},
    }
    entries[0] = replace(lowered, evaluated=replace(lowered.evaluated, values=values))
    runs = all_runs.runs(entries)
    frame = all_runs.ablation_section(entries, runs, "allocated_bytes").rows.set_index("run")
    assert "precision bf16" in frame.settings[lowered.name]
    assert frame.agreement[lowered.name] == 0.75
    assert frame.agreement.count() == 1


def test_the_timeline_of_memory_keeps_its_peak() -> None:
    taken = [5, 3, 9, -9, -3, 1]
    events = [Event(i, size, "cpu", "an operator", "") for i, size in enumerate(taken)]
    kinds = ["weights", "activations", "temporaries", "temporaries", "activations", "activations"]
    found = timeline(events, kinds, moments=3)  # type: ignore[arg-type]
    assert found["events"] == [1, 2, 5]  # 8 of 5, 8; 17 of 17, 8; 6 of 5, 6
    assert found["bytes"] == {
        "weights": [5, 5, 5],
        "activations": [3, 3, 1],
        "temporaries": [0, 9, 0],
    }
    figure = curves.memory_timeline(found, "conv")
    peak = traces(figure)["peak"]
    assert peak["x"] == [2]
    assert data(figure)  # plain values alone
    assert timeline([], []) == {"events": [], "bytes": {}}


def test_addresses_are_relative_and_escaped() -> None:
    assert at("tiny/runs/a.html")("assets/site.css") == "../../assets/site.css"
    assert at("index.html")("tiny/runs/a b#c.html") == "tiny/runs/a%20b#c.html"
    assert str(data({"a": "</script>&"})) == '{"a":"\\u003c/script\\u003e\\u0026"}'


def lightness(colour: str) -> float:
    """L* of CIELAB, 0..100, of an sRGB colour: what is left of it in grey."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return float(116 * luminance ** (1 / 3) - 16)


def test_networks_with_the_same_marker_stay_apart_in_grey() -> None:
    assert lightness("#ffffff") == pytest.approx(100)
    assert lightness("#767676") == pytest.approx(50, abs=0.5)
    shapes: dict[str, set[str]] = {}
    for path in (ROOT / "suites").glob("*.yaml"):
        suite = read_suite(path)
        lines = [
            Entry(n, r, suite.models[r.model], path, None, None) for n, r in suite.runs.items()
        ]
        drawn = accuracy.looks(pd.DataFrame([(e.network, e.run.strategy) for e in lines],
                                            columns=["network", "strategy"]))  # fmt: skip
        for entry, marker in zip(lines, drawn.marker, strict=True):
            family = entry.name.partition("-")[0]  # as papers name it
            for name in {entry.network, family} & style.LOOKS["networks"].keys():
                shapes.setdefault(name, set()).add(marker)
    known = {name: lightness(colour) for name, colour in palette.colours(shapes).items()}
    assert len(known) >= 18
    for one, other in itertools.combinations(sorted(known.keys() - {"colour"}), 2):
        if shapes[one] & shapes[other]:
            assert abs(known[one] - known[other]) >= 4, (one, other)


def test_labels_are_where_the_static_figure_has_them() -> None:
    axis = Axis("", 1, 100, log=True)
    rows = marks({"x": [1.5, 10.0, 90.0], "y": [1.0] * 3, "label": ["a", "", "<c>"]}, bold=True)
    found = interactive.scatter(Chart(axis, Axis("", 0, 2), rows))["layout"]["annotations"]
    assert [one["text"] for one in found] == ["<b>a</b>", "<b>&lt;c&gt;</b>"]
    assert [one["x"] for one in found] == pytest.approx([math.log10(1.5), math.log10(90)])
    assert found[0]["ax"] > 0 > found[1]["ax"] - 30, "within the axes"
    assert data({"figure": found})  # plain values alone
