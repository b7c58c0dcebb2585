"""The site in a real browser that opens it from disk."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from browser import barriers, opened
from playwright.sync_api import Browser, Locator, expect
from playwright.sync_api import Page as BrowserPage
from test_report import written

__all__ = ["written"]
PAGES = (
    "index.html",
    "tiny/index.html",
    "tiny/memory.html",
    "tiny/runs/glnet-collaborative.html",
    "tiny/scenes/d.html",
    "tiny/datasets/tiny.html",
    "tiny/about.html",
    "tiny/runs/pspnet-patch.html",
)
LAID_OUT = PAGES[:5]
OUTSIDE = """() => {
  const scrolls = (one) => one && (
    /auto|scroll|hidden/.test(getComputedStyle(one).overflowX) || scrolls(one.parentElement));
  return [...document.querySelectorAll("body *")].filter((one) => {
    const { left, right, width, height } = one.getBoundingClientRect();
    return width && height && (left < -1 || right > innerWidth + 1)
      && !one.matches(".skip, #js-plotly-tester") && !scrolls(one.parentElement);
  }).map((one) => one.outerHTML.slice(0, 120));
}"""
"""Elements that reach beyond the window, but for those in a part that scrolls."""
OVERLAPPING = """() => {
  const shown = (one) => one.checkVisibility() && one.getBoundingClientRect().height > 0;
  const found = [], parts = "header > div, main, .numbers, .choices, .cards, .plot";
  for (const all of document.querySelectorAll(parts))
    [...all.children].filter(shown).reduce((above, one) => {
      const [a, b] = [above, one].map((each) => each.getBoundingClientRect());
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 1 && down > 1)
        found.push(above.outerHTML.slice(0, 80) + " | " + one.outerHTML.slice(0, 80));
      return one;
    });
  return found;
}"""
"""Neighbours of which one lies on the other."""
SENDS = """async (url) => {
  const add = (kind, fields) =>
    document.body.appendChild(Object.assign(document.createElement(kind), fields));
  const tries = [
    () => fetch(url), () => navigator.sendBeacon(url, "x"), () => add("img", { src: url }),
    () => new WebSocket(url.replace("http", "ws")),
    () => { const one = new XMLHttpRequest(); one.open("POST", url); one.send("x"); },
    () => add("iframe", { src: url }), () => add("script", { src: url }),
    () => add("form", { action: url, method: "post", target: "_blank" }).submit(),
  ];
  for (const one of tries) { try { await one(); } catch {} }
  await new Promise((done) => setTimeout(done, 300));
}"""
"""Whatever a script could do to reach a host."""
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
        page.evaluate("for (const one of document.images) one.loading = 'eager'")
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        for place in page.locator("[data-figure]").all():
            place.locator(".main-svg").first.wait_for()
        # An image that could not be shown is as wide as nothing.
        page.wait_for_function("[...document.images].every(one => one.complete)")
        assert page.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
        assert barriers(page) == []
        page.emulate_media(color_scheme="dark")
        assert barriers(page) == []


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)])
@pytest.mark.parametrize("path", LAID_OUT)
def test_nothing_is_cut_and_nothing_overlaps(
    chromium: Browser, written: Path, path: str, width: int, height: int
) -> None:
    with opened(chromium, written / "site" / path, width=width, height=height) as page:
        for place in page.locator("[data-figure]").all():
            place.locator(".main-svg").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate(OVERLAPPING) == []
        if path == "tiny/index.html":  # tiles, a sentence and the figure are seen at once
            box = page.locator("[data-figure]").first.bounding_box()
            assert box
            assert box["y"] + box["height"] <= height


class Listener(socketserver.TCPServer):
    """A host that counts requests, and answers none; a browser may connect without asking."""

    calls = 0

    def verify_request(self, request: Any, _: Any) -> bool:
        request.settimeout(0.2)
        with suppress(OSError):
            self.calls += bool(request.recv(1))
        return False


@pytest.fixture
def host() -> Iterator[Listener]:
    with Listener(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", LAID_OUT)
def test_no_control_and_no_script_reaches_a_host(
    chromium: Browser, written: Path, path: str, host: Listener, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{host.server_address[1]}/"
    page, asked = chromium.new_page(), []
    page.goto((written / "site" / path).resolve().as_uri())
    page.on("request", lambda one: asked.append(one.url))
    for button in page.locator("button:visible, summary:visible, .modebar-btn:visible").all():
        button.click(force=True)
    for choice in page.locator("select:visible:not(#suite)").all():
        for option in choice.locator("option:enabled").all():
            choice.select_option(option.get_attribute("value"))
    assert not [one for one in asked if not one.startswith(("file:", "data:", "blob:"))]
    page.evaluate(SENDS, url)
    assert host.calls == 0
    (tmp_path / "open.html").write_text("<!doctype html><body></body>")
    page.goto((tmp_path / "open.html").as_uri())
    page.evaluate(SENDS, url)
    assert host.calls > 0, "from a page without the policy the same script does reach it"
    page.close()


def test_a_choice_of_rows_and_columns_stands_in_the_address(
    chromium: Browser, written: Path
) -> None:
    with opened(chromium, written / "site/tiny/index.html") as page:
        assert page.locator("#runs-table thead th").count() == 7
        page.locator("form[data-table=runs-table] summary").click()
        page.get_by_label("host RSS, MiB", exact=True).check()
        page.get_by_label("strategy", exact=True).first.select_option("patch")
        page.get_by_label("allocated, MiB, at most").fill("50")
        expect(page.locator("#runs-table tbody td:first-child")).to_have_text(["unet-patch"])
        fragment = page.url.partition("#")[2]
    with opened(chromium, written / "site/tiny/index.html", fragment) as page:
        expect(page.locator("#runs-table tbody td:first-child")).to_have_text(["unet-patch"])
        assert page.locator("#runs-table thead th").count() == 8


def test_the_name_of_a_line_is_inside_the_axes(chromium: Browser, written: Path) -> None:
    with opened(chromium, written / "site/tiny/memory.html") as page:
        page.wait_for_selector("[data-drawn]")
        names = page.evaluate("""() => [...document.querySelectorAll(".shape-label text")].map((one) => {
          const figure = one.closest("[data-figure]"), top = one.getBoundingClientRect().top;
          return [one.textContent, top - figure.getBoundingClientRect().top - figure._fullLayout._size.t];
        })""")
    assert "2 GiB" in {name for name, _ in names}
    assert min(below for _, below in names) >= 0


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
