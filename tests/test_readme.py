"""The README says what the committed results say."""

import io
import re

import pandas as pd
import pytest
from conftest import ROOT, run

README = (ROOT / "README.md").read_text()


def test_the_two_commands_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"repro", "test", "setup"} <= targets
    for command in ("make repro", "make test"):
        assert command in README


def test_every_file_it_points_to_exists() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_table_is_the_committed_one() -> None:
    # As committed: a reproduction on another machine may differ, and is not the README's matter.
    table = run("git", "show", "HEAD:report/earthcover-long/tables/runs.csv", cwd=ROOT).stdout
    runs = pd.read_csv(io.StringIO(table)).set_index("run")
    number = r" ([\d.]+) \|"
    rows = re.findall(rf"^\| ([\w-]+) \|{number * 4}$", README, re.MULTILINE)
    assert len(rows) >= 5
    for name, miou, memory, seen, latency in rows:
        assert 100 * runs.miou[name] == pytest.approx(float(miou), abs=0.051)
        assert runs.allocated_bytes[name] / 2**20 == pytest.approx(float(memory), abs=0.51)
        assert runs.nvml_bytes[name] / 2**20 == pytest.approx(float(seen), abs=0.51)
        assert 1000 * runs.latency_s[name] == pytest.approx(float(latency), abs=0.51)
