"""The table that `pytest --benchmark-only` prints."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from benchmark_table import END_TO_END, FILES, HEADS, NETWORK_ALONE, tables
from conftest import ROOT, run


def finished(params: dict[str, str], seconds: list[float], **info: Any) -> SimpleNamespace:
    size = {"height_px": 1000, "width_px": 2000}
    return SimpleNamespace(
        params=params, stats=SimpleNamespace(data=seconds), extra_info=size | info
    )


def test_a_table_per_kind_and_a_row_per_run_the_fastest_first() -> None:
    both = {"part": "end-to-end"}
    text = tables(
        [
            finished(
                {"run": "slow", **both}, [4, 2, 3], network_s=[1, 1, 1], allocated_bytes=2**30
            ),
            finished({"run": "quick", **both}, [0.02, 0.01, 0.0234], allocated_bytes=2**20),
            finished({"side_px": "256"}, [1.5]),
        ]
    )
    first, second, third = (text.index(title) for title in (END_TO_END, NETWORK_ALONE, FILES))
    assert first < second < third
    lines = [line.split() for line in text[first:second].splitlines()[4:] if line]
    assert lines == [
        ["quick", "1000", "x", "2000", "20.0", "10.0", "23.4", "100", "1.00"],
        ["slow", "1000", "x", "2000", "3,000", "2,000", "4,000", "0.67", "1,024"],
    ]
    assert "slow" in text[second:third]
    assert "quick" not in text[second:third]
    assert "peak" not in text[second:]  # no column without a figure


@pytest.mark.slow
def test_every_kind_of_benchmark_is_in_the_printed_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest-benchmark refuses to time anything in a process that a worker of pytest-xdist started.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    files = [f"tests/test_{name}.py" for name in ("benchmark", "benchmark_large", "fast")]
    chosen = "colour-end or 256 or (path and collapsed)"
    words = ["--benchmark-only", "-q", "-p", "no:cacheprovider", "-k", chosen, *files]
    done = run(sys.executable, "-m", "pytest", *words, cwd=ROOT)
    for title in (END_TO_END, NETWORK_ALONE, FILES, HEADS):
        assert f"\n{title}\n" in done.stdout
    assert "benchmark: " not in done.stdout  # pytest-benchmark's own table
    assert "skipped" not in done.stdout  # as all other tests would be


def test_nothing_is_printed_where_nothing_was_timed() -> None:
    assert tables([]) == ""
