"""What one setting of a trained run changes."""

import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.cli import parse_setting
from bench.commands import what_if
from bench.config import read_suite
from bench.errors import UserError
from bench.pipeline.train import train


@pytest.fixture
def trained(project: Path) -> Path:
    """A project whose U-Net is trained."""
    train(read_suite(), "unet")
    return project


def test_a_line_for_the_run_as_it_is_and_one_for_each_change(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["overlap_px=8", "overlap_px=0", "sub_batch=1"]
    monkeypatch.setattr(sys, "argv", ["glnet-bench", "what-if", "unet-patch", *changes])
    main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in ["as it is", *changes])
    suite = read_suite()
    table = what_if.compare(
        suite, "unet-patch", [parse_setting(change) for change in changes], "test"
    ).set_index("setting")
    assert table["labels changed %"]["as it is"] == 0
    assert table["labels changed %"]["overlap_px=8"] == 0  # what it is anyway
    assert table["labels changed %"]["overlap_px=0"] > 0
    memory = table["predicted device MiB"]
    assert memory["sub_batch=1"] < memory["as it is"]
    assert (table["s an image"] > 0).all()
    again = what_if.compare(suite, "unet-patch", [], "test")["mIoU test %"]
    assert list(again) == [table["mIoU test %"]["as it is"]]


def test_what_cannot_be_asked(trained: Path) -> None:
    suite = read_suite()
    for text in ("overlap_px", "=3", "overlap_px=[1"):
        with pytest.raises(UserError, match=r"is no KEY=VALUE|overlap_px is not YAML"):
            parse_setting(text)
    with pytest.raises(UserError, match="overlap"):
        what_if.compare(suite, "unet-patch", [("overlapp_px", 3)], "test")
    with pytest.raises(UserError, match="run"):
        what_if.compare(suite, "unet-pach", [], "test")
