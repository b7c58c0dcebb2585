"""README and docs say what the committed records say.

`claims.CLAIMS` has every measured number of their texts: the page, the words around it, and the
function of records that it must equal, rounded as it is printed. A number with a unit that no claim
covers fails, so that no number stands without a record."""

import itertools
import json
import re
from statistics import mean

import pandas as pd
import pytest
from claims import CLAIMS, Claim
from conftest import ROOT
from doc_records import MIB, generate, long, mosaic_ceilings, published, values

PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))

# Numbers with a unit that are no results.
SETTINGS = (
    r"15 minutes for each",
    r"every 20 ms|every 5 ms|every 15 s",
    r"\b(within|over|at most) (1|5|10|15|20|30) %|5 or 15 % of memory|1, 1 or 2 points",
    r"0\.5, 1 or 2 points of mIoU",
    r"below 90 % of the best|100 % mIoU",
    r"nominal 95 % interval",
    r"silence for 60 s",
    r"at least 20 times|4\.5 times the patch|4\.8 times 508",
)
UNIT = r"(%|[KMGT]i?B|ms|s|seconds?|minutes?|hours?|[GT]FLOP|times|points?|megapixels)(?![\w/])"
NUMBER = re.compile(rf"(?<![\w.,-])\d[\d,]*(?:\.\d+)?(?: ×)? {UNIT}")


def prose_of(page: str) -> str:
    """A page on one line, without generated parts (which have a test) and examples of code."""
    text = generate.MARKED.sub("", (ROOT / page).read_text())
    text = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return " ".join(text.split())


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.page}: {claim.words[:40]}")
def test_a_number_in_a_text_is_the_records_number(claim: Claim) -> None:
    found = re.search(claim.words, prose_of(claim.page))
    assert found, "these words are no longer on the page"
    expected = claim.numbers()
    assert len(found.groups()) == len(expected)
    for printed, number in zip(found.groups(), expected, strict=True):
        decimals = len(printed.partition(".")[2])
        assert f"{number:.{decimals}f}" == printed.replace(",", ""), claim.words


@pytest.mark.parametrize("page", PAGES)
def test_every_number_with_a_unit_has_a_claim(page: str) -> None:
    text = prose_of(page)
    words = [claim.words for claim in CLAIMS if claim.page == page]
    covered = [
        found.span() for pattern in (*words, *SETTINGS) for found in re.finditer(pattern, text)
    ]
    bare = [
        text[max(0, number.start() - 60) : number.end() + 20]
        for number in NUMBER.finditer(text)
        if not any(start <= number.start() and number.end() <= end + 12 for start, end in covered)
    ]
    assert bare == []


@pytest.mark.parametrize("page", PAGES)
def test_generated_parts_are_what_code_and_records_give(page: str) -> None:
    text = (ROOT / page).read_text()
    assert generate.updated(text) == text, "run: python docs/generate.py"


def test_every_marker_of_a_generated_part_is_known() -> None:
    named = [
        name
        for page in PAGES
        for name in re.findall(r"<!-- generated: (\w+) -->", (ROOT / page).read_text())
    ]
    assert sorted(named) == sorted(generate.GENERATED)


def test_readme_and_docs_keep_to_their_lengths() -> None:
    # The bars of a table are no words.
    words = {page: len(re.findall(r"\S*\w\S*", (ROOT / page).read_text())) for page in PAGES}
    assert words.pop("README.md") <= 1200
    # 9,000, docs/submit.md, docs/cluster.md, and Dubai and modern networks in docs/protocol.md
    assert sum(words.values()) <= 10_200


