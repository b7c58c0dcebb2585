"""How large the pages of the largest suite are, with the style and scripts that they load."""

from pathlib import Path

import pytest
from conftest import ROOT

from bench.config import read_suite
from bench.report.__main__ import _write_pages
from bench.report.load_records import load_records
from bench.report.pages import collect
from bench.report.site import Site, write_assets

MOST_BYTES = 3_000_000


def test_no_page_is_larger_than_3_mb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    content = collect(load_records(read_suite(Path("suites/earthcover-long.yaml"))))
    write_assets(tmp_path / content.suite)
    _write_pages(Site(tmp_path, content.suite, content.links), content)
    assets = sum(one.stat().st_size for one in tmp_path.glob("*/assets/*"))
    pages = {one.name: one.stat().st_size for one in tmp_path.rglob("*.html")}
    assert len(pages) > len(content.inputs.entries)
    assert assets + max(pages.values()) <= MOST_BYTES
