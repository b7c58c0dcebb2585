"""Descriptions of data sets against the text of Croissant 1.0 (core and RAI): mlcroissant, which reads
them without an error, is no dependency of the project."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_report import written

from bench.config import read_suite
from bench.report import style
from bench.report.load_records import load_records
from data import croissant

__all__ = ["written"]
SUITES = sorted((ROOT / "suites").glob("*.yaml"))
SHA256 = "ab" * 32


def ids(described: dict[str, Any]) -> list[str]:
    sets = described["recordSet"]
    fields = [field for one in sets for field in one["field"]]
    return [one["@id"] for one in (*described["distribution"], *sets, *fields)]


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_data_set_of_a_suite_is_described(path: Path) -> None:
    suite = read_suite(path)
    inputs = load_records(suite)
    for name, source in suite.datasets.items():
        facts = style.CREDITS["datasets"][source.source]
        about = inputs.about(name)
        found = croissant.describe(name, about, facts, SHA256, "1")
        assert found["@type"] == "sc:Dataset"
        assert found["conformsTo"] == [croissant.CORE, croissant.RAI]
        assert found["name"] == name
        assert len(found["description"]) > 10
        assert {"rai:dataUseCases", "rai:dataPreprocessingProtocol"} <= found.keys()
        assert len(set(ids(found))) == len(ids(found))
        index = found["distribution"][0]
        assert (index["@type"], index["sha256"]) == ("cr:FileObject", SHA256)
        assert {"contentUrl", "encodingFormat", "name"} <= index.keys()
        classes, splits = found["recordSet"]
        names = [one["classes/name"] for one in classes["data"]]
        assert names == list(about.classes)
        assert [one["splits/name"] for one in splits["data"]] == ["train", "val", "test"]
        for records in (classes, splits):
            fields = {field["@id"] for field in records["field"]}
            assert all(row.keys() == fields for row in records["data"])
        # Every prefix of a key or type is one of the context.
        used = set(re.findall(r'"(cr|sc|rai|dct):\w', json.dumps(found)))
        assert used <= croissant.CONTEXT.keys()


def test_colours_and_makers() -> None:
    about = load_records(read_suite(ROOT / "suites/idrid.yaml")).about("idrid")
    found = croissant.describe("x", about, {"creator": ["A"], "license": "L"}, "", "1")
    assert found["recordSet"][0]["data"][1]["classes/colour"] == "#e6194b"  # 230, 25, 75
    assert (found["creator"], found["license"]) == ([{"@type": "Organization", "name": "A"}], "L")
    assert "sha256" not in found["distribution"][0]


def test_pages_lead_to_the_description_and_to_papers_and_codes(written: Path) -> None:
    about = (written / "site/tiny/about.html").read_text()
    assert 'href="datasets/tiny.croissant.json"' in about
    described = json.loads((written / "site/tiny/datasets/tiny.croissant.json").read_text())
    assert described["description"] == "Made by a formula."
    assert 'href="https://arxiv.org/abs/1905.06368" rel="noreferrer"' in about
    assert 'href="https://github.com/VITA-Group/GLNet" rel="noreferrer"' in about


def test_credits_are_of_networks_and_sources_that_there_are() -> None:
    assert style.CREDITS["methods"].keys() <= style.LOOKS["networks"].keys()
    assert all((ROOT / f"data/{name}.py").exists() for name in style.CREDITS["datasets"])