def test_numbers_are_written_with_a_leading_zero() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w./`*])\.\d", prose_of(page)), page


COINED = (
    r"foretold|weigh(s|ed)|booked|booking|len[dt]s?|borrow\w*|whereof|learnt|told|shelf|oddit(y|ies)|"
    r"pictures?|seen by the card|at the door|as meant|otherwise than|rooms? of"
)
"""Words that the project once used in meanings of its own."""


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_pages_use_no_coined_words(page: str) -> None:
    found = re.search(rf"\b({COINED})\b", (ROOT / page).read_text(), re.IGNORECASE)
    assert found is None, found


def test_the_h100s_software_is_that_of_its_records() -> None:
    about = json.loads((ROOT / "results/earthcover-long/train/glnet.json").read_text())[
        "provenance"
    ]
    python = ".".join(about["python"].split(".")[:2])
    stated = f"torch {about['versions']['torch']}, CUDA {about['cuda']} and Python {python}"
    assert stated in prose_of("docs/devices.md")
    assert "H100" in about["device_name"]


def test_the_two_commands_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"repro", "test", "setup"} <= targets
    for command in ("make repro", "make test"):
        assert command in (ROOT / "README.md").read_text()


def test_the_table_agrees_with_the_reports_table() -> None:
    """Its numbers come from records by code of its own; the report's come by the report's."""
    runs = pd.read_csv(ROOT / f"report/{generate.RETINA}/tables/runs.csv").set_index("run")
    text = (ROOT / "README.md").read_text()
    number = r" ([\d.]+) \|"
    rows = re.findall(rf"^\| ([\w-]+) \|{number * 7}$", text, re.MULTILINE)
    assert len(rows) >= 5
    for name, miou, *_ in rows:
        assert 100 * runs.miou[name] == pytest.approx(float(miou), abs=0.051)


def test_what_texts_say_without_a_number_is_so_in_the_records() -> None:
    runs = generate.names("earthcover-long/evaluate")
    miou = {run: long(run, "miou") for run in runs}
    ours = max(miou[run] for run in runs if run.startswith("glnet"))
    # README: GLNet does not win. docs/earthcover.md: who ends below the baseline, and refinement.
    assert sum(score > ours for score in miou.values()) >= 5
    below = [run for run in runs if run.startswith(("isdnet", "fctl", "magnet"))]
    assert all(miou[run] < miou["colour"] for run in below)
    assert miou["cascadepsp"] < miou["cascadepsp-base"]


def significant_pairs(suite: str) -> set[tuple[str, str]]:
    """Better and worse run of each pair that differs significantly."""
    pairs = pd.read_csv(ROOT / f"report/{suite}/tables/pairs.csv")
    return {
        (one.first, one.second) if one.difference > 0 else (one.second, one.first)
        for one in pairs.itertuples()
        if one.verdict != "no significant difference"
    }


def test_what_is_said_of_real_images_is_so_in_the_records() -> None:
    """README and docs/protocol.md."""
    runs = generate.names("idrid/evaluate")
    trained = [run for run in generate.of_one_encoder() if run != "colour"]
    miou = {run: generate.miou("idrid", run) for run in runs}
    significant = significant_pairs("idrid")
    better = [
        ("glnet-global-to-local", "glnet-global"),
        ("glnet-global-to-local", "glnet-local"),
        ("glnet-global-to-local", "fpn-patch"),
        ("deeplabv3plus-downsample", "glnet-global-to-local"),
        ("segformer-downsample", "glnet-global-to-local"),
        ("segformer-downsample", "segformer-patch"),
        ("deeplabv3plus-whole", "deeplabv3plus-patch"),
    ]
    better += [
        (f"{network}-downsample", f"{network}-{strategy}")
        for network in ("fpn", "deeplabv3plus")
        for strategy in ("patch", "whole")
    ]
    assert {*better} <= significant
    alike = ("fpn-downsample", "deeplabv3plus-whole")
    even = [("glnet-global-to-local", run) for run in alike] + [("fpn-patch", "fpn-whole")]
    assert not {*even, *(pair[::-1] for pair in even)} & significant
    shrunk, cut = (
        generate.found_by_size(f"fpn-{strategy}") for strategy in ("downsample", "patch")
    )
    assert all(small < large for small, large in zip(shrunk[:2], cut[:2], strict=True))
    assert min(shrunk[5], cut[5]) > 50
    seconds = {run: generate.measured("idrid", "cpu-2-cores", run)["ms"] for run in runs}
    for fast in ("fpn-downsample", "deeplabv3plus-downsample", "segformer-downsample"):
        assert seconds[fast] < 0.1 * seconds["glnet-global-to-local"]
    precision = {run: mean(generate.lesion_precisions(run)) for run in trained}
    for network in ("fpn", "deeplabv3plus", "segformer"):
        least = min(
            precision[f"{network}-{s}"] for s in ("patch", "whole") if f"{network}-{s}" in runs
        )
        assert precision[f"{network}-downsample"] < least
    assert max(trained, key=miou.__getitem__) == "segformer-downsample"
    assert min(trained, key=miou.__getitem__) == "glnet-local"
    assert all(miou["colour"] < miou[run] for run in runs if run != "colour")
    assert max(miou[run] for run in generate.RANDOM) < miou["glnet-local"]


def test_what_is_said_of_satellite_images_is_so_in_the_records() -> None:
    """docs/protocol.md, fold A of Dubai."""
    significant = significant_pairs("dubai")
    runs = generate.names("dubai/evaluate")
    modern = {"segformer-b0-patch-a", "upernet-convnext-patch-a"}
    cut = {run for run in runs if run.endswith("patch-a")} - modern
    assert len(cut) == 3
    glnet = [run for run in runs if run.startswith("glnet")]
    assert {*itertools.product(modern, glnet), *itertools.product(cut, modern)} <= significant
    assert {b for a, b in significant if a == "rue-a"} == {"colour-a"}
    assert {*itertools.product(cut, {*runs} - cut)} <= significant
    assert not {*itertools.permutations(cut, 2)} & significant
    worse = ("glnet-global-a", "glnet-collaborative-a")
    assert {("glnet-global-to-local-a", run) for run in worse} <= significant
    same = ("glnet-global-to-local-a", "unet-downsample-a")
    assert not {*itertools.permutations(same)} & significant
    image = values("dubai/measure/cpu-2-cores/fpn-patch-a.json")
    assert f"{image['width_px']} × {image['height_px']} px" in prose_of("docs/protocol.md")
    assert min(runs, key=lambda run: generate.miou("dubai", run)) == "colour-a"
    for run, best in {"unet-downsample": "3", "fpn-downsample": "3", "glnet": "1"}.items():
        tried = values(f"dubai/tune/{run}-a.json")["candidates"]
        assert max(tried, key=lambda factor: tried[factor]["miou"]) == best


def test_what_the_page_of_mosaic_concludes_is_so_in_the_records() -> None:
    apart, both = (
        min(generate.miou("mosaic", f"{run}-seed{seed}") for seed in range(3))
        for run in ("apart", "collaborative")
    )
    assert apart > both
    bound = mosaic_ceilings()["shrunken image"]
    later = ("isdnet", "fctl", "pointrend", "cascadepsp", "magnet")
    assert all(generate.miou("mosaic", f"{run}-seed0") < bound for run in later)
    for run in ("isdnet", "fctl"):  # ground *a* almost everywhere
        ious = generate.class_ious(values(f"mosaic/evaluate/{run}-seed0.json"))
        assert ious[0] > 0.4
        assert max(ious[1:]) < 0.01


@pytest.mark.parametrize("run", ["glnet-collaborative", "glnet-global-to-local", "glnet-local"])
def test_glnets_device_memory_does_not_grow_with_the_image(run: str) -> None:
    """Beyond the image and its labels, and the sums that a row of patches leaves to the next."""
    rows = values("predict.json")["growth"][run]
    sizes = [row["device_bytes"] for row in rows if "device_bytes" in row]
    assert len(sizes) == 3
    assert sizes[-1] - sizes[0] <= 6 * (4096**2 - 1024**2)
    assert max(row["side_px"] for row in rows if "device_bytes" in row) == 4096


def test_which_published_memory_the_tensors_explain() -> None:
    """docs/uhr_methods.md: three within 15 %, two published values that are less than the tensors."""
    rows = {(r["run"], r["done"], r["side_px"]): r for r in generate.uhr_rows()}

    def ratio(run: str, done: str, method: str, paper: str = "BPT") -> float:
        printed = published(method, "memory_mb", paper) * MIB
        return float(rows[run, done, 2448]["device_bytes"] / printed)

    assert 0.85 <= ratio("fctl", "as released", "FCtL") <= 1
    assert 0.85 <= ratio("cascadepsp", "corrected", "CascadePSP") <= 1
    assert 0.85 <= ratio("f2net", "corrected", "F2Net", "F2Net") <= 1.15
    assert ratio("pointrend", "corrected", "PointRend") > 1
    assert rows["f2net", "corrected", 5000]["device_bytes"] > 5534 * MIB
