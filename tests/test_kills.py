"""The pipeline killed again and again ends with the results of one that was left alone, and needs no
help by hand. Here its first stages, for time; `python tests/kills.py 200` kills all of them."""

import re
from pathlib import Path

import pytest
from kills import project, survive


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_kills_change_no_result(tmp_path: Path) -> None:
    project(tmp_path, stages=("download", "prepare", "training_code"))
    lines = list(survive(tmp_path, kills=10, seed=0))
    assert re.match(r"10 kills over 3 stages .* ended [1-9].* with all 13 results", lines[-1]), (
        lines
    )
