"""The report, from a small tree of records whose numbers are worked out by hand."""

import itertools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SETTINGS, SPLITS, model_line, write_dataset, write_suite
from filelock import FileLock
from matplotlib.figure import Figure
from PIL import Image

from bench import record
from bench.config import Suite, read_suite
from bench.errors import UserError
from bench.metrics import confusion
from bench.record import Record
from bench.report import bootstrap, evaluations, findings, memory, style
from bench.report import runs as all_runs
from bench.report.__main__ import KEPT, report
from bench.report.bootstrap import Pairs, Sample
from bench.report.figures import chart, scenes, static
from bench.report.load_records import load_records, published
from bench.report.site import Page, Site, write_page
from data.dataset import open_dataset

MIB = 2**20
PALETTE = [255, 0, 0, 0, 255, 0, 0, 0, 255]
# Rows: truth red, green, blue, unlabelled; columns: prediction. By hand: IoU of red and green 2/4
# each, blue does not occur. Officially the unlabelled pixel that is called red counts too, so red
# has 2/5, and blue counts as 0.
GOOD = [[2, 1, 0], [1, 2, 0], [0, 0, 0], [1, 0, 0]]
NOTHING = [[0, 0, 0]] * 4


def suite_lines() -> dict[str, Any]:
    """Five models and seven runs, of which one each is fine, oom, failed, missing, half missing."""
    networks = ("unet", "fpn", "pspnet", "deeplabv3plus", "colour")
    spec = {"train_on": "patch", "size_px": 32, "overlap_px": 8}
    models = {n: model_line("baselines", {**spec, "network": n}, ["train"]) for n in networks}
    models["glnet"] = model_line("glnet", {}, ["global", "global-to-local", "local-to-global"])
    runs = {f"{name}-patch": {"model": name, "strategy": "patch"} for name in networks[:4]}
    runs["unet-whole"] = {"model": "unet", "strategy": "whole", "published": "UNet / global"}
    runs["glnet-collaborative"] = {"model": "glnet", "strategy": "collaborative"}
    runs["colour"] = {"model": "colour", "strategy": "whole"}
    return {
        "suite": "tiny",
        "machine": "test-machine",
        "datasets": {"tiny": {"source": "earthcover", "settings": SETTINGS}},
        "weights": {"nothing": {"encoder": "none", "source": "none"}},
        "models": models,
        "runs": runs,
    }


PROVENANCE = {"commit": "abc", "dirty": False, "processor": "a processor", "device": "cpu",
              "threads": 1, "versions": {"torch": "2"}}  # fmt: skip


def write_evaluation(name: str, scenes: dict[str, list[list[int]]]) -> None:
    values = {
        "dataset": "tiny",
        "classes": ["red", "green", "blue"],
        "ignored": [],
        "rare": ["blue"],
        "splits": {"test": scenes, "val": {}},
    }
    record.write(
        record.path_of("tiny", "evaluate", name), Record("evaluate", name, {}, values, PROVENANCE)
    )


def write_measurement(name: str, size: int, status: record.Status = "ok", why: str = "") -> None:
    values = {
        "height_px": 70,
        "width_px": 90,
        "scene": "d",
        "device": "cpu",
        "meters": {
            "allocated": {"bytes": size, "definition": "tensors alive"},
            "rss": {"bytes": 2 * size, "base_bytes": 1, "definition": "resident"},
            "predicted": {"bytes": size - 1, "host_bytes": size, "definition": "as allocated"},
        },
        "latency_s": [0.3, 0.1, 0.2],
        "latency_definition": "seconds of one prediction",
        "parameters": 1000,
    }
    found = Record("measure", name, {}, values if status == "ok" else {}, PROVENANCE, status, why)
    record.write(record.path_of("tiny", "measure", name, "test-machine"), found)


