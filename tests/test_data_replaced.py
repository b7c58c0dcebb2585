"""Prepared data under kills and full disks: the old data set or the new one, whole, never half of
either."""

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from bench.errors import UserError
from data import prepare
from data.dataset import About, Pair, open_dataset

ABOUT = About(("a", "b"), ((1, 2, 3), (4, 5, 6)), (), (), {"train": ("x",), "test": ("y",)}, "-")


def pairs(value: int = 0) -> list[Pair]:
    """Two images of one colour whose labels are all of one class."""
    label = np.full((4, 6), value, np.uint8)
    image = np.full((4, 6, 3), value, np.uint8)
    return [Pair("train", "x", image, label), Pair("test", "y", image, label)]


def held() -> set[int]:
    """The label values of every image, read through the only reader."""
    dataset = open_dataset("small")
    return {int(v) for id in ("x", "y") for v in dataset.read(id)[1].unique()}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names() -> list[str]:
    return sorted(path.name for path in Path("data/prepared").iterdir())


def test_a_killed_process_leaves_the_old_data_set(tmp_path: Path) -> None:
    prepare.prepare("small", ABOUT, pairs(0), {})
    script = (
        "import time, test_data_replaced as t\n"
        "def slow():\n"
        "    yield t.pairs(1)[0]\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
        "t.prepare.prepare('small', t.ABOUT, slow(), {})\n"
    )
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    command = [sys.executable, "-c", path + script]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"half\n"
        process.kill()
    assert ".small.partial" in names()
    assert held() == {0}
    prepare.prepare("small", ABOUT, pairs(1), {})
    assert held() == {1}
    assert names() == ["small"]


def test_a_kill_while_the_old_data_set_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare.prepare("small", ABOUT, pairs(0), {})

    def interrupted(folder: Path, **_: Any) -> None:
        files = [path for path in folder.rglob("*") if path.is_file()]
        if files:
            files[0].unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(prepare.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare("small", ABOUT, pairs(1), {})
    assert held() == {1}
    prepare.prepare("small", ABOUT, pairs(1), {})
    assert names() == ["small"]


def test_a_disk_that_fills_while_an_image_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare.prepare("small", ABOUT, pairs(0), {})
    save = np.save

    def full(path: Path, array: Any) -> None:
        if path.name == "y.npy":
            path.write_bytes(b"\x93NUMPY")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        prepare.prepare("small", ABOUT, pairs(1), {})
    assert held() == {0}
    assert names() == ["small"]


def test_two_images_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="Data set small: two images are called x"):
        prepare.prepare("small", ABOUT, [*pairs(), pairs()[0]], {})
    assert names() == []


def test_an_image_in_another_split_than_listed_is_refused() -> None:
    first, second = pairs()
    moved = Pair("train", "y", second.image, second.label)
    with pytest.raises(UserError, match="y is in the splits or among the images"):
        prepare.prepare("small", ABOUT, [first, moved], {})
    assert names() == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-30]), r"x\.npy is damaged"),
        (lambda p: p.write_bytes(b"what?"), r"x\.npy is damaged"),
        (lambda p: p.write_bytes(b""), r"x\.npy is damaged"),
        (lambda p: p.unlink(), r"x\.npy is missing"),
        (lambda p: np.save(p, np.zeros((4, 6), np.uint8)), r"x\.npy is no RGB image"),
        (lambda p: np.save(p, np.zeros((3, 4, 6))), r"x\.npy holds float64, not uint8"),
        (lambda p: np.save(p, np.zeros((3, 5, 6), np.uint8)), "is 4 x 6 px, its image 5 x 6"),
    ],
)
def test_a_bad_image_is_refused_in_one_sentence(spoil: Any, message: str) -> None:
    dataset = prepare.prepare("small", ABOUT, pairs(), {})
    spoil(dataset.root / "images/x.npy")
    for read in (dataset.read, dataset.mapped):
        with pytest.raises(UserError, match=message) as refused:
            read("x")
        assert "\n" not in str(refused.value)


def test_an_image_that_no_split_lists_is_refused() -> None:
    with pytest.raises(UserError, match="z is in the splits or among the images"):
        prepare.prepare("small", ABOUT, [*pairs(), replace(pairs()[0], id="z")], {})
