"""All ultra-high-resolution methods side by side: predicted memory, rankings, released or corrected."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT

from bench.config import ModelConfig, RunConfig, Training, read_suite
from bench.memory.published_settings import PLACES, UHR_METHODS, Place, uhr_runs
from bench.pipeline.predict_uhr_methods import predict
from bench.record import Record
from bench.report import bootstrap, memory
from bench.report import published as papers
from bench.report import runs as all_runs
from bench.report.load_records import Entry, published
from bench.report.memory import verdict
from bench.report.style import CREDITS

MIB = 2**20
EASY, HARD = [[9, 1], [1, 9]], [[6, 4], [4, 6]]


def entry(
    name: str,
    method: str,
    strategy: str,
    scenes: list[Any],
    official: Any = False,
    cost: tuple[float, int] | None = None,
    **measured: Any,
) -> Entry:
    spec = {"official": official} if official else {}
    model = ModelConfig("tiny", method, "nothing", spec, Training({}))
    matrices = {f"s{i}": [*matrix, [0, 0]] for i, matrix in enumerate(scenes)}
    values = {"splits": {"test": matrices}, "classes": ["a", "b"], "ignored": []}
    costs: dict[str, Any] = {}
    if cost:
        costs = {"latency_s": [cost[0]], "meters": {"allocated": {"bytes": cost[1]}}, **measured}
    return Entry(
        name=name,
        run=RunConfig(name, strategy),
        model=model,
        predictions=Path(),
        evaluated=Record("evaluate", name, {}, values, {}) if scenes else None,
        measured=Record("measure", name, {}, costs, {}) if costs else None,
    )


GLNET = entry("glnet", "glnet", "collaborative", [EASY] * 12, cost=(2.0, 10 * MIB))
ISDNET = entry(
    "isdnet", "isdnet", "whole", [HARD] * 12, cost=(1.0, 20 * MIB), forward_s=[0.2, 0.4, 0.3]
)
RELEASED = entry("isdnet-r", "isdnet", "whole", [EASY] * 12, True, cost=(3.0, 40 * MIB))
FCTL = entry("fctl", "fctl", "contexts", [EASY, HARD] * 6)


def test_every_method_of_the_suite_is_predicted_and_its_row_is_there() -> None:
    numbers = published()
    rows = set(numbers.method + " / " + numbers.inference)
    suite = read_suite(UHR_METHODS)
    for place in PLACES:
        there = {run.name: run.config for run in uhr_runs(place)}
        own = {name for name, run in suite.runs.items() if run.published}
        assert set(there) == {"glnet-collaborative", *own}
        methods = {suite.models[run.model].method for name, run in there.items() if name in own}
        assert methods == {line.method for line in suite.models.values()}
        assert {run.published for run in there.values() if run.published} <= rows
    printed = [one.get("published", {}) for one in CREDITS["methods"].values()]
    assert sum(map(len, printed)) == 10
    assert rows >= {row for one in printed for row in one.values()}


def test_released_idle_weights_are_a_prediction_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    small = [run for run in uhr_runs(PLACES[0]) if run.name in ("isdnet", "pointrend")]
    monkeypatch.setattr("bench.memory.published_settings.uhr_runs", lambda place: small)
    found = predict([Place("DeepGlobe", 256, 7, "deepglobe")])
    assert [(one["run"], one["done"]) for one in found] == [
        ("isdnet", "corrected"),
        ("isdnet", "as released"),
        ("pointrend", "corrected"),
    ]
    assert found[1]["device_bytes"] > found[0]["device_bytes"] > found[0]["weights_bytes"]


def test_a_verdict_says_what_would_have_to_be_true() -> None:
    row = {
        "device_bytes": 1000 * MIB,
        "reserved_bytes": 1100 * MIB,
        "weights_bytes": 200 * MIB,
        "strategy": "whole",
    }
    assert verdict(row, None) == "none published"
    assert verdict(row, 1040 * MIB) == "within 5%"
    assert verdict(row, 880 * MIB) == "within 15%"
    assert verdict(row, 1500 * MIB) == (
        "500 MiB more: 400 MiB of context and workspace beside what is reserved"
    )
    fat = {**row, "reserved_bytes": 1600 * MIB}
    assert verdict(fat, 1500 * MIB) == (
        "500 MiB more, which is within what an allocator keeps reserved"
    )
    # 200 of weights and 800 of maps: a quarter of them is an image of half the sides.
    assert verdict(row, 400 * MIB) == (
        "600 MiB less: an image of 0.50 of these sides at most, or leaner maps"
    )
    assert verdict({**row, "strategy": "contexts"}, 100 * MIB) == (
        "900 MiB less: fewer weights, which alone are more"
    )
    assert verdict({**row, "strategy": "contexts"}, 400 * MIB) == (
        "600 MiB less: a smaller patch or network"
    )


def test_predicted_memory_meets_the_row_of_its_data_set() -> None:
    row = {
        "device_bytes": 1900 * MIB, "reserved_bytes": 2000 * MIB, "weights_bytes": MIB,
        "host_bytes": MIB, "side_px": 2448, "run": "isdnet", "method": "isdnet",
        "strategy": "whole", "done": "corrected", "published": "ISDNet / whole",
    }  # fmt: skip
    rows = [{**row, "dataset": "DeepGlobe"}, {**row, "dataset": "Inria Aerial"}]
    rows.append({**rows[1], "method": "pointrend", "published": "PointRend / whole"})
    found = memory.uhr_section(Record("successors", "x", {}, {"rows": rows}, {})).rows
    assert found.published_bytes[0] == 1948 * MIB
    assert found.published_bytes[1] == 4680 * MIB
    assert pd.isna(found.published_bytes[2])
    assert found.verdict[0] == "within 5%"
    assert memory.uhr_section(None).rows.empty


def test_one_line_a_run_with_both_protocols_of_latency() -> None:
    entries = [entry("fpn", "baselines", "whole", [EASY]), GLNET, ISDNET, FCTL]
    found = papers.uhr_section(entries, all_runs.runs(entries)).rows.set_index("run")
    assert list(found.index) == ["glnet", "fctl", "isdnet"], "best first, plain rivals left out"
    assert found.miou["glnet"] == pytest.approx(9 / 11)
    assert found.low["fctl"] < found.miou["fctl"] < found.high["fctl"]
    assert found.low["glnet"] == found.high["glnet"], "scenes that are all alike"
    assert found.fps["isdnet"] == 1
    assert found.forward_s["isdnet"] == pytest.approx(0.3)
    assert found.forward_fps["isdnet"] == pytest.approx(1 / 0.3)
    assert pd.isna(found.forward_s["glnet"])
    assert found.published_fps["isdnet"] == pytest.approx(27.7)
    assert found.published_miou["glnet"] == pytest.approx(0.716)
    assert found.done["isdnet"] == "corrected"


def test_a_ranking_survives_is_reversed_or_cannot_be_decided() -> None:
    # Published: FCtL 73.5, ISDNet 73.3, GLNet 71.6. Here GLNet is best everywhere, ISDNet worst.
    section = papers.ranking_section([GLNET, RELEASED, ISDNET, FCTL])
    found = section.rows
    verdicts = {(row.better, row.worse): row.verdict for row in found.itertuples()}
    assert verdicts == {
        ("ISDNet", "GLNet G<->L"): "is reversed",
        ("FCtL", "GLNet G<->L"): "is reversed",
        ("FCtL", "ISDNet"): "survives",
    }
    same = papers.ranking_section([GLNET, entry("i", "isdnet", "whole", [EASY] * 12)]).rows
    assert list(same.verdict) == ["cannot be decided"]
    said = section.findings
    assert said[0] == (
        "Of 3 published rankings of two methods, on tiny 1 survive, 2 are reversed, and 0 cannot be "
        "decided on these scenes."
    )
    assert any("ISDNet over GLNet" in sentence for sentence in said)


def test_a_run_below_the_baseline_is_left_out_of_rankings() -> None:
    baseline = entry("colour", "colour", "whole", [HARD] * 12)
    section = papers.ranking_section([baseline, GLNET, ISDNET, FCTL])
    found = section.rows
    verdicts = {(row.better, row.worse): row.verdict for row in found.itertuples()}
    assert verdicts == {
        ("ISDNet", "GLNet G<->L"): papers.UNTRAINED,
        ("FCtL", "GLNet G<->L"): "is reversed",
        ("FCtL", "ISDNet"): papers.UNTRAINED,
    }
    said = section.findings
    assert said[1].startswith("2 are excluded")


def test_one_class_everywhere_is_below_the_baseline() -> None:
    same = entry("i", "isdnet", "whole", [[[10, 0], [10, 0]]] * 12)
    assert bootstrap.one_answer(bootstrap.of_entry(same)) == pytest.approx(0.25)
    assert bootstrap.one_answer(bootstrap.of_entry(GLNET)) == pytest.approx(0.25)
    found = papers.ranking_section([GLNET, same, FCTL]).rows
    verdicts = {(row.better, row.worse): row.verdict for row in found.itertuples()}
    assert verdicts[("ISDNet", "GLNet G<->L")] == verdicts[("FCtL", "ISDNet")] == papers.UNTRAINED
    assert verdicts[("FCtL", "GLNet G<->L")] == "is reversed"


def test_released_and_corrected_are_compared_where_they_differ_in_nothing_else() -> None:
    entries = [GLNET, ISDNET, RELEASED, FCTL]
    section = papers.released_section(entries, all_runs.runs(entries))
    found = section.rows
    (row,) = found.to_dict("records")
    assert (row["corrected"], row["released"]) == ("isdnet", "isdnet-r")
    assert row["points"] == pytest.approx(100 * (9 / 11 - 6 / 14))
    assert row["verdict"] == "better"
    assert (row["memory_ratio"], row["latency_ratio"]) == (2, 3)
    assert section.findings == [
        "isdnet-r against isdnet: +39.0 points of mIoU (better), 2.00 times the memory, "
        "3.00 times the time."
    ]


def test_what_is_not_run_again_says_what_is_missing() -> None:
    found = papers.unspecified_section().rows
    numbers = published()
    own = numbers[(numbers.inference == "not re-run") & (numbers.dataset == "DeepGlobe")]
    assert set(own.method) - set(found.method) == {"DeepLabv3+ of SGNet"}
    assert set(found.method) - set(own.method) == set(found.method[found.here != "not run"])
    assert found.miou.notna().all()
    assert found.missing.str.len().min() > 20
    assert found.set_index("method").bytes["WSDNet"] == 1876 * MIB