def predict_scenes(name: str, wrong: float) -> dict[str, list[list[int]]]:
    """Pictures of what a run says of each test scene, and their confusion matrices."""
    rng = np.random.default_rng(0)
    dataset = open_dataset("tiny")
    scenes = {}
    for scene in SPLITS["test"]:
        truth = dataset.read(scene)[1].numpy()
        guess = rng.integers(0, 3, truth.shape)
        said = np.where((rng.random(truth.shape) < wrong) | (truth == 255), guess, truth)
        scenes[scene] = confusion(truth, said.astype(np.uint8), 3).tolist()
        path = record.RESULTS / "tiny/predictions" / name / f"{scene}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(said.astype(np.uint8), mode="P")
        picture.putpalette(PALETTE)
        picture.save(path)
    return scenes


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """The current directory holds records of the tiny suite, and one of a run that it has not."""
    monkeypatch.chdir(tmp_path)
    return write_results(tmp_path)


def test_records_of_another_benchmark_version_are_not_ranked(suite: Suite) -> None:
    path = record.path_of("tiny", "evaluate", "unet-patch")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"benchmark": 2}))
    unet = load_records(suite).entries[0]
    assert (unet.name, unet.status, unet.evaluation) == ("unet-patch", "missing", {})
    assert "no record of benchmark version 1" in unet.reason


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the same records and two reports, made once for the tests that only read, and
    once for all processes that test."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "written"
    with FileLock(f"{root}.lock"):
        if not (root / "done").exists():
            root.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(root)
                patch.setitem(KEPT, "tiny", ("accuracy_memory", "paper_memory"))
                suite = write_results(root)
                report(load_records(suite))
                report(load_records(suite), Path("again/site"), Path("again/report"))
            (root / "done").touch()
    return root


