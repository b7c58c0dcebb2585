"""How large the pages of the largest suite are, with the style and scripts that they load, and how soon
they answer."""

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
