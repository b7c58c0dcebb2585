"""How large the pages of the largest suite are, with the style and scripts that they load, and how soon
they answer."""

import itertools
from pathlib import Path

import pytest
from conftest import ROOT
from playwright.sync_api import Browser

from bench.config import read_suite
from bench.report.__main__ import _write_pages
from bench.report.load_records import load_records
from bench.report.pages import collect
from bench.report.site import Site, write_assets

MOST_BYTES = 3_000_000
MOST_SECONDS = 1.5
ANSWERED = """() => new Promise((done) => {
  const menu = document.querySelector("select[data-menu]"), before = menu.value;
  menu.value = [...menu.options].find((one) => !one.disabled && one.value !== before).value;
  menu.dispatchEvent(new Event("change", { bubbles: true }));
  const axis = document.querySelector("[data-figure]").layout.xaxis.title.text;
  requestAnimationFrame(() => done([axis, performance.now()]));
})"""
"""Another meter is chosen, and the next frame is drawn: the axis, and ms since the page was asked for."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of the largest suite, without static figures."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        content = collect(load_records(read_suite(Path("suites/earthcover-long.yaml"))))
        write_assets(folder / content.suite)
        _write_pages(Site(folder, content.suite, content.links), content)
        assert len(list(folder.rglob("*.html"))) > len(content.inputs.entries)
    return folder


def test_no_page_is_larger_than_3_mb(site: Path) -> None:
    assets = sum(one.stat().st_size for one in site.glob("*/assets/*"))
    assert assets + max(one.stat().st_size for one in site.rglob("*.html")) <= MOST_BYTES


def test_the_largest_page_answers_in_time(chromium: Browser, site: Path) -> None:
    """From the start of the navigation until a control answers: seconds that its thread computes, which
    unlike those of a clock do not depend on what else runs."""
    largest = max(site.rglob("*.html"), key=lambda path: path.stat().st_size)
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(largest.as_uri(), wait_until="commit")
    page.wait_for_selector("[data-drawn]", state="attached", timeout=120_000)
    axis, clock_ms = page.evaluate(ANSWERED)
    assert "process total" in axis
    found = session.send("Performance.getMetrics")["metrics"]
    seconds = {one["name"]: one["value"] for one in found}["TaskDuration"]
    print(f"{largest.name}: {seconds:.2f} processor seconds, {clock_ms / 1000:.2f} s by the clock")
    page.close()
    assert seconds <= MOST_SECONDS


@pytest.mark.parametrize("page", ["index.html", "earthcover-long/index.html"])
def test_a_phone_shows_the_names_that_matter_and_the_whole_legend(
    chromium: Browser, site: Path, page: str
) -> None:
    opened = chromium.new_page(viewport={"width": 390, "height": 844})
    opened.goto((site / page).as_uri())
    figure = opened.locator("[data-figure]")
    figure.locator(".main-svg").first.wait_for(timeout=120_000)
    frame = figure.bounding_box()
    names = figure.evaluate("one => one.layout.annotations.map((each) => each.text)")
    assert any("glnet" in one.lower() for one in names)
    front = figure.evaluate("one => one.data.find((each) => each.name === 'Pareto front').x")
    assert sum(one.startswith("<b>") for one in names) == len(front) - 1, "it ends at the axis"
    labels, texts = (
        [one.bounding_box() for one in figure.locator(each).all()]
        for each in (".annotation-text", ".legendtext, .xtick text, .ytick text")
    )
    assert len(labels) == len(names)
    assert len(texts) > len(names)
    for one in (*labels, *texts):
        assert one
        assert frame
        assert frame["x"] <= one["x"]
        assert one["x"] + one["width"] <= frame["x"] + frame["width"]
        assert one["y"] + one["height"] <= frame["y"] + frame["height"]
    for one, other in itertools.combinations(labels, 2):
        assert one
        assert other
        across = min(a["x"] + a["width"] for a in (one, other)) - max(one["x"], other["x"])
        down = min(a["y"] + a["height"] for a in (one, other)) - max(one["y"], other["y"])
        assert across <= 1 or down <= 1
    opened.close()


def test_the_first_figure_of_the_site_has_a_switch_of_its_meter(
    chromium: Browser, site: Path
) -> None:
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    page.goto((site / "index.html").as_uri())
    figure, menu = page.locator("[data-figure]"), page.locator("select[data-menu]")
    figure.locator(".main-svg").first.wait_for(timeout=120_000)
    box = figure.bounding_box()
    assert box
    assert box["y"] + box["height"] <= 900
    names = {"nvml": "process total (NVML)", "allocated": "allocated", "predicted": "predicted"}
    for meter, text in names.items():
        menu.select_option(meter)
        assert figure.evaluate("one => one.layout.xaxis.title.text").startswith(text)
        shown = figure.evaluate("one => one.layout.annotations.map((each) => each.text)")
        assert any("GLNet, collaborative" in one for one in shown)
    assert menu.locator("option").count() == len(names)
    page.close()