def write_results(root: Path) -> Suite:
    """Data, params.yaml and results/ in the current directory."""
    write_dataset(root)
    write_suite(root, suite_lines())
    write_evaluation("unet-patch", {"d": GOOD, "e": NOTHING})
    write_evaluation("unet-whole", predict_scenes("unet-whole", wrong=0.3))
    write_evaluation("glnet-collaborative", predict_scenes("glnet-collaborative", wrong=0.5))
    write_evaluation("fpn-patch", predict_scenes("fpn-patch", wrong=0.4))
    write_evaluation("colour", predict_scenes("colour", wrong=0.7))
    write_evaluation("a-run-of-yesterday", {"d": GOOD, "e": GOOD})
    write_measurement("unet-patch", 40 * MIB)
    write_measurement("glnet-collaborative", 90 * MIB)
    write_measurement("colour", 20 * MIB)
    write_measurement("unet-whole", 0, "oom", "CUDA out of memory | tried <1> & 50% of GPU_0")
    write_measurement("pspnet-patch", 0, "failed", "RuntimeError: shapes")
    loss = [["global", 0, 2.0], ["global", 1, 1.0], ["global-to-local", 0, 3.0]]
    phases = {"global": {"steps": 2, "seconds": 60.0, "parameters": 5}}
    values = {"phases": phases, "loss": loss}
    record.write(
        record.path_of("tiny", "train", "glnet"), Record("train", "glnet", {}, values, PROVENANCE)
    )
    runs = {
        "unet-whole": ("unet", "whole", "UNet / global", 5507 * MIB // 2),
        "fpn-patch": ("fpn", "patch", None, 10 * MIB),
    }
    record.write(record.RESULTS / "predict.json", predicted_record(runs))
    return read_suite()


def predicted_record(runs: dict[str, tuple[str, str, str | None, int]]) -> Record:
    lines = {
        name: {
            "network": network,
            "strategy": strategy,
            "published": key,
            "device_bytes": size,
            "host_bytes": MIB,
            "weights_bytes": MIB,
            "at": "aten.conv2d.default",
        }
        for name, (network, strategy, key, size) in runs.items()
    }
    values = {"height_px": 2448, "width_px": 2448, "definition": "as allocated", "runs": lines}
    return Record("predict", "deepglobe", {}, values, PROVENANCE)


def test_every_output_is_there_and_the_same_twice(written: Path) -> None:
    kinds = dict.fromkeys(("accuracy_memory", "paper_memory"), "svg png pdf")
    kinds |= dict.fromkeys((f"figure1{letter}_tiny" for letter in "abc"), "svg png pdf")
    kinds |= dict.fromkeys(("paper_accuracy",), "svg png pdf")
    tables = (
        "runs",
        "classes",
        "ablation",
        "latency",
        "paper_accuracy",
        "predicted",
        "prediction",
        "published",
        "uhr_methods",
        "unspecified",
    )
    wanted = {
        "index.html",
        "runs.csv",
        "suites.js",
        "tiny/summary.json",
        "tiny/datasets/tiny.croissant.json",
        "tiny/tables/confusion.csv",
        *(
            f"tiny/{page}.html"
            for page in ("index", "datasets/tiny", "memory", "uhr_methods", "about")
        ),
        *(f"tiny/runs/{run}.html" for run in suite_lines()["runs"]),
        *(f"tiny/scenes/{scene}.html" for scene in SPLITS["test"]),
        *(f"tiny/figures/{name}.{kind}" for name in kinds for kind in kinds[name].split()),
        *(f"tiny/figures/scenes/{scene}.png" for scene in SPLITS["test"]),
        *(f"tiny/tables/{name}.{kind}" for name in tables for kind in ("csv", "md", "tex")),
        "tiny/tables/pairs.csv",
    }
    site, again = written / "site", written / "again"
    files = files_of(site)
    images = {name for name in files if re.match(r"tiny/scenes/[^/]+/", name)}
    assets = {name for name in files if name.startswith("tiny/assets/")}
    assert files - images - assets == wanted
    assert images
    assert {"tiny/assets/site.css", "tiny/assets/plotly-basic.LICENSE"} <= assets
    assert files_of(written / "report") == {
        *(f"tiny/tables/{name}.csv" for name in (*tables, "confusion", "pairs")),
        *(f"tiny/metrics/{run}.json" for run in suite_lines()["runs"]),
        *(f"tiny/figures/{name}.svg" for name in ("accuracy_memory", "paper_memory")),
    }
    for kept in ("site", "report"):
        for name in sorted(files_of(written / kept)):
            assert (written / kept / name).read_bytes() == (again / kept / name).read_bytes(), name


def test_git_keeps_the_figures_that_documents_show() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {
        found
        for path in documents
        for found in re.findall(r"report/([\w-]+)/figures/([\w-]+)\.svg", path.read_text())
    }
    assert shown == {(suite, name) for suite, names in KEPT.items() for name in names}


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_second_report_leaves_nothing_of_the_first(suite: Suite) -> None:
    stale = [Path(f"{top}/tiny/tables/x.csv") for top in ("site", "report")]
    stale += [Path("site/tiny/runs/x.html"), Path("report/tiny/metrics/x.json")]
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (Path("results") / "tiny/predictions").rename("elsewhere")
    page = report(load_records(suite)).parent / "datasets/tiny.html"
    assert not any(path.exists() for path in stale)
    assert not Path("site/tiny/scenes").exists(), "without predictions there are no scene pages"
    assert "No images of tiny: there are no predictions here" in page.read_text()


def test_every_address_leads_to_a_file_of_the_site(written: Path) -> None:
    site = (written / "site").resolve()
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        parser = Addresses()
        parser.feed(page.read_text())
        parser.close()
        assert parser.open == [], page
        assert len(parser.ids) == len(set(parser.ids)), page
        for address in parser.addresses:
            if address.startswith("https:"):  # opened by a click alone
                assert f'href="{address}" rel="noreferrer"' in page.read_text()
            elif not address.startswith("data:"):
                path, _, fragment = unquote(address).partition("#")
                target = (page.parent / path).resolve() if path else page
                assert target.is_file(), (page, address)
                assert target.is_relative_to(site), (page, address)
                parser.fragments += [(target, fragment)] if fragment and "=" not in fragment else []
        for target, fragment in parser.fragments:
            found = set(re.findall(r'id="([^"]+)"', target.read_text()))
            assert fragment in found, (page, target, fragment)


def test_the_pages_hide_nothing(written: Path) -> None:
    text = "".join(path.read_text() for path in sorted((written / "site").rglob("*.html")))
    assert "a-run-of-yesterday" not in text
    assert "Made by a formula." in text
    assert "CUDA out of memory | tried &lt;1&gt; &amp; 50% of GPU_0" in text
    assert "GLNet does not win on accuracy" in text
    assert "lies above nearest class-mean colour, which reaches" in text
    assert "as GLNet&#39;s released code counts" in text
    latex = (written / "site/tiny/tables/runs.tex").read_text()
    assert r"\toprule" in latex
    assert r"mIoU, \%" in latex


@pytest.mark.parametrize(
    ("address", "shown"),
    [("https://example.org/a/b", True), ("", False), ("javascript:alert(1)", False)],
)
def test_pages_lead_to_the_repository_where_its_address_is_known(
    address: str, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPOSITORY_URL", address)
    write_page(Site(tmp_path, "tiny"), Page("a.html", [], "A"), lambda run: "")
    text = (tmp_path / "a.html").read_text()
    assert (f'<a href="{address}" rel="noreferrer">Code and records</a>' in text) == shown
    assert "javascript" not in text


class Addresses(HTMLParser):
    """What a page refers to, what can be referred to in it, and which elements are not closed."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.fragments: list[tuple[Path, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_what_answers_to_a_published_row_has_a_line_of_its_own(written: Path) -> None:
    found = pd.read_csv(written / "report/tiny/tables/published.csv")
    assert list(found.run) == ["unet-whole"]
    assert list(found.verdict) == ["another data set"]  # tiny is not DeepGlobe
    assert "Published and reproduced" in (written / "site/tiny/index.html").read_text()


def test_runs_by_hand(written: Path) -> None:
    folder = written / "report/tiny"
    frame = pd.read_csv(folder / "tables/runs.csv").set_index("run")
    assert list(frame.index) == list(suite_lines()["runs"])
    first = (
        "dataset,run,network,strategy,status,miou,miou_official,"
        "predicted_bytes,allocated_bytes,rss_bytes,nvml_bytes,latency_s,"
    )
    assert (folder / "tables/runs.csv").read_text().startswith(first)
    unet = frame.loc["unet-patch"]
    assert unet.status == "ok"
    assert unet.miou == pytest.approx((2 / 4 + 2 / 4) / 2)  # blue neither is nor is said
    assert unet.miou_official == pytest.approx((2 / 5 + 2 / 4 + 0) / 3)
    assert unet.miou_without_rare == pytest.approx(1 / 2)
    assert unet.accuracy == pytest.approx(4 / 6)
    assert unet.allocated_bytes == 40 * MIB
    assert unet.latency_s == 0.2
    assert unet.megapixels_per_s == pytest.approx(70 * 90 / 1e6 / 0.2)
    assert dict(frame.status) == {
        "unet-patch": "ok",
        "fpn-patch": "missing",
        "pspnet-patch": "failed",
        "deeplabv3plus-patch": "missing",
        "unet-whole": "oom",
        "glnet-collaborative": "ok",
        "colour": "ok",
    }
    assert frame.reason["fpn-patch"] == "measure: no record of benchmark version 1"
    why = "evaluate: no record of benchmark version 1; measure: RuntimeError: shapes"
    assert frame.reason["pspnet-patch"] == why
    assert frame.nvml_bytes.isna().all()
    numbers = json.loads((folder / "metrics/unet-patch.json").read_text())
    assert numbers == {
        "miou_percent": pytest.approx(50),
        "allocated_mib": 40,
        "latency_ms": pytest.approx(200),
    }
    assert json.loads((folder / "metrics/deeplabv3plus-patch.json").read_text()) == {}
    shares = pd.read_csv(folder / "tables/confusion.csv").set_index(["run", "truth", "predicted"])
    assert shares.share["unet-patch", "red", "green"] == pytest.approx(1 / 3)
    assert ("unet-patch", "blue", "red") not in shares.index  # no pixel is blue
    classes = pd.read_csv(folder / "tables/classes.csv").set_index("run")
    assert classes.red["unet-patch"] == 1 / 2
    assert pd.isna(classes.blue["unet-patch"])


def test_a_suite_without_any_result_is_a_page_too(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "results").rename(tmp_path / "elsewhere")
    (tmp_path / "data").rename(tmp_path / "gone")
    text = report(load_records(suite)).read_text()
    assert "No trained run has been evaluated" in text
    about = Path("site/tiny/datasets/tiny.html").read_text()
    assert "No images of tiny: data/prepared/tiny/dataset.json is missing" in about
    assert "has not been evaluated" in Path("site/tiny/runs/unet-patch.html").read_text()
    assert set(pd.read_csv("report/tiny/tables/runs.csv").status) == {"missing"}


def test_a_data_set_without_results_has_no_empty_figure(suite: Suite) -> None:
    lines = suite_lines()
    lines["datasets"]["other"] = lines["datasets"]["tiny"]
    lines["models"]["other"] = lines["models"]["unet"] | {"dataset": "other"}
    lines["runs"]["other-patch"] = {"model": "other", "strategy": "patch"}
    write_suite(Path(), lines)
    text = report(load_records(read_suite())).read_text()
    assert "All runs: other" in text
    assert len(set(re.findall(r'id="(figure-\d+)"', text))) == 1


def test_a_prediction_of_another_size_is_refused(suite: Suite) -> None:
    path = record.RESULTS / "tiny/predictions/fpn-patch/d.png"
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(path)
    with pytest.raises(UserError, match=r"fpn-patch/d\.png does not fit the label of d"):
        scenes.sheet(open_dataset("tiny"), "d", load_records(suite).entries)


def test_the_paper_beside_the_prediction() -> None:
    runs = {
        "half": ("unet", "whole", "UNet / global", 5507 * MIB // 2),
        "alone": ("fpn", "patch", None, 10 * MIB),
    }
    frame = memory.predicted_section(predicted_record(runs)).rows.set_index("run")
    assert frame.published_bytes["half"] == 5507 * MIB
    assert frame.ratio["half"] == pytest.approx(0.5)
    assert frame.published_miou["half"] == pytest.approx(0.384)
    assert pd.isna(frame.ratio["alone"])
    assert memory.predicted_section(None).rows.empty


def test_published_numbers_are_those_seen_in_a_source() -> None:
    numbers = published()
    assert set(numbers.confidence) == {"exact", "figure"}
    keys = numbers[numbers.dataset == "DeepGlobe"]
    assert not (keys.method + " / " + keys.inference).duplicated().any()


def test_every_published_key_of_the_suites_is_known() -> None:
    folder = Path(__file__).resolve().parent.parent / "suites"
    numbers = published()
    known = set(numbers.method + " / " + numbers.inference)
    for path in folder.glob("*.yaml"):
        keys = {run.published for run in read_suite(path).runs.values() if run.published}
        assert keys <= known, path.name


def test_the_front_by_hand() -> None:
    rows = [("a", 10, 0.3), ("b", 20, 0.5), ("c", 20, 0.4), ("d", 30, 0.5), ("e", 40, 0.6)]
    frame = pd.DataFrame(rows, columns=["run", "bytes", "miou"])
    assert evaluations.front(frame, "bytes", None) == ["a", "b", "e"]
    assert evaluations.front(frame, "bytes", 0.3) == ["b", "e"]


def test_the_memory_axis_is_nvml_only_if_all_have_it_and_images_are_large() -> None:
    frame = pd.DataFrame({"allocated_bytes": [1, 2, None], "nvml_bytes": [1, 2, None]})
    frame = frame.assign(height_px=[1500, 1500, None], width_px=[2000, 2000, None])
    assert all_runs.axis_meter(frame) == "nvml_bytes"
    assert all_runs.axis_meter(frame.assign(width_px=[1999, 1999, None])) == "allocated_bytes"
    frame.loc[1, "nvml_bytes"] = None
    assert all_runs.axis_meter(frame) == "allocated_bytes"


def test_what_is_not_above_the_baseline_says_what_it_never_predicts(suite: Suite) -> None:
    all_red = [[50, 0, 0], [30, 0, 0], [20, 0, 0], [0, 0, 0]]
    write_evaluation("fpn-patch", {"d": all_red})
    entries = load_records(suite).entries
    _, (beaten,) = findings.baseline_finding("tiny", entries, all_runs.runs(entries))
    assert beaten.topic == "fpn-patch"
    assert beaten.text == (  # 0.5 / 3
        "16.7 %; never predicts green (30.0 % of the pixels), blue (20.0 % of the pixels); "
        "predicts red for 100.0 % of the pixels where 50.0 % are."
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (style.size(1.5 * 2**30), "1.50 GiB"),
        (style.size(200 * MIB), "200 MiB"),
        (style.duration(0.0123), "12.3 ms"),
        (style.percent(0.716), "71.6"),
        (style.percent(None), "–"),
    ],
)
def test_units_for_people(text: str, value: str) -> None:
    assert text == value


def test_labels_cover_neither_one_another_nor_a_point() -> None:
    rng = np.random.default_rng(1)
    rows = [
        (f"network-{i}-patch", float(x), float(y))
        for i, (x, y) in enumerate(zip(rng.random(17) * 20 + 60, rng.random(17) * 3, strict=True))
    ]
    axes = Figure(figsize=(9, 5), layout="constrained").subplots()
    axes.scatter([x for _, x, _ in rows], [y for _, _, y in rows])
    axes.set_ylim(-3, 5)
    axes.figure.draw_without_rendering()
    points = [(x, y) for _, x, y in rows]
    static.place_labels(axes, chart.marks(pd.DataFrame(rows, columns=["label", "x", "y"])), points)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(rows)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    places = axes.transData.transform(points)
    assert not any(box.contains(*place) for box in boxes for place in places)


def sampled(run: str, right: list[int]) -> Sample:
    """So many of 100 pixels of either class right in each scene."""
    counted = [[[s, 100 - s], [100 - s, s], [0, 0]] for s in right]
    scenes = tuple(str(number) for number in range(len(right)))
    return Sample(run, run, scenes, np.array([counted]), ("x", "y"))


def test_nobody_beats_anybody_unless_the_interval_says_so() -> None:
    """GLNet against a rival, its branches and the baseline: by the same sentence whoever wins."""
    alone, little, much = [20, 50, 80, 60], [21, 58, 76, 60], [25, 55, 85, 65]
    lines = [("global", "glnet", alone), ("rival", "unet", alone), ("colour", "colour", much)]

    def said(shared: list[int]) -> dict[str, str]:
        runs = [("collaborative", "glnet", shared), *lines]
        samples = tuple(sampled(run, right) for run, _, right in runs)
        frame = pd.DataFrame(
            {"run": run, "network": network, "strategy": run, "status": "ok", "excluded": None,
             "miou": bootstrap.miou(one), "share_of_best": 1.0}
            for (run, network, _), one in zip(runs, samples, strict=True)
        )  # fmt: skip
        frame["allocated_bytes"] = [1, 2, 3, 4]
        frame["available_bytes"] = 10
        found = findings.summary(frame, "allocated_bytes", Pairs(samples, {r: r for r, *_ in runs}))
        return {one.topic: one.text for one in found}

    small, great = said(little), said(much)
    assert "does not win" in small["GLNet"]
    assert (
        "no significant difference between collaborative and rival: +1.2 points" in small["GLNet"]
    )
    assert "makes no significant difference" in small["Its branches"]
    assert "No significant difference to 2 of the others: global, rival." in small["Most accurate"]
    assert "GLNet wins" in great["GLNet"]
    assert "collaborative beats rival by" in great["GLNet"]
    assert "Joining its branches pays here" in great["Its branches"]
    assert "significant" not in great["Most accurate"]
    assert (
        "Of 3 trained runs 0 beat it, 2 are beaten by it, and for 1 there is no significant difference"
        in (great["Baseline"])
    )
    assert "4 test scenes" in great["Uncertainty"]


def test_every_pair_is_in_the_table(written: Path) -> None:
    found = pd.read_csv(written / "report/tiny/tables/pairs.csv")
    assert len(found) == 4 * 3 / 2 + 4  # five evaluated runs
    one = found[(found["first"] == "unet-whole") & (found["second"] == "colour")].iloc[0]
    assert one.verdict == "unet-whole beats colour"
    assert 0 < one.low < one.difference < one.high
    page = (written / "site/tiny/datasets/tiny.html").read_text()
    assert 'title="unet-whole minus colour: 95 % CI +' in page


def test_a_caption_names_the_machine() -> None:
    facts = {"machine": "desk", "processor": "P 1", "cores": 2, "threads": 1}
    assert (
        findings.machine([Record("measure", "a", {}, {}, facts)])
        == "desk (P 1, 2 cores, 1 threads)"
    )
    assert findings.machine([]) == "no machine yet"


def test_images_above_pillows_limit_reach_the_end_of_the_report(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scenes have 6,300 px. Pillow refuses files of twice its limit, and warns above it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open("results/tiny/predictions/colour/d.png")
    assert report(load_records(suite)).is_file()
    assert Path("site/tiny/scenes/d.html").is_file()
