"""The site in a real browser that opens it from disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import barriers, opened
from playwright.sync_api import Browser, Locator, expect
from playwright.sync_api import Page as BrowserPage
from test_report import written

__all__ = ["written"]
PAGES = (
    "index.html",
    "tiny/index.html",
    "tiny/datasets/tiny.html",
    "tiny/memory.html",
    "tiny/about.html",
    "tiny/runs/glnet-collaborative.html",
    "tiny/runs/pspnet-patch.html",
)
POINT = ".scatterlayer .trace .points path.point"


@pytest.fixture
def home(chromium: Browser, written: Path) -> Iterator[BrowserPage]:
    with opened(chromium, written / "site/tiny/index.html") as page:
        page.wait_for_selector("[data-drawn]")
        yield page


@pytest.mark.parametrize("path", PAGES)
def test_nothing_is_missed_nor_asked_of_a_host_and_everybody_can_read_it(
    chromium: Browser, written: Path, path: str
) -> None:
    with opened(chromium, written / "site" / path) as page:
        assert page.locator("h1").count() == 1
        for place in page.locator("[data-figure]").all():
            place.locator(".main-svg").first.wait_for()
        # An image that could not be shown is as wide as nothing.
        assert page.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
        assert barriers(page) == []


@pytest.mark.parametrize("path", PAGES[:3])
def test_a_phone_need_not_scroll_sideways(chromium: Browser, written: Path, path: str) -> None:
    with opened(chromium, written / "site" / path, width=390, height=844) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_meter_changes_the_axis(home: BrowserPage) -> None:
    def shown() -> tuple[str, list[float]]:
        place = home.locator("[data-figure]")
        axis = place.evaluate("one => one.layout.xaxis.title.text")
        sizes = place.evaluate("one => one.data.find(t => t.customdata && t.name === 'GLNet').x")
        return axis, sizes

    mib = 2**20
    axis, sizes = shown()
    assert "allocated" in axis
    assert "not a GPU's memory" in axis
    assert sizes == [90 * mib]
    home.get_by_label("memory", exact=True).select_option("rss")
    assert "host RSS" in shown()[0]
    assert shown()[1] == [180 * mib]
    assert home.locator("option[value=nvml]").is_disabled()
    note = home.locator("#figure-1-note")
    before = note.inner_text()
    home.get_by_label("accuracy", exact=True).select_option("miou_official")
    assert note.inner_text() != before


def test_a_click_on_a_point_opens_its_run(home: BrowserPage) -> None:
    home.locator(POINT).last.hover(force=True)
    told = home.locator(".hoverlayer").text_content() or ""
    run = home.evaluate("document.querySelector('[data-figure]').data.filter(t => t.customdata)"
                        ".flatMap(t => t.customdata).pop()")  # fmt: skip
    assert run in told
    assert "allocated" in told
    home.locator(POINT).last.click(force=True)
    home.wait_for_url(f"**/runs/{run}.html")
    assert home.locator("h1").inner_text() == run


def test_tables_sort_by_number_and_filter(home: BrowserPage) -> None:
    table = home.locator("table.sortable").first

    def column(number: int) -> Locator:
        return table.locator(f"tbody tr td:nth-child({number})")

    names = [text.strip() for text in table.locator("thead th").all_inner_texts()]
    memory = 1 + names.index("allocated, MiB")
    heading = table.locator("thead th").nth(memory - 1)
    unsorted = column(memory).all_inner_texts()
    sizes = sorted(float(text) for text in unsorted if text != "–")
    assert len(sizes) == 3
    heading.click()
    # The table is drawn anew after the click has returned, so that its state is waited for.
    blank = ["–"] * (len(unsorted) - len(sizes))
    expect(column(memory)).to_have_text([*blank, *(str(size) for size in sizes)])
    expect(heading).to_have_attribute("aria-sort", "ascending")
    home.get_by_label("Filter").first.fill("glnet")
    expect(column(1)).to_have_text(["glnet-collaborative"])


def test_a_print_holds_the_figure(chromium: Browser, written: Path) -> None:
    with opened(chromium, written / "site/tiny/index.html") as page:
        page.wait_for_selector("[data-drawn]")
        page.emulate_media(media="print")
        assert page.locator("nav.site").is_hidden()
        assert page.locator("[data-figure] .main-svg").first.is_visible()
        assert page.pdf(format="A4", print_background=True).startswith(b"%PDF")
