"""What docs/security.md says of names from others, and of the report's pages."""

import html
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import markdown_it
import pandas as pd
import pytest
from browser import opened
from conftest import ROOT
from playwright.sync_api import Browser
from test_report import written
from test_site import PAGES

from bench.files import csv_text
from bench.report.section import section
from data.inspection import summary

__all__ = ["written"]
NAMES = (
    "<script>alert(1)</script>",
    "a|b",
    "`code`",
    "two\nlines",
    "![x](http://host/x.png)",
    "[a](javascript:b)",
    "a\\|b",
    "<b>*_&lt;",
)
LOADS = ("src", "srcset", "href", "action", "formaction", "data", "poster", "ping", "background")


class Addresses(HTMLParser):
    """Every address of a page, except those of links that a reader follows with a click."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("iframe", "object", "embed", "base"), tag
        for name, value in attributes:
            assert not name.startswith("on"), f"{name} runs a script"
            if name in LOADS and (tag, name) != ("a", "href"):
                self.found.append(value or "")
            if name == "style":
                self.found += re.findall(r"url\(['\"]?(.*?)['\"]?\)", value or "")


def test_no_page_leads_to_a_host_but_by_a_link(written: Path) -> None:
    pages = [Addresses(page) for page in (written / "site").rglob("*.html")]
    assert len(pages) > len(PAGES)
    found = [address for page in pages for address in page.found]
    assert len(found) > 20
    assert [one for one in found if re.match(r"(?!data:)[a-z+.-]+:|//", one, re.IGNORECASE)] == []


def test_no_script_or_style_of_ours_names_a_host() -> None:
    names_a_namespace = r"https?://(?!www\.w3\.org/(2000/svg|1999/xlink))"
    for path in (ROOT / "bench/report/assets").iterdir():
        assert re.findall(names_a_namespace, path.read_text()) == [], path


@pytest.mark.parametrize("path", PAGES)
def test_no_figure_can_be_uploaded(chromium: Browser, written: Path, path: str) -> None:
    with opened(chromium, written / "site" / path) as page:
        for place in page.locator("[data-figure]").all():
            place.locator(".main-svg").first.wait_for()
            config = place.evaluate("one => one._context")
            assert (config["showSendToCloud"], config["plotlyServerURL"]) == (False, "")
            buttons = place.locator(".modebar-btn").evaluate_all(
                "all => all.map(one => one.dataset.title)"
            )
            assert any("Download" in one for one in buttons)
            assert not [one for one in buttons if re.search("share|cloud|edit", one, re.IGNORECASE)]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_in_a_table_of_markdown(name: str) -> None:
    rows = pd.DataFrame([{"run": name, "miou": 0.5}])
    text = section("runs", rows, {"run": name, "miou": "mIoU"}).files()["md"]
    page = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    cells = re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", page, re.DOTALL)
    assert len(cells) == 4
    shown = " ".join(name.split())
    assert [html.unescape(cells[0]), html.unescape(cells[2])] == [shown, shown]


def test_a_spreadsheet_finds_no_formula_in_a_name() -> None:
    risky = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1")
    frame = pd.DataFrame({"run": [*risky, "plain", "a=b"], "-column": range(8), "x": -1.5})
    read = pd.read_csv(io.StringIO(csv_text(frame)))
    assert list(read.columns) == ["run", "'-column", "x"]
    assert read.run.iloc[:6].tolist() == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "' =1", "' =1"]
    assert read.run.iloc[-2:].tolist() == ["plain", "a=b"]
    assert (read.x == -1.5).all()
    assert "\n'=1+1," in csv_text(frame)
    checked = {"a": {"split": "train", "pixels": {"=HYPERLINK(1)": 3}}}
    assert "train,'=HYPERLINK(1),3,1.0" in summary(checked)
    assert section("runs", frame, {"run": "run"}).files()["csv"] == csv_text(frame)
