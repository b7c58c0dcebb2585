"""One model of all published memory figures: what it finds, and what it leaves unexplained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from bench.config import read_suite
from bench.memory.paper_memory import (
    VARIANTS,
    Fit,
    Row,
    explain,
    fit,
    largest_convolution,
    possible,
    published_rows,
    summary,
)

TRUE = Fit(context_mb=900, holding=1.2, workspace=0.1)


def rows(count: int = 12) -> list[Row]:
    """Figures that the true model explains to the last byte."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        tensors, workspace = rng.uniform(100, 4000), rng.uniform(10, 9000)
        row = Row(f"r{number}", f"n{number}", "whole", 508, 1, tensors, tensors, workspace)
        made.append(replace(row, published_mb=TRUE.of(row)))
    return made


def test_the_three_numbers_are_found_in_spite_of_rows_that_nothing_explains() -> None:
    spoilt = [*rows(), *(replace(row, published_mb=9 * row.published_mb) for row in rows()[:4])]
    found = fit(spoilt)
    assert found.context_mb == pytest.approx(900, rel=1e-6)
    assert found.holding == pytest.approx(1.2, rel=1e-6)
    assert found.workspace == pytest.approx(0.1, rel=1e-6)


def test_no_number_falls_below_0() -> None:
    falling = [replace(row, published_mb=5000 - row.tensors_mb / 2) for row in rows()]
    found = fit(falling)
    assert min(found.context_mb, found.holding, found.workspace) >= 0
    assert found.holding == 0


def test_every_row_is_told_also_the_impossible_one() -> None:
    wrong = replace(rows()[0], row="wrong", network="other", published_mb=50.0)
    more = replace(rows()[1], row="more", network="another", published_mb=TRUE.of(rows()[1]) + 4000)
    assert not possible(wrong)
    frame = explain([*rows(), wrong, more]).set_index("row")
    assert len(frame) == 14
    assert frame.ratio["r3"] == pytest.approx(1)
    assert frame.left_out_error["r3"] == pytest.approx(0, abs=1e-6)
    assert frame.note["r3"] == "explained within 15%"
    assert frame.note["wrong"].startswith("not explained: the tensors alone are more")
    assert frame.note["more"] == "not explained: theirs held 4000 MB more"
    told = summary(frame)
    assert told["rows"] == 14
    assert told["explained"] == pytest.approx(12 / 14)
    assert told["median_left_out_error"] == pytest.approx(0, abs=1e-6)


def test_a_row_is_left_out_together_with_its_repetition() -> None:
    """Else the repetition, which is met exactly, would vouch for the row."""
    odd = replace(rows()[0], row="odd", network="x", published_mb=3 * rows()[0].published_mb)
    again = replace(odd, row="again", strategy="downsample")
    frame = explain([*rows(4), odd, again]).set_index("row")
    assert frame.left_out_error["odd"] == pytest.approx(2 / 3, rel=1e-6)


def test_ranks_by_hand() -> None:
    frame = explain(rows(6))
    assert summary(frame)["rank_correlation"] == pytest.approx(1)
    swapped = frame.assign(modelled_mb=-frame.modelled_mb)
    assert summary(swapped)["rank_correlation"] == pytest.approx(-1)


def test_the_largest_convolution_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 5, groups=8)
    )
    with largest_convolution() as found:
        net(torch.zeros(2, 3, 10, 20))
    assert found == [4 * 3 * 9 * 2 * 10 * 20]
    net(torch.zeros(2, 3, 10, 20))
    assert len(found) == 1, "nothing is watched outside the block"


def test_rows_come_from_the_suites_and_the_published_table() -> None:
    suite = read_suite(ROOT / "suites/deepglobe.yaml")
    chosen = ("fcn8s-patch", "glnet-global", "fcn8s-downsample")
    small = replace(suite, runs={name: suite.runs[name] for name in chosen})
    first, second = published_rows([small, small])  # a row is answered once; one run answers none
    assert (first.row, first.network, first.input_px) == ("FCN-8s / patch", "fcn8s", 508)
    assert (first.published_mb, second.published_mb) == (1963, 1189)
    assert first.tensors_mb > 134_296_181 * 4 / 2**20
    # conv1_2 unfolds 64 channels of 3 x 3 at 508 px, and 200 px of padding less 2
    assert first.workspace_mb == pytest.approx(4 * 64 * 9 * 706**2 / 2**20)
    changed, kept = published_rows([small], {"fcn8s": VARIANTS["fcn8s"][0]}, [first, second])
    assert changed.tensors_mb < first.tensors_mb
    assert kept is second
